"""From an operator's commands to targets for the arm, within the same limits as a policy's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.clock import SHORTEST_PAUSE
from onedp_ros.contract import MAX_OPENING
from onedp_ros.control.chunk import Target
from onedp_ros.control.limits import WORKSPACE, SafetyLimits
from onedp_ros.control.safety import SMOOTHING, SafetyGate, pose_fault
from onedp_ros.geometry import (
    gripper_down,
    quaternion_from_rotation_vector,
    quaternion_multiply,
    quaternion_to_matrix,
    rotation_angle,
    rotation_difference,
)
from onedp_ros.settings import Choice, Range, check_fields, from_mapping, within
from onedp_ros.teleop.devices import MOTION, read_section
from onedp_ros.teleop.devices.base import AXES, Command

Array = NDArray[np.float64]

FRAMES = ("base", "tool")
NEAR, NEAR_ANGLE = 0.03, 0.15  # m, rad: an arm as near to its last target goes on from that; from farther away, from where it is
LAG = 3.0  # times that: how far behind an arm may be that has not come to rest yet, and so how far targets run ahead of it
DELAY = 0.25  # s that arms are behind their targets; one farther behind is held up, by its limits or by what is in its way
BRAKING = 0.1  # s that such an arm goes on at its speed when the operator lets go
AHEAD, AHEAD_ANGLE = 0.04, 0.25  # m, rad that the hands may be ahead of the targets, which are bounded in speed
OPEN = 0.9  # of the range: a hand that is less open may hold something, and stays closed
TURN = Range(-2 * math.pi, 2 * math.pi, "rad", "more is more than a turn; is it in degrees?")
IDLE = 0.02  # of the greatest deflection: a device at rest
SETTLING = 0.25  # s after a pause of this process in which reports of a device may come that waited for its end


@dataclasses.dataclass(frozen=True)
class Motion:
    """How hands move the arm; the section ``motion`` of ``config/teleop.yaml`` describes the fields."""

    linear_speed: float = within(Range(1e-4, 1.0, "m/s", "less is standing still, and nobody steers faster by hand"))
    angular_speed: float = within(Range(1e-3, 3.0, "rad/s", "less is standing still, and nobody steers faster by hand"))
    scale: float = within(Range(0.05, 5.0, "", "less hardly moves the arm, more makes it jump with a hand that trembles"))
    frame: str = within(Choice(FRAMES, "a hand moves in no other"))
    operator_yaw: float = within(TURN)
    locked: tuple[str, ...] = within(Choice(AXES, "a hand moves in no others", several=True))
    home_position: tuple[float, float, float] = within(WORKSPACE)
    home_yaw: float = within(TURN)

    def __post_init__(self) -> None:
        check_fields(self, "motion")

    @classmethod
    def from_dict(cls, data: Any) -> Motion:
        """Plain data -> settings. ValueError names a missing, unknown or implausible field."""
        return from_mapping(cls, "motion", data)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Motion:
        """The section ``motion`` of a file. ValueError names file and field."""
        try:
            return cls.from_dict(read_section(path, MOTION))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; see config/teleop.yaml for a complete one") from error

    def slowed(self, fraction: float) -> Motion:
        """With this fraction (0 to 1] of the speeds."""
        return dataclasses.replace(self, linear_speed=fraction * self.linear_speed, angular_speed=fraction * self.angular_speed)


class Session:
    """Holds the arm's target and moves it while the operator holds the dead-man switch.

    Engaging begins at the last target when the arm is there, else at the measured pose, and counts only what the device does from
    then on, so the arm never jumps. ``state``: ``waiting`` until first engaged, then ``moving``, ``homing``, ``stopping`` or
    ``holding``. From first engaging on there is always a target, so that an operator who lets go and takes a new grip does not
    tear a recording; but an arm that something else took away from where it was held is not drawn back: the session is
    ``waiting`` again. Targets stay near the arm, so that a slow one does not go on for long when the operator lets go, and one that
    is held up is then left where it is.

    A step that comes later after the last than ``stale_after`` is the end of a pause: this process was stopped, or the machine
    suspended, and the arm has come to rest by itself. Nothing that the hands meant before counts: the session is ``waiting``, and
    ``must_release`` is true until the dead-man switch was seen let go.
    """

    def __init__(self, motion: Motion, limits: SafetyLimits, opening_range: tuple[float, float] = (0.0, MAX_OPENING)) -> None:
        self._motion, self._limits = motion, limits
        self.closed, self.opened = opening_range
        self.gate = SafetyGate(limits)
        self.state = "waiting"
        self.opening = self.opened
        self._homing = self._settled = False
        self.must_release = False
        self._settling = 0.0
        self._goal: tuple[Array, Array] = (np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))
        self._device: tuple[Array, Array] = (np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
        self._hold: tuple[Array, Array] | None = None  # where an arm that was held up stays
        self._measured: tuple[Array, Array] | None = None
        self._speed, self._spin = 0.0, 0.0  # of the arm, m/s and rad/s
        self._unlocked = np.array([axis not in motion.locked for axis in AXES], dtype=np.float64)
        self._turn = _about_z(motion.operator_yaw)

    @property
    def engaged(self) -> bool:
        return self.state in ("moving", "homing")

    def home(self) -> bool:
        """Go home for as long as the dead-man switch is held and nothing else is requested. False when it is not held."""
        self._homing = self.engaged
        return self.engaged

    def turn_gripper(self) -> None:
        """Open a hand that is to be closed, and the other way round."""
        self.opening = self.closed if self._is_open(self.opening) else self.opened

    def _is_open(self, opening: float) -> bool:
        return (opening - self.closed) / (self.opened - self.closed) >= OPEN

    def step(self, command: Command, measured: tuple[Array, Array] | None, opening: float | None, dt: float) -> Target | None:
        """The target to send ``dt`` (s, on :mod:`onedp_ros.clock`) after the last one; None before the operator first engaged.

        Args:
            command: what the hands do.
            measured: pose of the tool in the base frame, (3,) m and (4,) xyzw, and
            opening: between the fingers, m; None when it is not known, or is no pose: then nothing moves.

        Raises:
            ValueError: engaging outside the workspace.
        """
        measured = None if measured is not None and pose_fault(*measured) else measured
        command = self._after_pause(command, dt)
        self._measure_speed(measured, dt)
        if not command.engaged or measured is None or opening is None:
            self._homing = False
            return self._let_go(measured, dt)
        if not self.engaged:
            self._engage(command, measured, opening)
        velocity = self._unlocked * np.clip(command.velocity, -1.0, 1.0)
        shift, turn = self._device_motion(command)
        if np.abs(velocity).max() > IDLE:
            self._homing = False
        if self._homing:
            self.state = "homing"
            self._goal = self._homewards(dt)
        else:
            self.state = "moving"
            frame = self._turn if self._motion.frame == "base" else quaternion_to_matrix(self._goal[1])
            self._move(
                frame @ (self._motion.linear_speed * dt * velocity[:3]) + self._turn @ shift,
                frame @ (self._motion.angular_speed * dt * velocity[3:]) + self._turn @ turn,
            )
        self._goal = _within(self._goal, measured, LAG * NEAR, LAG * NEAR_ANGLE)
        return self.gate.limit(Target(*self._goal, self.opening), dt)

    def _after_pause(self, command: Command, dt: float) -> Command:
        """The command, or one that is not engaged until the dead-man switch was let go after a pause."""
        if dt > max(self._limits.stale_after, SHORTEST_PAUSE):
            self.must_release, self._settling = True, SETTLING
            self.state, self._hold, self.gate.target = "waiting", None, None
        elif self._settling > 0:
            self._settling -= dt
        elif not command.engaged:
            self.must_release = False
        return Command() if self.must_release else command

    def _measure_speed(self, measured: tuple[Array, Array] | None, dt: float) -> None:
        if measured is not None and self._measured is not None and dt > 0:
            weight = min(dt / SMOOTHING, 1.0)
            self._speed += weight * (float(np.linalg.norm(measured[0] - self._measured[0])) / dt - self._speed)
            self._spin += weight * (rotation_angle(measured[1], self._measured[1]) / dt - self._spin)
        self._measured = measured

    def _let_go(self, measured: tuple[Array, Array] | None, dt: float) -> Target | None:
        if self.state == "waiting":
            return None
        if self.engaged:
            self._hold = self._held_up(measured)
        target = self.gate.stop(dt) if self._hold is None else self.gate.limit(Target(*self._hold, self.opening), dt)
        if self.state != "holding":
            self.state, self._settled = "stopping" if self.gate.moving else "holding", False
        elif measured is not None:
            self._settled = self._settled or _near(measured, target)
            if not _near(measured, target, 1.0 if self._settled else LAG):
                self.state = "waiting"
                return None
        return dataclasses.replace(target, opening=self.opening)

    def _held_up(self, measured: tuple[Array, Array] | None) -> tuple[Array, Array] | None:
        """Where an arm comes to rest that is farther behind its target than its speed explains; None for one that follows."""
        last = self.gate.target
        assert last is not None
        if measured is None:
            return None
        away, turned = float(np.linalg.norm(last.position - measured[0])), rotation_angle(last.quaternion, measured[1])
        if away < DELAY * self._speed + NEAR and turned < DELAY * self._spin + NEAR_ANGLE:
            return None
        return _within((last.position, last.quaternion), measured, BRAKING * self._speed, BRAKING * self._spin)

    def _engage(self, command: Command, measured: tuple[Array, Array], opening: float) -> None:
        begin, last = measured, self.gate.target
        if last is None:
            self.opening = self.opened if self._is_open(opening) else self.closed
        elif _near(measured, last):
            begin = last.position, last.quaternion
        if last is None or self.state in ("waiting", "holding"):
            start = self.gate.start(*begin, self.opening)
            self._goal = start.position, start.quaternion
        else:  # caught again while stopping
            self._goal = last.position, last.quaternion
        self._device = np.array(command.position), np.array(command.quaternion)
        self._ahead = _about_z(-_heading(self._device[1]))

    def _device_motion(self, command: Command) -> tuple[Array, Array]:
        """What a device with a pose did since the last step: shift (3,) m and turn (3,) rad in the operator's frame, whose x is
        where the device pointed when it was engaged."""
        position, quaternion = np.array(command.position), np.array(command.quaternion)
        shift, turn = position - self._device[0], rotation_difference(quaternion, self._device[1])
        self._device = position, quaternion
        both = self._unlocked * np.concatenate([self._motion.scale * (self._ahead @ shift), self._ahead @ turn])
        return both[:3], both[3:]

    def _move(self, shift: Array, turn: Array) -> None:
        """Move the goal, within the workspace and never far ahead of what was sent."""
        last = self.gate.target
        assert last is not None
        position = np.clip(self._goal[0] + shift, self._limits.workspace_min, self._limits.workspace_max)
        quaternion = quaternion_multiply(quaternion_from_rotation_vector(turn), self._goal[1])
        self._goal = _within((position, quaternion), (last.position, last.quaternion), AHEAD, AHEAD_ANGLE)

    def _homewards(self, dt: float) -> tuple[Array, Array]:
        motion, last = self._motion, self.gate.target
        assert last is not None
        home = np.array(motion.home_position), gripper_down(motion.home_yaw)
        return _within(home, (last.position, last.quaternion), motion.linear_speed * dt, motion.angular_speed * dt)


def _near(measured: tuple[Array, Array], target: Target, factor: float = 1.0) -> bool:
    """Whether a measured pose lies within ``factor`` times :data:`NEAR` and :data:`NEAR_ANGLE` of a target."""
    away, turned = np.linalg.norm(target.position - measured[0]), rotation_angle(target.quaternion, measured[1])
    return bool(away < factor * NEAR and turned < factor * NEAR_ANGLE)


def _within(wanted: tuple[Array, Array], start: tuple[Array, Array], most: float, most_angle: float) -> tuple[Array, Array]:
    """A pose as near to ``wanted`` as these distances (m, rad) from ``start`` allow."""
    shift, turn = wanted[0] - start[0], rotation_difference(wanted[1], start[1])
    shift *= min(1.0, most / max(float(np.linalg.norm(shift)), 1e-12))
    turn *= min(1.0, most_angle / max(float(np.linalg.norm(turn)), 1e-12))
    return start[0] + shift, quaternion_multiply(quaternion_from_rotation_vector(turn), start[1])


def _about_z(yaw: float) -> Array:
    return quaternion_to_matrix(np.array([0.0, 0.0, math.sin(0.5 * yaw), math.cos(0.5 * yaw)]))


def _heading(quaternion: Array) -> float:
    """Where a device points, about z: its x axis or, when that is upright, its z axis."""
    matrix = quaternion_to_matrix(quaternion)
    x, y = matrix[:2, 0] if abs(matrix[2, 0]) < 0.9 else -np.sign(matrix[2, 0]) * matrix[:2, 2]
    return math.atan2(y, x)
