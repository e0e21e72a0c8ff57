"""Limits on the arm's targets, from ``config/robot/<robot>.yaml``. The arm's process imports this module: keep it light."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from onedp_ros.settings import Range, check_fields, from_file, from_mapping, within

WORKSPACE = Range(-1.5, 1.5, "m", "an FR3 with its hand reaches 1.4 m from its base", 3)
LEAST_SIDE = 0.1  # m, of the workspace: the arm keeps a distance from its walls
LONGEST_STOP = 1.0  # s that coming to rest may take
STALE_AFTER = Range(
    0.02, 1.0, "s", "less holds the arm between two commands that are on time, more lets it move for long without any"
)


@dataclasses.dataclass(frozen=True)
class SafetyLimits:
    """Limits on targets. Base frame; metres, radians, seconds. The section ``safety`` of ``config/robot/<robot>.yaml``.

    Raises:
        ValueError: an implausible value; names the field, the value, what is expected and why.
    """

    workspace_min: tuple[float, float, float] = within(WORKSPACE)
    workspace_max: tuple[float, float, float] = within(WORKSPACE)
    linear_speed: float = within(Range(1e-4, 3.0, "m/s", "less is standing still, and an FR3 moves at 3 m/s at most"))
    angular_speed: float = within(Range(1e-3, 5.0, "rad/s", "less is standing still, more is over twice an FR3's limit"))
    linear_deceleration: float = within(Range(0.5, 9.0, "m/s²", "less hardly brakes, and an FR3 takes 9 m/s² at most"))
    angular_deceleration: float = within(Range(1.0, 17.0, "rad/s²", "less hardly brakes, and an FR3 takes 17 rad/s² at most"))
    opening: tuple[float, float] = within(Range(-10.0, 10.0, "", "in the unit of the commands; a Franka hand's is 0 to 0.08 m", 2))
    stale_after: float = within(STALE_AFTER)
    max_chunk_age: float = within(
        Range(0.02, 2.0, "s", "no policy predicts faster, and an older prediction is of a different scene")
    )
    future_tolerance: float = within(Range(1e-3, 0.5, "s", "clocks differ by a little, and a stamp farther in the future is wrong"))

    def __post_init__(self) -> None:
        check_fields(self, "safety")
        if not all(high - low >= LEAST_SIDE for low, high in zip(self.workspace_min, self.workspace_max, strict=True)):
            raise ValueError(
                f"safety.workspace_min is {self.workspace_min} and safety.workspace_max {self.workspace_max}, expected each "
                f"coordinate to increase by {LEAST_SIDE} m or more: the arm keeps a distance from the walls, and needs room between"
            )
        if not self.opening[0] < self.opening[1]:
            raise ValueError(f"safety.opening is {self.opening}, expected two increasing numbers")
        for kind, unit in (("linear", "m/s"), ("angular", "rad/s")):
            speed, loss = getattr(self, f"{kind}_speed"), getattr(self, f"{kind}_deceleration")
            if speed > LONGEST_STOP * loss:
                raise ValueError(
                    f"safety.{kind}_speed is {speed:g} {unit} and {kind}_deceleration {loss:g} {unit}², so that a stop takes "
                    f"{speed / loss:.2g} s, expected {LONGEST_STOP:g} s at most"
                )

    @classmethod
    def from_dict(cls, data: Any) -> SafetyLimits:
        """Limits from plain data. ValueError names a missing, unknown or implausible field."""
        return from_mapping(cls, "safety", data)

    @classmethod
    def from_yaml(cls, path: str | Path) -> SafetyLimits:
        """Read the section ``safety`` of a robot file. ValueError names file and field."""
        return from_file(cls, path, "safety", "config/robot/twin.yaml")

    def slowed(self, fraction: float) -> SafetyLimits:
        """The same limits with this fraction (0 to 1] of the speeds."""
        if not 0 < fraction <= 1:
            raise ValueError(f"speed is {fraction}, expected a fraction above 0 and up to 1")
        return dataclasses.replace(self, linear_speed=fraction * self.linear_speed, angular_speed=fraction * self.angular_speed)
