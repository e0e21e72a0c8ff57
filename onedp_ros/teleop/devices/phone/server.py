"""The phone's server: the page, pairing, and the connection of the phone that drives.

Only https, with this machine's own certificate. Whoever wants to drive needs the code that is shown where the server was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import re
import secrets
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web

from onedp_ros import clock
from onedp_ros.teleop.devices.base import Command, Device, Setup
from onedp_ros.teleop.devices.phone.certificate import addresses, configuration_folder, machine_certificate, names
from onedp_ros.teleop.devices.phone.messages import LARGEST_MESSAGE, is_gone, read_object
from onedp_ros.teleop.devices.phone.session import PhoneSession

log = logging.getLogger(__name__)

PAIRING_TIME = 5.0  # s from the connection to the code
# Whoever guesses must not lock out whoever knows: after some wrong codes a longer one takes the short one's place, once, and is
# shown in the terminal. The odds of a guesser are 5 in 10^6, then 4 in 10^6 an hour at 1000 guesses a second, more than this server
# takes; each costs a TLS handshake. A code that changed again and again could not be typed by anybody while somebody guesses.
DIGITS, LONG_DIGITS = 6, 12
TRIES = 5  # wrong codes until the longer one
IDLE_TIME = 10.0  # s that a connection without a request is kept
HEARTBEAT = 4.0  # s between pings; a phone that has not answered one in half that time is gone
REFUSALS = ("plain http", "handshake", "origin", "no code", "wrong code", "old session", "busy", "malformed", "late")

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/phone.js": ("phone.js", "text/javascript"),
    "/phone.css": ("phone.css", "text/css"),
}
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Phone(Device):
    """Serves the page from a thread of its own.

    Attributes:
        urls: what to open on the phone.
        code: what to type there, six digits; twelve after :data:`TRIES` wrong ones.
        fingerprint: SHA-256 of the certificate, as browsers show it.
        refused: how often something was refused, by reason (:data:`REFUSALS`).
        session: of the phone that is paired.

    Args:
        setup: its ``host`` is the address to serve on: 0.0.0.0 is all of this machine's; 127.0.0.1 serves a phone on a cable by
            ``adb reverse``. ``port`` 0 takes a free one. ``tell`` is called with :attr:`invitation`, and again, from the server's
            thread, when the code has changed.
        code: the code, instead of a random one.
        certificate_folder: where this machine's certificate is kept, instead of
            :func:`~onedp_ros.teleop.devices.phone.certificate.configuration_folder`.

    Raises:
        ValueError: a code that is not six digits.
        OSError: the port is taken, the host is not this machine's, or the certificate cannot be written.
    """

    shows_frames = True

    def __init__(self, setup: Setup, code: str | None = None, certificate_folder: Path | None = None) -> None:
        if code is not None and not re.fullmatch(r"[0-9]{6}", code):
            raise ValueError(f"code is {code!r}, expected six digits")
        host, port = setup.host, setup.port
        self.code, self._tell = code or _random_digits(DIGITS), setup.tell
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))  # all of them: its size never changes under a reader
        self._logged: dict[str, float] = {}
        self._wrong_codes = 0
        self._token = ""  # lets the phone that was paired last in again
        self._sockets: set[web.WebSocketResponse] = set()

        certificate = machine_certificate(names(host), certificate_folder or configuration_folder())
        self.fingerprint = certificate.fingerprint
        app = web.Application()
        for path, (file, content_type) in PAGE_FILES.items():
            app.router.add_get(path, self._serve_file((PAGE / file).read_text(encoding="utf-8"), content_type))
        app.router.add_get("/socket", self._connect)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=IDLE_TIME)
        self._loop = asyncio.new_event_loop()
        self.session = PhoneSession(setup.cameras, self._loop, self._refuse)
        self._thread = threading.Thread(target=self._loop.run_forever, name="phone", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(host, port, certificate.path), self._loop).result()
        except OSError as error:
            self.close()
            raise OSError(
                error.errno,
                f"cannot serve the phone on {host}:{port}: {error.strerror}; end the program that holds the port, or choose "
                f"another port, or an address of this machine",
            ) from error
        self._tell(self.invitation)

    @property
    def invitation(self) -> str:
        """What the person who starts the server should read: addresses, code, fingerprint."""
        return (
            f"Open on the phone    {' or '.join(self.urls)}\n"
            f"Code                 {self.code if len(self.code) == DIGITS else ' '.join(re.findall('....', self.code))}\n"
            f"Certificate SHA-256  {self.fingerprint}\n"
            "The phone warns once, since this machine vouches for itself: compare the certificate's SHA-256 there, then go on."
        )

    def poll(self) -> Command:
        return self.session.poll()

    def events(self) -> list[str]:
        return self.session.events()

    def show(self, status: Mapping[str, Any]) -> None:
        self.session.show(status)

    def show_frame(self, camera: str, jpeg: bytes) -> None:
        self.session.show_frame(camera, jpeg)

    def close(self) -> None:
        """Tell the phone, close its connection and the port."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What follows runs in the thread of the server.

    def _serve_file(self, text: str, content_type: str) -> Callable[[web.Request], Any]:
        """A handler for a file of the page, which learns from ``maxlength`` how long the code is."""

        async def serve(_request: web.Request) -> web.Response:
            body = text.replace(f'maxlength="{DIGITS}"', f'maxlength="{len(self.code)}"')
            return web.Response(text=body, content_type=content_type, headers=PAGE_HEADERS)

        return serve

    async def _start(self, host: str, port: int, certificate: Path) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=_tls(certificate, self._refuse)).start()
        port = self._runner.addresses[0][1]
        self.urls = [f"{_origin(name, port)}/" for name in addresses(host)]
        self._origins = {_origin(name, port) for name in names(host)}

    async def _stop(self) -> None:
        await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets))
        await self._runner.cleanup()

    def _refuse(self, reason: str, detail: str) -> None:
        self.refused[reason] += 1
        now = clock.now()
        if now - self._logged.get(reason, -math.inf) > 1.0:  # whoever is refused may try again at any rate
            self._logged[reason] = now
            log.warning("refused, %s: %s (%d so far)", reason, detail, self.refused[reason])

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        """A websocket from its first byte to its last."""
        if request.headers.get("Origin") not in self._origins:
            self._refuse("origin", f"{request.remote} came from a page that is not this server's")
            raise web.HTTPForbidden(text="This socket is for this server's own page.")
        socket = web.WebSocketResponse(timeout=1.0, heartbeat=HEARTBEAT, compress=False, max_msg_size=LARGEST_MESSAGE)
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            if reason := await self._pair(socket):
                self._refuse(reason, f"{request.remote} was not paired")
                with contextlib.suppress(ConnectionError):
                    await socket.send_json({"type": "refused", "reason": reason, "digits": len(self.code)})
                await socket.close()
            else:
                log.info("%s drives", request.remote)
                await self.session.talk(socket, self._token)
                log.info("%s has gone", request.remote)
        finally:
            self._sockets.discard(socket)
        return socket

    async def _pair(self, socket: web.WebSocketResponse) -> str:
        """Why the phone at the other end may not drive; empty when it may."""
        try:
            first = await socket.receive(PAIRING_TIME)
            if is_gone(first):
                return "no code"
            message = read_object(first)
        except asyncio.TimeoutError:
            return "no code"
        except ValueError:
            return "malformed"
        if message == {"type": "pair", "token": message.get("token")}:
            return "" if self._token and _same(message["token"], self._token) else "old session"
        if message != {"type": "pair", "code": message.get("code")}:
            return "no code"
        if not _same(message["code"], self.code):
            self._wrong_codes += 1
            if self._wrong_codes == TRIES and len(self.code) < LONG_DIGITS:
                self.code = _random_digits(LONG_DIGITS)
                self._tell(f"{TRIES} wrong codes were typed. The code is another one now:\n{self.invitation}")
            return "wrong code"
        self._wrong_codes = 0
        if self.session.connection:
            return "busy"
        self._token = secrets.token_urlsafe(32)
        return ""


def _same(given: Any, secret: str) -> bool:
    """Whether they are equal, in a time that does not tell how much of it is."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), secret.encode())


def _origin(name: str, port: int) -> str:
    return f"https://{f'[{name}]' if ':' in name else name}{'' if port == 443 else f':{port}'}"


def _random_digits(count: int) -> str:
    return f"{secrets.randbelow(10**count):0{count}d}"


def _tls(certificate: Path, refuse: Callable[[str, str], None]) -> ssl.SSLContext:
    """A context that also tells of connections that end before aiohttp hears of them."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError):
                raise
            except ssl.SSLError as error:
                if error.reason == "HTTP_REQUEST":
                    refuse("plain http", "this port speaks https; write https:// in front of the address")
                elif "ALERT" not in (error.reason or ""):  # alerts: the phone does not trust the certificate yet
                    refuse("handshake", f"{error.reason}")
                raise

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    context.sslobject_class = Handshake  # type: ignore[assignment]
    return context
