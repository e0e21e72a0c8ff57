"""Joysticks: axes and buttons by number -> commands. What the devices have in common that report those."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onedp_ros.settings import Range
from onedp_ros.teleop.devices.base import AXES, EVENTS, SILENCE, Command, Device, Setup

DEADBAND = 0.06  # fraction of an axis that is rest
INDEX = Range(0, 63, "", "no device has more axes or buttons")
SIGN = Range(-1, 1, "", "the sign is a direction; the speeds are those of the section motion")
SWITCH = Range(-1, 63, "", "the number of a button, or -1 for a device that springs back")
FIELDS = ("axes", "dead_man_switch", "buttons")


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """``axes``: name of :data:`AXES` -> index and sign; ``buttons``: event -> index; ``dead_man_switch``: index of the button to be
    held, or -1 for a device that springs back, where deflection is the dead-man switch."""

    axes: Mapping[str, tuple[int, float]]
    buttons: Mapping[str, int]
    dead_man_switch: int

    def __post_init__(self) -> None:
        if unknown := sorted({*self.axes} - {*AXES}) or sorted({*self.buttons} - {*EVENTS}):
            raise ValueError(f"{unknown} are neither axes ({', '.join(AXES)}) nor events ({', '.join(EVENTS)})")

    @classmethod
    def from_dict(cls, data: Any) -> AxisMap:
        """Plain data, as in ``config/teleop.yaml``, -> map. ValueError names the field."""
        if not isinstance(data, Mapping):
            raise ValueError(f"expected the fields {', '.join(FIELDS)}")
        if "dead_man" in data:
            raise ValueError("dead_man is called dead_man_switch now; rename the field")
        if set(data) != set(FIELDS):
            raise ValueError(f"its fields are {', '.join(sorted(data)) or 'none'}, expected {', '.join(FIELDS)}")
        try:
            axes = {
                name: (int(INDEX.check(f"axes.{name}", index)), SIGN.check(f"axes.{name}", sign))
                for name, (index, sign) in data["axes"].items()
            }
            buttons = {name: int(INDEX.check(f"buttons.{name}", index)) for name, index in data["buttons"].items()}
            return cls(axes, buttons, int(SWITCH.check("dead_man_switch", data["dead_man_switch"])))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"axes and buttons are no maps of names ({error})") from error


class Joystick(Device):
    """A device that reports all of its axes and buttons by :meth:`feed`, at least ten times a second."""

    def __init__(self, setup: Setup) -> None:
        self._map: AxisMap = setup.settings
        self._command, self._heard = Command(), float("-inf")
        self._down: set[str] = set()
        self._events: list[str] = []
        self.refused: Counter[str] = Counter()

    @classmethod
    def parse_settings(cls, section: Any) -> AxisMap:
        return AxisMap.from_dict(section)

    def feed(self, axes: Sequence[float], buttons: Sequence[int]) -> None:
        """Axes, each -1 to 1, and buttons, 0 or 1. A report with NaN or without an axis that is mapped is refused, and lets go."""
        switch = self._map.dead_man_switch
        try:
            values = {name: sign * axes[index] for name, (index, sign) in self._map.axes.items()}
            down = {event for event, index in self._map.buttons.items() if buttons[index]}
            held = switch < 0 or bool(buttons[switch])
        except IndexError:
            values, down, held = {"x": math.nan}, set(), False
        if not all(map(math.isfinite, values.values())):
            self.refused["reports of the device"] += 1
            self._command = Command()
            return
        x, y, z, roll, pitch, yaw = (_deflection(values.get(name, 0.0)) for name in AXES)
        moved = any((x, y, z, roll, pitch, yaw))
        self._events += [event for event in EVENTS if event in down - self._down]
        self._down = down
        self._command = Command(held and (moved or switch >= 0), (x, y, z, roll, pitch, yaw))
        self._heard = time.monotonic()

    def poll(self) -> Command:
        return self._command if time.monotonic() - self._heard < SILENCE else Command()

    def events(self) -> list[str]:
        events, self._events = self._events, []
        return events


def _deflection(value: float) -> float:
    """An axis without its deadband, -1 to 1."""
    size = min(abs(value), 1.0)
    return math.copysign((size - DEADBAND) / (1.0 - DEADBAND), value) if size > DEADBAND else 0.0
