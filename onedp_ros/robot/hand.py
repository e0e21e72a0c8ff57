"""The node's interface to the hand: requested openings in, widths and faults out. No call waits for the hand."""

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
HANG_TIME = 3.0  # s without a heartbeat
COMMAND_TIME = 20.0  # s that a command may take; homing takes about ten
END_TIME = 0.1  # s for the process to end; the hand finishes its command by itself
REQUESTS = {"open": memory.OPEN, "closed": memory.CLOSED}


class Hand:
    """Runs and monitors the process that commands the hand."""

    def __init__(self, address: str, settings: GripperSettings) -> None:
        self._address = address
        self._memory = memory.hand_memory()
        self._latest = self._memory.latest
        self.child = Child("hand_process", self._memory.descriptor, [address, json.dumps(dataclasses.asdict(settings))])
        self._intent, self._state = memory.record("hand", "intent"), memory.record("hand", "state")
        self.intent = GripperIntent(settings)

    def start(self) -> None:
        """Start the process, which connects at once; :meth:`fault` reports failures."""
        self._state["connected"], self._state["moving"], self._state["problem"] = False, False, b""
        self._latest["state"].write(self._state)
        self.child.start()

    def command(self, opening: float) -> None:
        """Request an opening, m; the hand gets a command when the request changes between open and closed."""
        turned = self.intent.update(opening)
        if self.intent.request:
            self._send(REQUESTS[self.intent.request], turned)

    def home(self) -> None:
        """Home the gripper: closes and opens the hand to find the fingers' range."""
        self.intent.request = ""  # the next request is sent, whatever was sent before
        self._intent["homings"] += 1
        self._intent["homing_stamp"] = clock.now_ns()
        self._latest["intent"].write(self._intent)

    def _send(self, request: int, new: bool = True) -> None:
        self._intent["request"], self._intent["stamp"] = request, clock.now_ns()
        self._intent["serial"] += new
        self._latest["intent"].write(self._intent)

    def recover(self) -> None:
        """Restart the process if it has ended. An earlier request is not repeated; the next one is sent."""
        if self.child.ended():
            self.intent.request = ""
            self.start()

    def state(self) -> NDArray[np.void]:
        """The newest state (see ``memory``)."""
        self._latest["state"].read(self._state)
        return self._state

    @property
    def width(self) -> float:
        """Opening, m. It cannot be read during a command, and is then extrapolated from the speed."""
        state = self.state()
        width = float(state["width"])
        if not state["moving"] or self.child.ended():
            return width
        way = float(state["speed"]) * 1e-9 * max(clock.now_ns() - int(state["begin"]), 0)
        goal = float(state["goal"])
        return max(width - way, goal) if goal < width else min(width + way, goal)

    @property
    def problem(self) -> str:
        """What went wrong with the last command; empty if nothing did."""
        return str(self.state()["problem"].item().decode(errors="ignore"))

    def fault(self) -> Fault | None:
        """Why the hand cannot be used, or None. Kills a process that hangs."""
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
            f"no answer from the gripper at {self._address} within {allowed:.0f} s; end any other program that uses it, then call "
            f"~/recover",
            ("gripper_no_answer",),
        )

    def close(self) -> None:
        """End the process."""
        self._send(memory.LEAVE)
        self.child.wait(END_TIME)
        self._memory.close()
