"""Everything about one arm that is not its address: limits, gains, thresholds, hand. From ``config/robot/<robot>.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from onedp_ros.control.follow import FollowLimits
from onedp_ros.control.gripper import GripperSettings
from onedp_ros.control.joints import JointMargins
from onedp_ros.control.servo import ImpedanceGains, ServoLimits

MODES = ("cartesian_pose", "cartesian_impedance")
CONTROLLERS = ("joint_impedance", "cartesian_impedance")

Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """``mode``: one of :data:`MODES`. ``controller``: the robot's own under ``cartesian_pose``, one of :data:`CONTROLLERS`.
    ``stale_after`` (s), ``resume_distance`` (m), ``resume_angle`` (rad): :class:`~onedp_ros.control.follow.FollowLimits`.
    ``collision_torque`` (7,) Nm and ``collision_force`` (6,) N, Nm: above them the robot stops. ``load_mass`` (kg), ``load_center``
    (3,) m from the flange, ``load_inertia`` (9,) kg m²: what is held besides the hand. ``auto_recover``: errors after which the arm
    goes on by itself, by libfranka's names; empty strings are none, which ROS needs to know the type."""

    mode: str
    controller: str
    stale_after: float
    resume_distance: float
    resume_angle: float
    collision_torque: tuple[float, ...]
    collision_force: tuple[float, ...]
    load_mass: float
    load_center: tuple[float, ...]
    load_inertia: tuple[float, ...]
    auto_recover: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"arm.mode is '{self.mode}', expected one of {', '.join(MODES)}")
        if self.controller not in CONTROLLERS:
            raise ValueError(f"arm.controller is '{self.controller}', expected one of {', '.join(CONTROLLERS)}")
        for name, count in (("collision_torque", 7), ("collision_force", 6), ("load_center", 3), ("load_inertia", 9)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"arm.{name} has {len(getattr(self, name))} values, expected {count}")
        for name in ("stale_after", "resume_distance", "resume_angle"):
            if getattr(self, name) <= 0:
                raise ValueError(f"arm.{name} is {getattr(self, name)}, expected a positive number")


FR3_LIMITS = {  # https://frankarobotics.github.io/docs/robot_specifications.html
    "linear_speed": 3.0,
    "linear_acceleration": 9.0,
    "linear_jerk": 4500.0,
    "angular_speed": 2.5,
    "angular_acceleration": 17.0,
    "angular_jerk": 8500.0,
}
SECTIONS: dict[str, type] = {
    "arm": ArmSettings,
    "servo": ServoLimits,
    "joints": JointMargins,
    "impedance": ImpedanceGains,
    "gripper": GripperSettings,
}


@dataclasses.dataclass(frozen=True)
class RobotSettings:
    """The sections of a robot file; ``workspace_min`` and ``workspace_max`` (m) are those of its section ``safety``."""

    workspace_min: tuple[float, float, float]
    workspace_max: tuple[float, float, float]
    arm: ArmSettings
    servo: ServoLimits
    joints: JointMargins
    impedance: ImpedanceGains
    gripper: GripperSettings

    @property
    def follow(self) -> FollowLimits:
        arm = self.arm
        return FollowLimits(self.workspace_min, self.workspace_max, arm.stale_after, arm.resume_distance, arm.resume_angle)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobotSettings:
        """Plain data -> settings. ValueError names a missing, unknown or senseless field."""
        low, high = (data["safety"][name] for name in ("workspace_min", "workspace_max"))
        if len(low) != 3 or len(high) != 3 or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"workspace_min {list(low)} is not below workspace_max {list(high)}, three numbers each")
        sections: dict[str, Any] = {name: _section(name, kind, data.get(name)) for name, kind in SECTIONS.items()}
        corners = {name: tuple(float(v) for v in data["safety"][name]) for name in ("workspace_min", "workspace_max")}
        for name, value in (*dataclasses.asdict(sections["servo"]).items(), *dataclasses.asdict(sections["impedance"]).items()):
            if not 0 < value <= FR3_LIMITS.get(name, float("inf")):
                raise ValueError(f"{name} is {value}, expected a positive number, {FR3_LIMITS.get(name, 'any')} at most")
        margins = sections["joints"]
        if not all(0 < share <= 1 for share in (margins.speed, margins.acceleration, margins.jerk)):
            raise ValueError(f"joints are {margins}, expected shares above 0 and up to 1")
        return cls(**corners, **sections)  # type: ignore[arg-type]

    @classmethod
    def from_yaml(cls, path: str | Path) -> RobotSettings:
        """ValueError names file and field."""
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}; see config/robot/franka.yaml for a complete one") from error

    def to_dict(self) -> dict[str, Any]:
        """Inverse of :meth:`from_dict`, of JSON's types."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        return {**sections, "safety": {"workspace_min": self.workspace_min, "workspace_max": self.workspace_max}}

    def parameters(self) -> dict[str, Any]:
        """``section.field`` -> value, lists for tuples; :meth:`replaced` takes the same."""
        return {
            f"{name}.{field}": list(value) if isinstance(value, tuple) else value
            for name in SECTIONS
            for field, value in dataclasses.asdict(getattr(self, name)).items()
        } | {"workspace_min": list(self.workspace_min), "workspace_max": list(self.workspace_max)}

    def replaced(self, parameters: Mapping[str, Any]) -> RobotSettings:
        """With other values for ``section.field``. ValueError as of :meth:`from_dict`."""
        data = self.to_dict()
        for name, value in parameters.items():
            section, _, field = name.rpartition(".")
            data[section or "safety"][field] = value
        return RobotSettings.from_dict(data)

    def slowed(self, share: float) -> RobotSettings:
        """With this share (0 to 1] of the speeds."""
        if not 0 < share <= 1:
            raise ValueError(f"speed is {share}, expected a share above 0 and up to 1")
        s = self.servo
        slow = dataclasses.replace(s, linear_speed=share * s.linear_speed, angular_speed=share * s.angular_speed)
        return dataclasses.replace(self, servo=slow)


def _section(name: str, kind: type[Section], data: Any) -> Section:
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, Mapping) or set(data) != fields:
        found = sorted(data) if isinstance(data, Mapping) else data
        raise ValueError(f"section '{name}' holds {found}, expected exactly {sorted(fields)}")
    values = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in data.items()}
    for key, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(n, str) or float(n) - float(n) == 0.0 for n in numbers):  # NaN and infinity are not
            raise ValueError(f"{name}.{key} is {value}, expected finite numbers")
    return kind(**values)
