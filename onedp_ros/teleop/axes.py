"""Joysticks: axes and buttons by number -> commands. For sensor_msgs/Joy, and for a SpaceMouse that is read directly."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onedp_ros.config import read_yaml
from onedp_ros.ranges import Range
from onedp_ros.teleop.device import EVENTS, SILENCE, Command
from onedp_ros.teleop.session import AXES

DEADBAND = 0.06  # share of an axis that is rest
INDEX = Range(0, 63, "", "no device has more axes or buttons")
SIGN = Range(-1, 1, "", "the sign is a direction; the speeds are those of the section motion")
DEAD_MAN = Range(-1, 63, "", "the number of a button, or -1 for a device that springs back")


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """``axes``: name of :data:`AXES` -> index and sign; ``buttons``: event -> index; ``dead_man``: index of the button to be held,
    or -1 for a device that springs back, where deflection is the dead man."""

    axes: Mapping[str, tuple[int, float]]
    buttons: Mapping[str, int]
    dead_man: int

    def __post_init__(self) -> None:
        if unknown := sorted({*self.axes} - {*AXES}) or sorted({*self.buttons} - {*EVENTS}):
            raise ValueError(f"{unknown} are neither axes ({', '.join(AXES)}) nor events ({', '.join(EVENTS)})")

    @classmethod
    def from_yaml(cls, path: str | Path, device: str) -> AxisMap:
        """A section of ``config/teleop.yaml``. ValueError names file and field."""
        try:
            data = read_yaml(path)[device]
            axes = {
                name: (int(INDEX.check(f"axes.{name}", index)), SIGN.check(f"axes.{name}", sign))
                for name, (index, sign) in data["axes"].items()
            }
            buttons = {name: int(INDEX.check(f"buttons.{name}", index)) for name, index in data["buttons"].items()}
            return cls(axes, buttons, int(DEAD_MAN.check("dead_man", data["dead_man"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}, section {device}: {error}; see config/teleop.yaml for a complete one") from error


class AxesDevice:
    """A device that reports all of its axes and buttons by :meth:`feed`, at least ten times a second."""

    def __init__(self, mapping: AxisMap) -> None:
        self._map = mapping
        self._command, self._heard = Command(), float("-inf")
        self._down: set[str] = set()
        self._events: list[str] = []
        self.refused = 0

    def feed(self, axes: Sequence[float], buttons: Sequence[int]) -> None:
        """Axes, each -1 to 1, and buttons, 0 or 1. A report with NaN or without an axis that is mapped is refused, and lets go."""
        try:
            values = {name: sign * axes[index] for name, (index, sign) in self._map.axes.items()}
            down = {event for event, index in self._map.buttons.items() if buttons[index]}
            held = self._map.dead_man < 0 or bool(buttons[self._map.dead_man])
        except IndexError:
            values, down, held = {"x": math.nan}, set(), False
        if not all(map(math.isfinite, values.values())):
            self.refused += 1
            self._command = Command()
            return
        x, y, z, roll, pitch, yaw = (_live(values.get(name, 0.0)) for name in AXES)
        moved = any((x, y, z, roll, pitch, yaw))
        self._events += [event for event in EVENTS if event in down - self._down]
        self._down = down
        self._command = Command(held and (moved or self._map.dead_man >= 0), (x, y, z, roll, pitch, yaw))
        self._heard = time.monotonic()

    def poll(self) -> Command:
        return self._command if time.monotonic() - self._heard < SILENCE else Command()

    def events(self) -> list[str]:
        events, self._events = self._events, []
        return events

    def show(self, status: Mapping[str, Any]) -> None:
        pass  # it has no display

    def close(self) -> None:
        pass


def _live(value: float) -> float:
    """An axis without its deadband, -1 to 1."""
    size = min(abs(value), 1.0)
    return math.copysign((size - DEADBAND) / (1.0 - DEADBAND), value) if size > DEADBAND else 0.0
