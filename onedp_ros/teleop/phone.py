"""A phone as a device: it opens a page that this machine serves, and its two thumbs, its tilt or its pose move the arm.

Only https, with this machine's own certificate. Whoever wants to drive needs the code that is shown where the server was
started. The phone is not trusted to be punctual: what it says counts for :data:`~onedp_ros.teleop.device.SILENCE`, must follow
from what it was told within :data:`DELAY`, and after either was missed the dead man has to be let go and pressed anew. So a page,
a phone, a network or this machine that slept moves nothing with what was meant before. Times are of :mod:`onedp_ros.clock`.

Messages are JSON objects with a ``type``. The phone says ``pair`` (``code`` or ``token``) first, then ``command`` (see
:func:`read_command`), ``event`` (``name``, ``time``) and ``drawn`` (``camera``: index of the picture that it has shown). It is told
``paired`` or ``refused``, then ``answer`` (to commands: ``sequence``, ``time``, ``engaged``) and ``status``; a binary message is
a camera's index, one byte, and a JPEG.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import math
import re
import secrets
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType, web

from onedp_ros import clock
from onedp_ros.teleop.certificate import addresses, configuration_folder, machine_certificate, names
from onedp_ros.teleop.device import EVENTS, SILENCE, Command

log = logging.getLogger(__name__)

DELAY = 0.3  # s: what was sent when the phone had heard nothing newer than this is too old, a command to move the arm, or a button
PAIRING_TIME = 5.0  # s from the connection to the code
# Whoever guesses must not lock out whoever knows: after some wrong codes a longer one takes the short one's place, once, and is
# shown in the terminal. The odds of a guesser are 5 in 10^6, then 4 in 10^6 an hour at 1000 guesses a second, more than this server
# takes; each costs a TLS handshake. A code that changed again and again could not be typed by anybody while somebody guesses.
DIGITS, LONG_DIGITS = 6, 12
TRIES = 5  # wrong codes until the longer one
IDLE_TIME = 10.0  # s that a connection without a request is kept
HEARTBEAT = 4.0  # s between pings; a phone that has not answered one in half that time is gone
STATUS_PERIOD = 0.4  # s between statuses that did not change
LARGEST_MESSAGE = 4096  # bytes
REACH = 100.0  # m: greatest coordinate of a phone's position
REPLACED = 4000  # websocket close code: the same phone connected anew
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


@dataclasses.dataclass(eq=False)
class _Operator:
    """The paired phone: its socket, what it said last and what it is owed."""

    socket: web.WebSocketResponse
    cameras: int
    sequence: int = -1
    unanswered: bool = False
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.ready = set(range(self.cameras))  # cameras of which it has drawn all that it was sent


class Phone:
    """Serves the page from a thread of its own. A :class:`~onedp_ros.teleop.device.Device`.

    Attributes:
        urls: what to open on the phone.
        code: what to type there, six digits; twelve after :data:`TRIES` wrong ones.
        fingerprint: SHA-256 of the certificate, as browsers show it.
        refused: how often something was refused, by reason (:data:`REFUSALS`).

    Args:
        cameras: whose pictures the page shows, in that order; see :meth:`show_frame`.
        host: address to serve on. 0.0.0.0 is all of this machine's; 127.0.0.1 serves a phone on a cable by ``adb reverse``.
        port: 0 takes a free one.
        code: the code, instead of a random one.
        tell: is called with :attr:`invitation` when the code has changed, from the server's thread.
        certificate_folder: where this machine's certificate is kept, instead of
            :func:`~onedp_ros.teleop.certificate.configuration_folder`.

    Raises:
        ValueError: a code that is not six digits.
        OSError: the port is taken, the host is not this machine's, or the certificate cannot be written.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        host: str = "127.0.0.1",
        port: int = 8443,
        code: str | None = None,
        certificate_folder: Path | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        if code is not None and not re.fullmatch(r"[0-9]{6}", code):
            raise ValueError(f"code is {code!r}, expected six digits")
        self.cameras = tuple(cameras)
        self.code, self._tell = code or _random_digits(DIGITS), tell
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))  # all of them: its size never changes under a reader
        self._logged: dict[str, float] = {}
        self._wrong_codes = 0
        self._token = ""  # lets the phone that was paired last in again
        self._operator: _Operator | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        self._events: deque[str] = deque(maxlen=32)
        self._status = json.dumps({"type": "status"})
        self._frames: dict[int, bytes] = {}
        self._lock = threading.Lock()  # of the three below
        self._command = Command()
        self._heard = -math.inf  # when the newest command came
        self._armed = False  # whether the dead man was let go since the last silence

        certificate = machine_certificate(names(host), certificate_folder or configuration_folder())
        self.fingerprint = certificate.fingerprint
        app = web.Application()
        for path, (file, content_type) in PAGE_FILES.items():
            app.router.add_get(path, self._serve_file((PAGE / file).read_text(encoding="utf-8"), content_type))
        app.router.add_get("/socket", self._connect)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=IDLE_TIME)
        self._loop = asyncio.new_event_loop()
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
        """The newest command; not engaged when the phone is gone or has been silent for too long."""
        with self._lock:
            if clock.now() - self._heard > SILENCE:
                self._armed = False
                return Command()
            return self._command

    def events(self) -> list[str]:
        """What was asked for since the last call, in order."""
        found = []
        with contextlib.suppress(IndexError):  # the server's thread may clear them
            while True:
                found.append(self._events.popleft())
        return found

    def show(self, status: Mapping[str, Any]) -> None:
        """Tell the operator. The page knows ``arm``, ``gripper`` (open, closed), ``recorder`` (idle, recording or another
        word), ``episode``, ``seconds`` (of the recording), ``problem`` (empty when there is none) and ``device``.

        Values are plain; ValueError or TypeError for those that JSON has no word for.
        """
        said = json.dumps({**status, "type": "status"}, allow_nan=False)
        if said != self._status:
            self._status = said
            self._wake()

    def show_frame(self, camera: str, jpeg: bytes) -> None:
        """Show a picture of a camera. The newest one goes out as soon as the phone has drawn the one before.

        ValueError for a camera that is not one of ``cameras``.
        """
        if camera not in self.cameras:
            raise ValueError(f"camera is {camera!r}, expected one of {list(self.cameras)}")
        self._frames[self.cameras.index(camera)] = jpeg
        self._wake()

    def close(self) -> None:
        """Tell the phone, close its connection and the port."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What follows runs in the thread of the server, except _wake.

    def _wake(self) -> None:
        if operator := self._operator:
            self._loop.call_soon_threadsafe(operator.wake.set)

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
                await self._talk(socket)
                log.info("%s has gone", request.remote)
        finally:
            self._sockets.discard(socket)
        return socket

    async def _pair(self, socket: web.WebSocketResponse) -> str:
        """Why the phone at the other end may not drive; empty when it may."""
        try:
            first = await socket.receive(PAIRING_TIME)
            if _gone(first):
                return "no code"
            message = _read(first)
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
        if self._operator:
            return "busy"
        self._token = secrets.token_urlsafe(32)
        return ""

    async def _talk(self, socket: web.WebSocketResponse) -> None:
        previous, operator = self._operator, _Operator(socket, len(self.cameras))
        self._operator = operator
        self._frames.clear()
        self._disengage()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._write(operator))]
        if previous:  # the same phone, whose connection broke without a word
            tasks.append(asyncio.create_task(previous.socket.close(code=REPLACED)))
        try:
            while not _gone(message := await socket.receive()):
                if operator is self._operator:
                    self._take(operator, message)
        finally:
            if operator is self._operator:
                self._operator = None
                self._disengage()
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await task

    def _take(self, operator: _Operator, message: WSMessage) -> None:
        """One message of the phone. What is malformed disengages."""
        try:
            fields = _read(message)
            kind = fields.pop("type", None)
            if kind == "command":
                self._take_command(operator, fields)
            elif kind == "event" and set(fields) == {"name", "time"} and fields["name"] in EVENTS:
                (told,) = _numbers([fields["time"]], 1)
                if (age := clock.now() - told) < 0:
                    raise ValueError("a button of a later time")
                if age > DELAY:
                    self._refuse("late", f"the button {fields['name']} was pressed too long ago; the network stalled")
                else:
                    self._events.append(fields["name"])
            elif kind == "drawn" and set(fields) == {"camera"} and fields["camera"] in range(len(self.cameras)):
                operator.ready.add(fields["camera"])
                operator.wake.set()
            else:
                raise ValueError("a message of no known type or with other fields")
        except ValueError as error:
            self._disengage()
            self._refuse("malformed", str(error))

    def _take_command(self, operator: _Operator, fields: dict[str, Any]) -> None:
        sequence, told, command = read_command(fields)
        with self._lock:
            now = clock.now()
            if sequence <= operator.sequence or told > now:
                raise ValueError("a command of an earlier sequence or a later time")
            operator.sequence = sequence
            if now - self._heard > SILENCE or now - told > DELAY:
                self._armed = False
            self._heard = now
            self._armed = self._armed or not command.engaged
            self._command = dataclasses.replace(command, engaged=command.engaged and self._armed)
        operator.unanswered = True
        operator.wake.set()

    def _disengage(self) -> None:
        with self._lock:
            self._command, self._heard, self._armed = Command(), -math.inf, False
        self._events.clear()

    async def _write(self, operator: _Operator) -> None:
        """All that the phone is told. Nothing queues: what has become old meanwhile is not said."""
        socket, said, said_at = operator.socket, "", -math.inf
        await socket.send_json({"type": "paired", "token": self._token, "cameras": self.cameras, "time": clock.now()})
        while True:
            if self._status != said or clock.now() - said_at >= STATUS_PERIOD:
                said, said_at = self._status, clock.now()
                await socket.send_str(said)
            if operator.unanswered:
                operator.unanswered = False
                answer = {"sequence": operator.sequence, "time": clock.now(), "engaged": self._command.engaged}
                await socket.send_json({"type": "answer", **answer})
            for camera in operator.ready & set(self._frames):
                if (jpeg := self._frames.pop(camera, None)) is not None:  # another connection may have cleared them
                    operator.ready.remove(camera)
                    await socket.send_bytes(bytes([camera]) + jpeg)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(operator.wake.wait(), STATUS_PERIOD)
            operator.wake.clear()


def read_command(fields: Mapping[str, Any]) -> tuple[int, float, Command]:
    """A command's sequence, the newest ``time`` that the phone had been told when it sent it, and what it says.

    ``fields``: ``sequence``, ``time``, ``held`` (bool), ``velocity`` (6), ``position`` (3), ``quaternion`` (4), the latter as in
    :class:`~onedp_ros.teleop.device.Command`. Velocity and position are clipped to their ranges. ValueError for anything else.
    """
    if set(fields) != {"sequence", "time", "held", "velocity", "position", "quaternion"}:
        raise ValueError("a command with other fields")
    if type(fields["sequence"]) is not int or type(fields["held"]) is not bool:
        raise ValueError("a command whose sequence is not an integer or whose held is not a truth value")
    (told,) = _numbers([fields["time"]], 1)
    velocity = [min(max(v, -1.0), 1.0) for v in _numbers(fields["velocity"], 6)]
    position = [min(max(v, -REACH), REACH) for v in _numbers(fields["position"], 3)]
    quaternion = _numbers(fields["quaternion"], 4)
    length = math.hypot(*quaternion)
    if not 0.5 < length < 2.0:
        raise ValueError("a command whose quaternion is not a rotation")
    x, y, z, w = (v / length for v in quaternion)
    vx, vy, vz, wx, wy, wz = velocity
    px, py, pz = position
    return fields["sequence"], told, Command(fields["held"], (vx, vy, vz, wx, wy, wz), (px, py, pz), (x, y, z, w))


def _numbers(values: Any, count: int) -> list[float]:
    try:
        if isinstance(values, list) and len(values) == count and all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return [float(v) for v in values]
    except OverflowError:  # an integer beyond the floats
        pass
    raise ValueError(f"something else in the place of {count} finite numbers")


def _gone(message: WSMessage) -> bool:
    """Whether the other end closed or lost the connection."""
    lost = message.type is WSMsgType.ERROR and not isinstance(message.data, WebSocketError)
    return lost or message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)


def _read(message: WSMessage) -> dict[str, Any]:
    """The object in a text message. ValueError for anything else."""
    if message.type is WSMsgType.ERROR:
        raise ValueError(f"not a websocket message of at most {LARGEST_MESSAGE} bytes")
    if message.type is not WSMsgType.TEXT:
        raise ValueError(f"a message of type {message.type.name}")
    try:
        fields = json.loads(message.data)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(fields, dict):
        raise ValueError("JSON that is not an object")
    return fields


def _same(said: Any, secret: str) -> bool:
    """Whether they are equal, in a time that does not tell how much of it is."""
    return isinstance(said, str) and hmac.compare_digest(said.encode(errors="replace"), secret.encode())


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
