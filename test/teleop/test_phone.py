"""The phone's server, by clients that do what the page does, and what it must not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from browser import CODE, wait_for
from hypothesis import given
from hypothesis import strategies as st

from onedp_ros import clock
from onedp_ros.teleop.devices.base import Command
from onedp_ros.teleop.devices.phone import server
from onedp_ros.teleop.devices.phone.messages import read_command
from onedp_ros.teleop.devices.phone.server import TRIES, Phone
from onedp_ros.teleop.devices.phone.session import DELAY, REPLACED, STATUS_PERIOD

NOTHING = {"velocity": [0.0] * 6, "position": [0.0] * 3, "quaternion": [0.0, 0.0, 0.0, 1.0]}


class Client:
    """A websocket to a phone's server that notes what it is told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.told: list[dict[str, Any]] = []
        self.frames: list[bytes] = []
        self.sequence = 0
        self.time = -1.0
        self.close_code = 0
        self.stuck = False  # whether it goes on telling the time that it knows

    async def listen(self) -> None:
        while (message := await self.socket.receive()).type is not aiohttp.WSMsgType.CLOSED:
            if message.type is aiohttp.WSMsgType.CLOSE:
                self.close_code = message.data
            if message.type is aiohttp.WSMsgType.BINARY:
                self.frames.append(message.data)
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            self.told.append(json.loads(message.data))
            if not self.stuck:
                self.time = self.told[-1].get("time", self.time)

    def newest(self, kind: str) -> dict[str, Any]:
        return next((message for message in reversed(self.told) if message["type"] == kind), {})

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_json({"type": kind, **fields})

    async def pair(self, **credentials: str) -> dict[str, Any]:
        """The answer to a code or token."""
        await self.say("pair", **credentials)
        await self.until(lambda: self.newest("paired") or self.newest("refused"))
        return self.told[0]

    async def command(self, held: bool, /, **fields: Any) -> None:
        self.sequence += 1
        await self.say("command", **{"sequence": self.sequence, "time": self.time, "held": held, **NOTHING, **fields})

    async def until(self, condition: Callable[[], Any], held: bool | None = None) -> None:
        """Wait for a condition, sending commands meanwhile unless ``held`` is None."""
        while not condition():
            if held is not None:
                await self.command(held)
            await asyncio.sleep(0.01)

    async def engage(self, phone: Phone) -> None:
        """Let go and press; again, when this machine was too slow to be believed."""
        while not phone.poll().engaged:
            await self.until(lambda: self.newest("answer").get("sequence") == self.sequence, held=None if self.sequence else False)
            await self.command(False)
            for _ in range(5):
                await self.command(True)
                await asyncio.sleep(0.01)

    async def stay(self, held: bool, commands: int = 30) -> list[bool]:
        """Send that many commands; what the server answered to them, engaged or not."""
        first = self.sequence + 1
        for _ in range(commands):
            await self.command(held)
            await asyncio.sleep(0.01)
        await self.until(lambda: self.newest("answer").get("sequence") == self.sequence)
        return [message["engaged"] for message in self.told if message["type"] == "answer" and message["sequence"] >= first]


