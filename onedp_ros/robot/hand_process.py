"""The hand's process: each of pylibfranka's gripper commands takes up to a second and holds the GIL meanwhile.

``python -m onedp_ros.robot.hand_process DESCRIPTOR PARENT ADDRESS SETTINGS``, started by :class:`onedp_ros.robot.hand.Hand`. A
command cannot be interrupted; when it ends, the newest request is executed, and those in between are dropped. A stale request is
not executed until it is repeated: this process may have been suspended in between.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pylibfranka as franka

from onedp_ros import clock
from onedp_ros.control.gripper import GripperSettings
from onedp_ros.robot import memory

LATE = 1_500_000_000  # ns after which a request is stale: a command takes about a second, and requests wait for its end


class HandProcess:
    """Executes the newest request and reports the width."""

    def __init__(self, descriptor: int, parent: int, address: str, settings: GripperSettings) -> None:
        self._latest = memory.hand_memory(descriptor).latest
        self._settings, self._parent = settings, parent
        self._state = memory.record("hand", "state")
        self._address = address

    def run(self) -> None:
        """Run until asked to leave, or until the parent has died."""
        self._gripper = franka.Gripper(self._address)
        _, executed, _, homings, _ = self._latest["intent"].unpack()
        self._read_state()
        while os.getppid() == self._parent:
            request, serial, requested_at, asked, asked_at = self._latest["intent"].unpack()
            if request == memory.LEAVE:
                return
            if asked != homings:
                homings = asked
                if self._fresh(asked_at):
                    self._execute(None)
                else:
                    self._state["problem"] = b"homing was not started: the gripper's process was paused; call ~/home_gripper again"
            elif serial != executed and self._fresh(requested_at):
                executed = serial
                self._execute(request)
            self._read_state()

    def _fresh(self, stamp: int) -> bool:
        return clock.now_ns() - stamp < LATE

    def _read_state(self) -> None:
        state = self._gripper.read_once()
        record = self._state
        record["connected"], record["moving"] = True, False
        record["width"], record["grasped"] = state.width, state.is_grasped
        self._report()

    def _execute(self, request: int | None) -> None:
        """Execute a request; None: homing."""
        s, record = self._settings, self._state
        record["moving"], record["begin"], record["speed"] = True, clock.now_ns(), s.speed
        record["goal"] = 0.0 if request == memory.CLOSED else s.width
        self._report()
        problem = ""
        try:
            if request == memory.CLOSED:
                half = 0.5 * s.width  # anything wider than the empty width is an object
                if not self._gripper.grasp(half, s.speed, s.force, half - s.empty_width, half):
                    problem = "the grasp closed on nothing; open and close again"
            elif request == memory.OPEN:
                if not self._gripper.move(s.width, s.speed):
                    problem = f"the hand did not open to {s.width} m; is something in its way?"
            elif not self._gripper.homing():
                problem = "homing failed; are the fingers free?"
        except franka.CommandException as error:
            problem = f"the hand refused: {error}; call ~/home_gripper with free fingers"
        record["done"] += 1
        record["failed"] += bool(problem)
        record["problem"] = problem.encode()[:300]

    def report_last(self, problem: str) -> None:
        """Report why the process ends."""
        self._state["connected"], self._state["problem"] = False, problem.encode()[:300]
        self._report()

    def _report(self) -> None:
        self._state["alive"] = clock.now_ns()
        self._latest["state"].write(self._state)


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # ends when the parent requests it or dies
    process = HandProcess(int(argv[0]), int(argv[1]), argv[2], GripperSettings(**json.loads(argv[3])))
    try:
        process.run()
    except franka.NetworkException as error:
        process.report_last(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
