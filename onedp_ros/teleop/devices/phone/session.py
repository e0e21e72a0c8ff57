"""What a paired phone sends and is sent, over one websocket after the other.

The phone is not trusted to be punctual: a message of it counts for :data:`~onedp_ros.teleop.devices.base.SILENCE`, must answer
what it was sent within :data:`DELAY`, and after either was missed the dead-man switch has to be let go and pressed anew. So a page,
a phone, a network or this machine that slept moves nothing with what was meant before. Times are of :mod:`onedp_ros.clock`.

Messages are JSON objects with a ``type``. The phone sends ``pair`` (``code`` or ``token``) first, then ``command`` (see
:func:`.messages.read_command`), ``event`` (``name``, ``time``) and ``drawn`` (``camera``: index of the picture that it has shown).
It is sent ``paired`` or ``refused``, then ``answer`` (to commands: ``sequence``, ``time``, ``engaged``) and ``status``; a binary
message is a camera's index, one byte, and a JPEG.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import WSMessage, web

from onedp_ros import clock
from onedp_ros.teleop.devices.base import EVENTS, SILENCE, Command
from onedp_ros.teleop.devices.phone.messages import is_gone, read_command, read_numbers, read_object

DELAY = 0.3  # s: what was sent when the phone had heard nothing newer than this is too old, a command to move the arm, or a button
STATUS_PERIOD = 0.4  # s between statuses that did not change
REPLACED = 4000  # websocket close code: the same phone connected anew


@dataclasses.dataclass(eq=False)
class Connection:
    """The paired phone's websocket, what came last over it and what is to go."""

    socket: web.WebSocketResponse
    cameras: int
    sequence: int = -1
    unanswered: bool = False
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.ready = set(range(self.cameras))  # cameras of which it has drawn all that it was sent


class PhoneSession:
    """The operator's commands and events, and what the operator is shown.

    Args:
        cameras: whose pictures the page shows, in that order.
        loop: of the server, whose thread runs :meth:`talk`. All other methods are for any thread.
        refuse: is called with a reason and a detail when something is refused.

    Attributes:
        connection: of the phone that drives; None while there is none.
    """

    def __init__(self, cameras: Sequence[str], loop: asyncio.AbstractEventLoop, refuse: Callable[[str, str], None]) -> None:
        self.cameras, self._loop, self._refuse = tuple(cameras), loop, refuse
        self.connection: Connection | None = None
        self._events: deque[str] = deque(maxlen=32)
        self._status = json.dumps({"type": "status"})
        self._frames: dict[int, bytes] = {}
        self._lock = threading.Lock()  # of the three below
        self._command = Command()
        self._heard = -math.inf  # when the newest command came
        self._armed = False  # whether the dead-man switch was let go since the last silence

    def poll(self) -> Command:
        """The newest command; not engaged when the phone is gone or has been silent for too long."""
        with self._lock:
            if clock.now() - self._heard > SILENCE:
                self._armed = False
                return Command()
            return self._command

    def events(self) -> list[str]:
        """What was requested since the last call, in order."""
        found = []
        with contextlib.suppress(IndexError):  # the server's thread may clear them
            while True:
                found.append(self._events.popleft())
        return found

    def show(self, status: Mapping[str, Any]) -> None:
        """Show the operator a status. ValueError or TypeError for values that JSON has no word for."""
        text = json.dumps({**status, "type": "status"}, allow_nan=False)
        if text != self._status:
            self._status = text
            self._wake()

    def show_frame(self, camera: str, jpeg: bytes) -> None:
        """Show a picture of a camera. The newest one goes out as soon as the phone has drawn the one before.

        ValueError for a camera that is not one of ``cameras``.
        """
        if camera not in self.cameras:
            raise ValueError(f"camera is {camera!r}, expected one of {list(self.cameras)}")
        self._frames[self.cameras.index(camera)] = jpeg
        self._wake()

    def _wake(self) -> None:
        if connection := self.connection:
            self._loop.call_soon_threadsafe(connection.wake.set)

    # What follows runs in the thread of the server.

    async def talk(self, socket: web.WebSocketResponse, token: str) -> None:
        """Serve a phone that was paired, in place of one that was before, until it is gone. ``token`` lets it in again."""
        previous, connection = self.connection, Connection(socket, len(self.cameras))
        self.connection = connection
        self._frames.clear()
        self._disengage()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._write(connection, token))]
        if previous:  # the same phone, whose connection broke without a word
            tasks.append(asyncio.create_task(previous.socket.close(code=REPLACED)))
        try:
            while not is_gone(message := await socket.receive()):
                if connection is self.connection:
                    self._take(connection, message)
        finally:
            if connection is self.connection:
                self.connection = None
                self._disengage()
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await task

    def _take(self, connection: Connection, message: WSMessage) -> None:
        """One message of the phone. What is malformed disengages."""
        try:
            fields = read_object(message)
            kind = fields.pop("type", None)
            if kind == "command":
                self._take_command(connection, fields)
            elif kind == "event" and set(fields) == {"name", "time"} and fields["name"] in EVENTS:
                (told,) = read_numbers([fields["time"]], 1)
                if (age := clock.now() - told) < 0:
                    raise ValueError("a button of a later time")
                if age > DELAY:
                    self._refuse("late", f"the button {fields['name']} was pressed too long ago; the network stalled")
                else:
                    self._events.append(fields["name"])
            elif kind == "drawn" and set(fields) == {"camera"} and fields["camera"] in range(len(self.cameras)):
                connection.ready.add(fields["camera"])
                connection.wake.set()
            else:
                raise ValueError("a message of no known type or with other fields")
        except ValueError as error:
            self._disengage()
            self._refuse("malformed", str(error))

    def _take_command(self, connection: Connection, fields: dict[str, Any]) -> None:
        sequence, told, command = read_command(fields)
        with self._lock:
            now = clock.now()
            if sequence <= connection.sequence or told > now:
                raise ValueError("a command of an earlier sequence or a later time")
            connection.sequence = sequence
            if now - self._heard > SILENCE or now - told > DELAY:
                self._armed = False
            self._heard = now
            self._armed = self._armed or not command.engaged
            self._command = dataclasses.replace(command, engaged=command.engaged and self._armed)
        connection.unanswered = True
        connection.wake.set()

    def _disengage(self) -> None:
        with self._lock:
            self._command, self._heard, self._armed = Command(), -math.inf, False
        self._events.clear()

    async def _write(self, connection: Connection, token: str) -> None:
        """Send the phone all that it is to know. Nothing queues: what has become old meanwhile is not sent."""
        socket, sent, sent_at = connection.socket, "", -math.inf
        await socket.send_json({"type": "paired", "token": token, "cameras": self.cameras, "time": clock.now()})
        while True:
            if self._status != sent or clock.now() - sent_at >= STATUS_PERIOD:
                sent, sent_at = self._status, clock.now()
                await socket.send_str(sent)
            if connection.unanswered:
                connection.unanswered = False
                answer = {"sequence": connection.sequence, "time": clock.now(), "engaged": self._command.engaged}
                await socket.send_json({"type": "answer", **answer})
            for camera in connection.ready & set(self._frames):
                if (jpeg := self._frames.pop(camera, None)) is not None:  # another connection may have cleared them
                    connection.ready.remove(camera)
                    await socket.send_bytes(bytes([camera]) + jpeg)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.wake.wait(), STATUS_PERIOD)
            connection.wake.clear()
