"""All settings of an arm except its address: limits, gains, thresholds, hand. From ``config/robot/<robot>.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from onedp_ros.control.follow import RESUME_ANGLE, RESUME_DISTANCE, FollowLimits
from onedp_ros.control.gripper import GripperSettings
from onedp_ros.control.joints import JointMargins
from onedp_ros.control.limits import STALE_AFTER, SafetyLimits
from onedp_ros.control.servo import ImpedanceGains, ServoLimits
from onedp_ros.robot import MODES
from onedp_ros.settings import Choice, Range, check_fields, from_file, from_mapping, values_and_expected, within

CONTROLLERS = ("joint_impedance", "cartesian_impedance")
HARMLESS = ("cartesian_reflex", "joint_reflex", "communication_constraints_violation")  # errors that allow automatic recovery


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """``mode``: one of :data:`MODES`. ``controller``: the robot's internal one under ``cartesian_pose``, one of
    :data:`CONTROLLERS`. ``stale_after`` (s), ``resume_distance`` (m), ``resume_angle`` (rad):
    :class:`~onedp_ros.control.follow.FollowLimits`. ``collision_torque`` (7,) Nm and ``collision_force`` (6,) N, Nm: above them the
    robot stops. ``load_mass`` (kg), ``load_center`` (3,) m from the flange, ``load_inertia`` (9,) kg m²: the payload besides the
    hand. ``auto_recover``: errors from which the arm recovers automatically, by libfranka's names; empty strings are ignored (ROS
    needs an element to infer the type)."""

    mode: str = within(Choice(MODES, "there are no other controllers"))
    controller: str = within(Choice(CONTROLLERS, "the FR3 has no others"))
    stale_after: float = within(STALE_AFTER)
    resume_distance: float = within(RESUME_DISTANCE)
    resume_angle: float = within(RESUME_ANGLE)
    collision_torque: tuple[float, ...] = within(
        Range(1.0, 87.0, "Nm", "less is within sensor noise, and above a joint's torque no contact is detected", 7)
    )
    collision_force: tuple[float, ...] = within(
        Range(1.0, 100.0, "N and Nm", "less is within sensor noise, and more hurts: ISO/TS 15066 allows 140 N on a hand", 6)
    )
    load_mass: float = within(Range(0.0, 3.0, "kg", "an FR3's payload is 3 kg"))
    load_center: tuple[float, ...] = within(Range(-0.5, 0.5, "m", "a load farther from the flange cannot be held", 3))
    load_inertia: tuple[float, ...] = within(Range(-0.5, 0.5, "kg m²", "a held load of 3 kg has less", 9))
    auto_recover: tuple[str, ...] = within(Choice(HARMLESS, "after any other error somebody has to check the arm", several=True))

    def __post_init__(self) -> None:
        check_fields(self, "arm")


INSETS = {"cartesian_pose": 0.005, "cartesian_impedance": 0.010}  # m from the walls of the workspace
ARM_MASS = 8.0  # kg, the arm's largest effective mass at the tool center point, including motors and gears
WORKSPACE = ("workspace_min", "workspace_max")


@dataclasses.dataclass(frozen=True)
class RobotSettings:
    """The sections of a robot file."""

    arm: ArmSettings
    servo: ServoLimits
    joints: JointMargins
    impedance: ImpedanceGains
    gripper: GripperSettings
    safety: SafetyLimits

    @property
    def follow(self) -> FollowLimits:
        arm, safety = self.arm, self.safety
        inset, brake = INSETS[arm.mode], self.servo.linear_acceleration
        if arm.mode == "cartesian_impedance":  # the impedance stops the arm's mass within half of the inset, the rest is for sag
            brake = min(brake, self.impedance.linear_stiffness * 0.5 * inset / ARM_MASS)
        return FollowLimits(
            safety.workspace_min, safety.workspace_max, arm.stale_after, arm.resume_distance, arm.resume_angle, inset, brake
        )

    @classmethod
    def from_dict(cls, data: Any) -> RobotSettings:
        """Settings from plain data. ValueError names a missing, unknown or implausible section or field."""
        return from_mapping(cls, "", data)

    @classmethod
    def from_yaml(cls, path: str | Path) -> RobotSettings:
        """Read a robot file. ValueError names file and field."""
        return from_file(cls, path, "", "config/robot/franka.yaml")

    def to_dict(self) -> dict[str, Any]:
        """Inverse of :meth:`from_dict`, with JSON types."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}

    def parameters(self) -> dict[str, tuple[Any, Range | Choice]]:
        """The arm's parameters: ``section.field``, or a corner of the workspace -> value and plausible values. :meth:`replaced`
        takes values by these names."""
        given = {name: pair for name, pair in values_and_expected(self.safety).items() if name in WORKSPACE}
        for section in SECTIONS.keys() - {"safety"}:
            given |= values_and_expected(getattr(self, section), f"{section}.")
        return given

    def replaced(self, parameters: Mapping[str, Any]) -> RobotSettings:
        """The same settings with other values for ``section.field``. ValueError as in :meth:`from_dict`."""
        data = self.to_dict()
        for name, value in parameters.items():
            section, _, field = name.rpartition(".")
            data[section or "safety"][field] = value
        return RobotSettings.from_dict(data)

    def slowed(self, fraction: float) -> RobotSettings:
        """The same settings with this fraction (0 to 1] of the speeds."""
        if not 0 < fraction <= 1:
            raise ValueError(f"speed is {fraction}, expected a fraction above 0 and up to 1")
        s = self.servo
        slow = dataclasses.replace(s, linear_speed=fraction * s.linear_speed, angular_speed=fraction * s.angular_speed)
        return dataclasses.replace(self, servo=slow)


SECTIONS: dict[str, type] = get_type_hints(RobotSettings)
