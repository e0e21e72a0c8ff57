"""The hand as its node sees it: requested openings in, widths and faults out. No call waits for it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from numpy.typing import NDArray

from onedp_ros import clock
from onedp_ros.control.gripper import GripperIntent, GripperSettings
from onedp_ros.robot import memory
from onedp_ros.robot.child import Child
from onedp_ros.robot.faults import Fault

CONNECT_TIME = 4.5  # s from its start until the hand's process must be connected
HANG_TIME = 3.0  # s without a sign of life
COMMAND_TIME = 20.0  # s that a command may take; homing takes about ten
END_TIME = 0.1  # s that the process gets to end; what the hand does, it finishes by itself
REQUESTS = {"open": memory.OPEN, "closed": memory.CLOSED}


class Hand:
    """A process that commands the hand, watched."""

    def __init__(self, address: str, settings: GripperSettings) -> None:
        self._address = address
        self._memory = memory.hand_memory()
        self._latest = self._memory.latest
        self.child = Child("hand_process", self._memory.descriptor, [address, json.dumps(dataclasses.asdict(settings))])
        self._intent, self._state = memory.record("hand", "intent"), memory.record("hand", "state")
        self.intent = GripperIntent(settings)

    def start(self) -> None:
        """Start the process, which connects at once. See :meth:`fault` for how that went."""
        self._state["connected"], self._state["moving"], self._state["problem"] = False, False, b""
        self._latest["state"].write(self._state)
        self.child.start()

    def command(self, opening: float) -> None:
        """Take a requested opening, m; the hand is told when it turns from open to closed or back."""
        turned = self.intent.update(opening)
        if self.intent.request:
            self._send(REQUESTS[self.intent.request], turned)

    def home(self) -> None:
        """Find the fingers' range anew: closes and opens the hand."""
        self.intent.request = ""  # the next request is sent, whatever was sent before
        self._intent["homings"] += 1
        self._intent["homing_stamp"] = clock.now_ns()
        self._latest["intent"].write(self._intent)

    def _send(self, request: int, anew: bool = True) -> None:
        self._intent["request"], self._intent["stamp"] = request, clock.now_ns()
        self._intent["serial"] += anew
        self._latest["intent"].write(self._intent)

    def recover(self) -> None:
        """Start an ended process anew. An earlier request is not repeated; the next one is sent."""
        if self.child.ended():
            self.intent.request = ""
            self.start()

    def state(self) -> NDArray[np.void]:
        """The newest state (see ``memory``)."""
        self._latest["state"].read(self._state)
        return self._state

    @property
    def width(self) -> float:
        """Opening, m. While a command is under way the hand cannot be asked: its speed tells."""
        state = self.state()
        width = float(state["width"])
        if not state["moving"] or self.child.ended():
            return width
        way = float(state["speed"]) * 1e-9 * max(clock.now_ns() - int(state["begin"]), 0)
        goal = float(state["goal"])
        return max(width - way, goal) if goal < width else min(width + way, goal)

    @property
    def problem(self) -> str:
        """What was wrong with the last command; empty when nothing was."""
        return str(self.state()["problem"].item().decode(errors="ignore"))

    def fault(self) -> Fault | None:
        """Why the hand cannot be used; None when it can. Ends a process that hangs."""
        if ended := self.child.ended():
            return Fault(
                f"the gripper's process {ended}{f' ({self.problem})' if self.problem else ''}; is a Franka hand mounted and free? "
                f"Then call ~/recover",
                ("gripper_process_died",),
            )
        state = self.state()
        silent = clock.now() - max(float(state["alive"]) * 1e-9, self.child.started)
        allowed = CONNECT_TIME if not state["connected"] else COMMAND_TIME if state["moving"] else HANG_TIME
        if silent <= allowed:
            return None
        self.child.kill()
        return Fault(
            f"no answer from the gripper at {self._address} within {allowed:.0f} s; end what else holds it, then call ~/recover",
            ("gripper_no_answer",),
        )

    def close(self) -> None:
        """End the process."""
        self._send(memory.LEAVE)
        self.child.wait(END_TIME)
        self._memory.close()
