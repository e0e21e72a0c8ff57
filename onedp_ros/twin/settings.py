"""The settings that the twin's arm takes from a robot file, as the real servo does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onedp_ros.control.limits import SafetyLimits
from onedp_ros.control.servo import ImpedanceGains, ServoLimits
from onedp_ros.resources import named_file
from onedp_ros.settings import from_file


@dataclasses.dataclass(frozen=True)
class TwinSettings:
    """The servo's motion limits, its impedance gains, and ``safety``, with the workspace that targets are clamped to."""

    servo: ServoLimits
    impedance: ImpedanceGains
    safety: SafetyLimits

    @classmethod
    def from_yaml(cls, path: str | Path) -> TwinSettings:
        """Read the sections of a robot file. ValueError names file, section and field."""
        example = "config/robot/twin.yaml"
        return cls(
            from_file(ServoLimits, path, "servo", example),
            from_file(ImpedanceGains, path, "impedance", example),
            from_file(SafetyLimits, path, "safety", example),
        )

    @classmethod
    def from_robot(cls, robot: str) -> TwinSettings:
        """Read a robot file: the name of one in config/robot, or a path. Errors of :meth:`from_yaml`, and FileNotFoundError."""
        return cls.from_yaml(named_file("robot", robot))
