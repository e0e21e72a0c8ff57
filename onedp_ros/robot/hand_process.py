"""The hand's process: pylibfranka's gripper commands take up to a second each and hold the interpreter's lock all the while.

``python -m onedp_ros.robot.hand_process DESCRIPTOR PARENT ADDRESS SETTINGS``, started by :class:`onedp_ros.robot.hand.Hand`. A
command cannot be cut short; when it has ended, the newest wish is obeyed, and those in between are forgotten. A wish that was
not had for a while waits until somebody has it again: this process may have been stopped in between.
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

LATE = 1_500_000_000  # ns since it was wished: a command takes about a second, and what is wished meanwhile waits for its end


class HandProcess:
    """Obeys the newest wish and tells the width."""

    def __init__(self, descriptor: int, parent: int, address: str, settings: GripperSettings) -> None:
        self._latest = memory.hand_memory(descriptor).latest
        self._settings, self._parent = settings, parent
        self._said = memory.record("hand", "state")
        self._address = address

    def run(self) -> None:
        """Until told to leave, or until the parent has died."""
        self._gripper = franka.Gripper(self._address)
        _, obeyed, _, homings, _ = self._latest["intent"].unpack()
        self._look()
        while os.getppid() == self._parent:
            wish, serial, wished_at, asked, asked_at = self._latest["intent"].unpack()
            if wish == memory.LEAVE:
                return
            if asked != homings:
                homings = asked
                if self._fresh(asked_at):
                    self._obey(None)
                else:
                    self._said["problem"] = b"homing was not begun: the gripper's process stood still; call ~/home_gripper again"
            elif serial != obeyed and self._fresh(wished_at):
                obeyed = serial
                self._obey(wish)
            self._look()

    def _fresh(self, stamp: int) -> bool:
        return clock.now_ns() - stamp < LATE

    def _look(self) -> None:
        state = self._gripper.read_once()
        said = self._said
        said["connected"], said["moving"] = True, False
        said["width"], said["grasped"] = state.width, state.is_grasped
        self._say()

    def _obey(self, wish: int | None) -> None:
        """Do what is wished, or find the fingers' range."""
        s, said = self._settings, self._said
        said["moving"], said["begin"], said["speed"] = True, clock.now_ns(), s.speed
        said["goal"] = 0.0 if wish == memory.CLOSED else s.width
        self._say()
        problem = ""
        try:
            if wish == memory.CLOSED:
                half = 0.5 * s.width  # anything between nothing and the whole width is an object
                if not self._gripper.grasp(half, s.speed, s.force, half - s.nothing, half):
                    problem = "the grasp closed on nothing; open and close again"
            elif wish == memory.OPEN:
                if not self._gripper.move(s.width, s.speed):
                    problem = f"the hand did not open to {s.width} m; is something in its way?"
            elif not self._gripper.homing():
                problem = "homing failed; are the fingers free?"
        except franka.CommandException as error:
            problem = f"the hand refused: {error}; call ~/home_gripper with free fingers"
        said["done"] += 1
        said["failed"] += bool(problem)
        said["problem"] = problem.encode()[:300]

    def say_last(self, problem: str) -> None:
        """Why the process ends."""
        self._said["connected"], self._said["problem"] = False, problem.encode()[:300]
        self._say()

    def _say(self) -> None:
        self._said["alive"] = clock.now_ns()
        self._latest["state"].write(self._said)


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent says when to end, or dies
    process = HandProcess(int(argv[0]), int(argv[1]), argv[2], GripperSettings(**json.loads(argv[3])))
    try:
        process.run()
    except franka.NetworkException as error:
        process.say_last(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
