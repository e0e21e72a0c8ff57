"""The terminal's keyboard. A held key repeats itself, and each repetition is good for 0.1 s: letting go is stopping."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Mapping
from typing import Any

from onedp_ros.teleop.devices.base import SILENCE, Command, Device, Setup

MOVES = {  # key -> fractions of velocity along x, y, z and about x, y, z
    "w": (1, 0, 0, 0, 0, 0),
    "s": (-1, 0, 0, 0, 0, 0),
    "a": (0, 1, 0, 0, 0, 0),
    "d": (0, -1, 0, 0, 0, 0),
    "r": (0, 0, 1, 0, 0, 0),
    "f": (0, 0, -1, 0, 0, 0),
    "q": (0, 0, 0, 0, 0, 1),
    "e": (0, 0, 0, 0, 0, -1),
    "u": (0, 0, 0, 1, 0, 0),
    "o": (0, 0, 0, -1, 0, 0),
    "i": (0, 0, 0, 0, 1, 0),
    "k": (0, 0, 0, 0, -1, 0),
}
HOME = "h"
EVENT_KEYS = {" ": "gripper", "1": "start", "2": "stop", "3": "fail", "4": "discard"}
SPEEDS = {"-": 0.5, "+": 2.0, "=": 2.0}  # keys that change the fraction of the speeds
HELP = """\
w s ahead, back   a d left, right   r f up, down   q e turn   u o roll   i k pitch   h home (hold)
space gripper     - + slower, faster     1 record   2 stop, a success   3 stop, a failure   4 discard
A key moves the arm for as long as it is held. Ctrl-C ends."""


class Keyboard(Device):
    """Reads keys from a terminal. RuntimeError when ``file`` (default: standard input) is none."""

    uses_terminal = True

    def __init__(self, setup: Setup, file: int | None = None) -> None:
        self._file = sys.stdin.fileno() if file is None else file
        if not os.isatty(self._file):
            raise RuntimeError(
                "the keyboard needs a terminal, and ros2 launch gives its nodes none; start the node in a terminal of its own: "
                "ros2 run onedp_ros teleop_node --ros-args -p device:=keyboard -p robot:=franka -p speed:=0.1 "
                "(robot and speed as you gave them to launch)"
            )
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)  # keys at once, unseen; Ctrl-C stays what it is
        self._speed = 1.0
        self._heard: dict[str, float] = {}
        self._events: list[str] = []
        self._line = ""
        print(HELP, flush=True)

    def _read(self) -> None:
        now = time.monotonic()
        while select.select([self._file], [], [], 0)[0]:
            data = os.read(self._file, 256)
            if not data:  # the terminal is gone
                self._heard.clear()
                return
            for key in data.decode(errors="ignore"):
                if key in MOVES or key == HOME:
                    self._heard[key] = now
                    self._events += ["home"] if key == HOME else []
                elif key in SPEEDS:
                    self._speed = min(max(self._speed * SPEEDS[key], 1 / 16), 1.0)
                elif key in EVENT_KEYS:
                    self._events.append(EVENT_KEYS[key])

    def poll(self) -> Command:
        self._read()
        now = time.monotonic()
        held = [key for key, heard in self._heard.items() if now - heard < SILENCE]
        fractions = [sum(axis) for axis in zip(*(MOVES[key] for key in held if key != HOME), strict=True)] or [0] * 6
        x, y, z, roll, pitch, yaw = (self._speed * max(-1, min(1, fraction)) for fraction in fractions)
        return Command(bool(held), (x, y, z, roll, pitch, yaw))

    def events(self) -> list[str]:
        self._read()
        events, self._events = self._events, []
        return events

    def show(self, status: Mapping[str, Any]) -> None:
        """One line at the bottom of the terminal."""
        line = "  ".join(f"{name} {value}" for name, value in status.items() if value != "")[:110]
        if line != self._line:
            self._line = line
            print(f"\r\033[K{line}", end="", flush=True)

    def close(self) -> None:
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)


DEVICE = Keyboard