@contextlib.asynccontextmanager
async def connected(phone: Phone, folder: Path, origin: str | None = None, **options: Any) -> Any:
    """A client that trusts the machine's certificate and nothing else."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(folder / "certificate.pem")))
    async with aiohttp.ClientSession(connector=connector) as session:
        origin = phone.urls[0].rstrip("/") if origin is None else origin
        async with session.ws_connect(
            f"{phone.urls[0]}socket", headers={"Origin": origin} if origin else {}, **options
        ) as websocket:
            client = Client(websocket)
            listening = asyncio.create_task(client.listen())
            yield client
            listening.cancel()


@pytest.fixture
def talk(certificate_folder: Path) -> Callable[..., Any]:
    """Runs ``conversation(client, …)`` with a client of its own for each phone given."""

    def run(conversation: Callable[..., Coroutine[Any, Any, Any]], *phones: Phone) -> Any:
        async def converse() -> Any:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(phone, certificate_folder)) for phone in phones]
                return await conversation(*clients)

        return asyncio.run(asyncio.wait_for(converse(), 30))

    return run


def answers_of(phone: Phone, talk: Callable[..., Any], **credentials: str) -> dict[str, Any]:
    async def conversation(client: Client) -> dict[str, Any]:
        answer = await client.pair(**credentials)
        if answer["type"] == "refused":
            await client.until(lambda: client.socket.closed)
        return answer

    return talk(conversation, phone)


# ---- who may connect ----


def test_nothing_but_the_page_is_served_without_a_code(phone: Phone, certificate_folder: Path) -> None:
    async def get() -> dict[str, int]:
        trust = ssl.create_default_context(cafile=str(certificate_folder / "certificate.pem"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
            found = {}
            for path in ("", "phone.js", "phone.css", "socket", "index.html", "page/", "%2e%2e/phone.py", "front", "favicon.ico"):
                async with session.get(phone.urls[0] + path) as response:
                    found[path] = response.status
            async with session.post(phone.urls[0], data=b"x" * 100_000) as response:
                found["post"] = response.status
            return found

    found = asyncio.run(get())
    assert {path for path, status in found.items() if status == 200} == {"", "phone.js", "phone.css"}
    assert found["socket"] == 403
    assert found["post"] == 405


def test_who_says_no_code_hears_nothing_and_is_sent_away(
    phone: Phone, talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PAIRING_TIME", 0.3)

    async def conversation(client: Client) -> None:
        phone.show({"arm": "secret"})
        phone.show_frame("front", b"secret")
        await client.until(lambda: client.socket.closed)
        assert [message["type"] for message in client.told] == ["refused"]
        assert not client.frames

    talk(conversation, phone)
    assert phone.refused["no code"] == 1


def test_only_the_code_pairs(phone: Phone, talk: Callable[..., Any]) -> None:
    for wrong in ({"code": "000000"}, {"code": ""}, {"code": CODE + "0"}):
        assert answers_of(phone, talk, **wrong)["reason"] == "wrong code"
    assert phone.refused["wrong code"] == 3
    for wrong in ({"token": ""}, {"token": CODE}):
        assert answers_of(phone, talk, **wrong)["reason"] == "old session"
    paired = answers_of(phone, talk, code=CODE)
    assert paired["cameras"] == ["front", "wrist"]
    assert len(paired["token"]) > 40


@pytest.mark.parametrize("first", [[], {}, {"type": "pair"}, {"type": "pair", "code": 246810}, {"type": "pair", "code": None}, 7])
def test_what_is_not_a_code_does_not_pair(phone: Phone, talk: Callable[..., Any], first: Any) -> None:
    async def conversation(client: Client) -> None:
        await client.socket.send_json(first)
        await client.until(lambda: client.socket.closed)
        assert not client.newest("paired")

    talk(conversation, phone)
    assert sum(phone.refused.values()) == 1


def test_wrong_codes_make_the_code_longer_once_and_never_keep_out_who_knows_it(
    serve: Callable[..., Phone], talk: Callable[..., Any]
) -> None:
    told: list[str] = []
    phone = serve(tell=told.append)
    assert told == [phone.invitation], "whoever starts the server reads it"
    for count in range(TRIES):
        assert len(told) == 1
        answer = answers_of(phone, talk, code="000000")
        assert (answer["reason"], answer["digits"]) == ("wrong code", 12 if count == TRIES - 1 else 6)
    assert answers_of(phone, talk, code=CODE)["reason"] == "wrong code", "the old one is void"
    assert len(phone.code) == 12 and phone.code.isdecimal()
    assert len(told) == 2 and f"{phone.code[:4]} {phone.code[4:8]} {phone.code[8:]}" in told[1]
    code = phone.code
    for guess in range(3 * TRIES):
        assert answers_of(phone, talk, code=f"{guess:012d}")["reason"] == "wrong code"
    assert phone.code == code and len(told) == 2, "who types it is not overtaken by another one"
    assert answers_of(phone, talk, code=code)["type"] == "paired"


def test_the_page_learns_how_long_the_code_is(phone: Phone, talk: Callable[..., Any], certificate_folder: Path) -> None:
    async def get() -> str:
        trust = ssl.create_default_context(cafile=str(certificate_folder / "certificate.pem"))
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector) as session, session.get(phone.urls[0]) as response:
            return await response.text()

    assert 'maxlength="6"' in asyncio.run(get())
    for _ in range(TRIES):
        answers_of(phone, talk, code="000000")
    assert 'maxlength="12"' in asyncio.run(get())


def test_codes_are_random_and_have_six_digits(serve: Callable[..., Phone]) -> None:
    codes = {serve(code=None).code for _ in range(3)}
    assert len(codes) > 1
    assert all(len(code) == 6 and code.isdecimal() for code in codes)
    for code in ("12345", "1234567", "12345a", ""):
        with pytest.raises(ValueError, match="expected six digits"):
            serve(code=code)


@pytest.mark.parametrize("origin", ["", "null", "https://evil.example", "http://127.0.0.1", "https://127.0.0.1"])
def test_pages_of_others_may_not_connect(phone: Phone, certificate_folder: Path, origin: str) -> None:
    async def attempt() -> None:
        async with connected(phone, certificate_folder, origin=origin):
            pass

    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        asyncio.run(attempt())
    assert error.value.status == 403
    assert phone.refused["origin"] == 1


def test_plain_http_is_refused_and_counted(phone: Phone, talk: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    port = int(phone.urls[0].rstrip("/").rsplit(":", 1)[1])
    for said, reason in ((b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n", "plain http"), (b"\x00garbage" * 1000, "handshake")):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert not connection.recv(100).startswith(b"HTTP")
        wait_for(lambda reason=reason: phone.refused[reason], reason)
    assert "plain http" in caplog.text and "https" in caplog.text
    assert answers_of(phone, talk, code=CODE)["type"] == "paired"


def test_there_is_one_operator_at_a_time(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(first: Client, second: Client) -> str:
        token = (await first.pair(code=CODE))["token"]
        assert (await second.pair(code=CODE))["reason"] == "busy"
        await first.engage(phone)
        return str(token)

    token = talk(conversation, phone, phone)
    assert phone.refused["busy"] == 1
    wait_for(lambda: answers_of(phone, talk, code=CODE)["type"] == "paired", "the first phone's end")
    assert answers_of(phone, talk, token=token)["reason"] == "old session", "another phone was paired since"


def test_the_paired_phone_comes_back_by_its_token_even_while_its_old_connection_lingers(
    phone: Phone, talk: Callable[..., Any]
) -> None:
    async def conversation(old: Client, new: Client) -> None:
        token = (await old.pair(code=CODE))["token"]
        await old.engage(phone)
        assert (await new.pair(token=token))["type"] == "paired"
        assert not phone.poll().engaged
        await old.until(lambda: old.socket.closed)
        assert old.close_code == REPLACED
        await new.engage(phone)

    talk(conversation, phone, phone)


# ---- what the phone says ----


def test_commands_arrive(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        fields = {"velocity": [0.5, -2.0, 3.0, 0.0, -0.25, 1], "position": [1.0, -2.0, 1e9], "quaternion": [0.0, 0.0, 0.9, 1.2]}
        while not phone.poll().engaged:
            await client.command(False)
            await client.command(True, **fields)
            await asyncio.sleep(0.01)
        command = phone.poll()
        assert command.velocity == (0.5, -1.0, 1.0, 0.0, -0.25, 1.0)
        assert command.position == (1.0, -2.0, 100.0)
        assert command.quaternion == pytest.approx((0.0, 0.0, 0.6, 0.8))

    assert phone.poll() == Command()
    talk(conversation, phone)
    wait_for(lambda: phone.poll() == Command(), "the end of what a closed connection said")


def test_after_a_silence_the_dead_man_switch_must_be_pressed_anew(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        assert not any(await client.stay(True)), "it was never let go"
        await client.engage(phone)
        await client.until(lambda: not phone.poll().engaged)
        assert not any(await client.stay(True)), "it goes on as if nothing had been"
        await client.engage(phone)

    talk(conversation, phone)


def test_commands_that_are_old_when_they_arrive_do_not_move_the_arm(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        client.stuck = True
        await client.until(lambda: not client.newest("answer")["engaged"], held=True)
        assert not any(await client.stay(False) + await client.stay(True))
        client.stuck = False
        await client.stay(False)
        await client.engage(phone)

    talk(conversation, phone)


@pytest.mark.parametrize("held", [True, False], ids=["held throughout", "let go and pressed meanwhile"])
def test_what_was_sent_while_the_server_stood_still_moves_nothing(phone: Phone, talk: Callable[..., Any], held: bool) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        phone._loop.call_soon_threadsafe(time.sleep, 1.0)  # all that comes meanwhile waits, and then comes at once
        for index in range(60):
            await client.command(held or index > 30)
            await asyncio.sleep(0.01)
        assert not any(await client.stay(True)), "not by what waited, nor by what goes on"
        assert not phone.poll().engaged
        await client.engage(phone)

    talk(conversation, phone)


def test_what_was_said_before_the_machine_was_suspended_moves_nothing(
    phone: Phone, talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        awake = clock.now
        monkeypatch.setattr(clock, "now", lambda: awake() + 3600.0)  # the monotonic clock stood still
        assert not phone.poll().engaged
        assert not any(await client.stay(True)), "it was not let go since"
        await client.engage(phone)

    talk(conversation, phone)


MALFORMED = {
    "not JSON": "{",
    "NaN": json.dumps({"type": "command", "sequence": 99999, "time": 0, "held": True, **NOTHING, "velocity": [math.nan] * 6}),
    "nested": "[" * 3000,
    "not an object": "[]",
    "no type": "{}",
    "another type": '{"type":"shutdown"}',
    "another event": '{"type":"event","name":"explode"}',
    "an event that is a list": '{"type":"event","name":["home"]}',
    "an event with more": '{"type":"event","name":"home","time":0,"now":true}',
    "an event without a time": '{"type":"event","name":"home"}',
    "an event of a time to come": json.dumps({"type": "event", "name": "home", "time": clock.now() + 1e6}),
    "a camera that is none": '{"type":"drawn","camera":2}',
    "a second code": json.dumps({"type": "pair", "code": CODE}),
    "no text": b"\x00\x01",
    "a repeated sequence": {"sequence": 1},
    "a sequence that is a number": {"sequence": 1e9},
    "a sequence that is true": {"sequence": True},
    "a time to come": {"time": clock.now() + 1e6},
    "held that is a number": {"held": 1},
    "a short velocity": {"velocity": [0.0] * 5},
    "a velocity of words": {"velocity": ["0"] * 6},
    "a huge velocity": {"velocity": [10**400, 0, 0, 0, 0, 0]},
    "no velocity": {"velocity": None},
    "a position that is true": {"position": [True, 0, 0]},
    "an infinite position": {"position": [math.inf, 0, 0]},
    "no rotation": {"quaternion": [0.0] * 4},
    "one field more": {"speed": 1.0},
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_counted_and_disengages(phone: Phone, talk: Callable[..., Any], message: Any) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        if isinstance(message, dict):
            await client.command(True, **message)
        elif isinstance(message, bytes):
            await client.socket.send_bytes(message)
        else:
            await client.socket.send_str(message)
        answers = await client.stay(True)
        assert not answers[-1], "it must be pressed anew"
        assert phone.refused["malformed"] == 1
        assert phone.events() == []
        await client.engage(phone)

    talk(conversation, phone)


@pytest.mark.parametrize("paired", [False, True])
def test_a_megabyte_of_garbage_closes_the_connection_and_nothing_else(phone: Phone, talk: Callable[..., Any], paired: bool) -> None:
    async def conversation(client: Client) -> None:
        if paired:
            await client.pair(code=CODE)
            await client.engage(phone)
        with contextlib.suppress(ConnectionError):
            await client.socket.send_str("x" * 1_000_000)
        await client.until(lambda: client.socket.closed)

    talk(conversation, phone)
    wait_for(lambda: phone.refused["malformed"] == 1, "the refusal")
    wait_for(lambda: not phone.poll().engaged, "the end of the motion")
    wait_for(lambda: answers_of(phone, talk, code=CODE)["type"] == "paired", "the end of the first connection")


def test_a_lost_connection_is_no_refusal(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        transport = client.socket._response.connection.transport
        transport.abort()

    talk(conversation, phone)
    wait_for(lambda: not phone.poll().engaged, "the end of the motion")
    wait_for(lambda: answers_of(phone, talk, code=CODE)["type"] == "paired", "the end of the first connection")
    assert sum(phone.refused.values()) == phone.refused["busy"]


def test_a_phone_that_died_makes_room_for_another(
    phone: Phone, talk: Callable[..., Any], certificate_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEARTBEAT", 0.5)

    async def conversation(living: Client) -> None:
        async with connected(phone, certificate_folder, autoping=False) as dead:
            await dead.pair(code=CODE)
            await dead.until(lambda: dead.socket.closed)
            assert (await living.pair(code=CODE))["type"] == "paired"

    talk(conversation, phone)
    assert sum(phone.refused.values()) == 0


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
json_values = scalars | st.lists(scalars, max_size=7) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
fields = st.fixed_dictionaries(
    {
        "sequence": st.integers(0) | json_values,
        "time": st.floats() | json_values,
        "held": st.booleans() | json_values,
        "velocity": st.lists(st.floats(), min_size=6, max_size=6) | json_values,
        "position": st.lists(st.floats(), min_size=3, max_size=3) | json_values,
        "quaternion": st.lists(st.floats(-1, 1), min_size=4, max_size=4) | json_values,
    }
)


@given(fields)
def test_whatever_a_command_holds_it_is_refused_or_sound(fields: dict[str, Any]) -> None:
    try:
        sequence, told, command = read_command(fields)
    except ValueError:
        return
    assert type(sequence) is int and math.isfinite(told) and type(command.engaged) is bool
    assert all(-1 <= v <= 1 for v in command.velocity)
    assert all(-100 <= v <= 100 for v in command.position)
    assert math.hypot(*command.quaternion) == pytest.approx(1.0)


def test_events_arrive_once_and_in_order(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        for name in ("start", "gripper", "gripper", "stop"):
            await client.say("event", name=name, time=client.time)
        heard: list[str] = []
        await client.until(lambda: heard.extend(phone.events()) or len(heard) == 4)
        assert heard == ["start", "gripper", "gripper", "stop"]

    talk(conversation, phone)
    assert phone.events() == []


def test_a_button_that_the_network_held_back_does_nothing(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.say("event", name="discard", time=client.time - 2 * DELAY)
        await client.until(lambda: phone.refused["late"] == 1)
        assert phone.events() == []
        await client.say("event", name="start", time=client.time)
        await client.until(lambda: phone.session._events)

    talk(conversation, phone)
    wait_for(lambda: phone.session.connection is None, "the end of the connection")
    assert phone.events() == [], "nobody is there any more who meant it"


# ---- what the phone is told ----


def test_the_status_is_told_when_it_changes_and_again_and_again(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        phone.show({"arm": "ready", "seconds": 1.5, "problem": ""})
        await client.until(lambda: client.newest("status").get("arm") == "ready")
        assert client.newest("status") == {"type": "status", "arm": "ready", "seconds": 1.5, "problem": ""}
        count = len(client.told)
        await client.until(lambda: len(client.told) > count + 2)
        phone.show({"arm": "holds"})
        await client.until(lambda: client.newest("status").get("arm") == "holds")

    assert STATUS_PERIOD <= 0.5
    talk(conversation, phone)
    with pytest.raises(ValueError, match="JSON"):
        phone.show({"seconds": math.nan})


def test_pictures_are_dropped_rather_than_queued(phone: Phone, talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        phone.show_frame("front", b"before anybody looked")
        await client.pair(code=CODE)
        for number in range(5):
            phone.show_frame("front", b"%d" % number)
            phone.show_frame("wrist", b"%d" % number)
            await client.until(lambda: len(client.frames) >= 2)
        count = len(client.told)
        await client.until(lambda: len(client.told) > count + 1)  # statuses pass by
        assert sorted(frame[0] for frame in client.frames) == [0, 1], "one of each camera, until it is drawn"
        await client.say("drawn", camera=1)
        await client.until(lambda: len(client.frames) == 3)
        assert client.frames[2] == b"\x014", "then the newest"

    talk(conversation, phone)
    with pytest.raises(ValueError, match="'side', expected one of"):
        phone.show_frame("side", b"")


# ---- the server itself ----


def test_the_invitation_says_where_the_code_and_whose_certificate(phone: Phone) -> None:
    port = int(phone.urls[0].rstrip("/").rsplit(":", 1)[1])
    assert phone.urls == [f"https://127.0.0.1:{port}/"]
    served = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))
    fingerprint = hashlib.sha256(served).hexdigest()
    assert phone.fingerprint.replace(":", "").lower() == fingerprint
    assert all(text in phone.invitation for text in (phone.urls[0], CODE, phone.fingerprint))


def test_it_is_served_on_this_machine_alone_unless_told_otherwise(serve: Callable[..., Phone]) -> None:
    port = int(serve().urls[0].rstrip("/").rsplit(":", 1)[1])
    others = [url for url in serve(host="0.0.0.0").urls if "127.0.0.1" not in url]
    if not others:
        pytest.skip("this machine has no address but loopback")
    address = others[0].removeprefix("https://").rsplit(":", 1)[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, port), timeout=5).close()


def test_a_taken_port_is_an_error_that_names_it(phone: Phone, serve: Callable[..., Phone]) -> None:
    port = int(phone.urls[0].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=rf"cannot serve the phone on 127.0.0.1:{port}.*address already in use.*choose another"):
        serve(port=port)
    with pytest.raises(OSError, match=r"203.0.113.1:0"):
        serve(host="203.0.113.1")


def test_closing_says_goodbye_and_frees_the_port(phone: Phone, serve: Callable[..., Phone], talk: Callable[..., Any]) -> None:
    async def conversation(client: Client) -> None:
        await client.pair(code=CODE)
        await client.engage(phone)
        await asyncio.to_thread(phone.close)
        await client.until(lambda: client.socket.closed)
        assert client.close_code == aiohttp.WSCloseCode.GOING_AWAY

    port = int(phone.urls[0].rstrip("/").rsplit(":", 1)[1])
    talk(conversation, phone)
    assert phone.poll() == Command()
    phone.show({"arm": "off"})
    phone.close()
    assert serve(port=port).urls == phone.urls
