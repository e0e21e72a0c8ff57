"""How much of a Cartesian motion the FR3's joints can follow within their limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from onedp_ros.settings import Range, check_fields, within

Array = NDArray[np.float64]

# FR3 (https://frankarobotics.github.io/docs/robot_specifications.html). Ranges and speeds are those of libfranka's rate_limiting.h,
# slightly narrower than those of newer robots.
JOINT_MIN = (-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196)  # rad
JOINT_MAX = (2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196)
JOINT_SPEED = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)  # rad/s
SPEED_OFFSET = (0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35)  # rad/s
DECELERATION = (6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0)  # rad/s², towards an end of the range
JOINT_ACCELERATION = 10.0  # rad/s²
JOINT_JERK = 5000.0  # rad/s³
ARM_JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
TORQUE_LIMITS = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])  # Nm
TORQUE_RATE = 1000.0  # Nm/s

# Fraction of the joint accelerations used for a stop: it continues in a straight line, where the joints move as predicted here.
STOPPING = 0.8
BRAKING = 0.5  # fraction of the joints' decelerations that a Cartesian motion may rely on
BENDING = 0.25  # fraction of the joint accelerations reserved for the change of the arm's posture
DRAG = 20.0  # 1/s, at most
ONES = np.ones(3)
DAMPING = 1e-8 * np.eye(6)


def joint_speed_limit(joint: int, distance: float) -> float:
    """Speed limit (rad/s) of a joint (0 to 6) moving towards an end of its range at ``distance`` (rad) (libfranka,
    ``rate_limiting.h``, ``computeUpperLimitsJointVelocity``)."""
    braked = math.sqrt(max(2.0 * DECELERATION[joint] * distance, 0.0)) - SPEED_OFFSET[joint]
    return min(max(braked, 0.0), JOINT_SPEED[joint])


@dataclasses.dataclass(frozen=True)
class JointMargins:
    """Fractions of the joints' speed, acceleration and jerk limits that motion may use (a stop: :data:`STOPPING`); ``range`` (rad):
    distance kept from the ends of their ranges; ``elbow`` (rad): smallest bend of joint 4, since a stretched arm can neither
    continue nor brake."""

    speed: float = within(Range(0.01, 1.0, "", "a fraction of the FR3's limit"), default=0.5)
    acceleration: float = within(Range(0.05, 1.0, "", "a fraction of the FR3's limit; less hardly brakes"), default=0.4)
    jerk: float = within(Range(0.05, 1.0, "", "a fraction of the FR3's limit; less hardly brakes"), default=0.4)
    range: float = within(Range(0.01, 0.5, "rad", "less ends in a fault at a joint limit, more leaves no room"), default=0.05)
    elbow: float = within(Range(0.2, 2.0, "rad", "less lets the arm stretch until it can neither continue nor brake"), default=0.6)

    def __post_init__(self) -> None:
        check_fields(self, "joints")


class JointGuard:
    """Computes the fractions of a Cartesian velocity and acceleration that the joints can follow.

    Joint motion is computed by the pseudo-inverse, which only approximates the robot's own inverse kinematics; hence the margins.
    Near a singularity the fractions go to zero.
    """

    def __init__(self, margins: JointMargins) -> None:
        self._margins = margins
        self._min = [angle + margins.range for angle in JOINT_MIN]
        self._max = [angle - margins.range for angle in JOINT_MAX]
        self._max[3] = min(self._max[3], -margins.elbow)
        self._last = np.zeros((6, 7))

    def look(self, q: Sequence[float], jacobian: Array, since: float) -> None:
        """Update with the current joint angles (7,) rad and Jacobian (6, 7), linear rows first, base frame.

        Args:
            since: time since the previous update, s; 0 for the first.
        """
        _, inverse, _ = dposv(jacobian @ jacobian.T + DAMPING, jacobian)
        change = (inverse - self._last) / since if since > 0 else np.zeros((6, 7))
        self._last = inverse
        self._q, self._inverse, self._change = q, inverse.T.tolist(), change.T.tolist()

    def jerk_fraction(self, linear: float, angular: float) -> float:
        """The fraction, 0 to 1, of limits on jerk (m/s³) and angular jerk (rad/s³) that all joints can follow in any direction."""
        square = self._last * self._last
        worst = linear * np.sqrt(ONES @ square[:3]) + angular * np.sqrt(ONES @ square[3:])
        return min(1.0, self._margins.jerk * JOINT_JERK / float(worst.max()))

    def fractions(
        self, now: Sequence[float], wanted: Sequence[float], acceleration: Sequence[float], stopping: bool = False
    ) -> tuple[float, float, float]:
        """Fractions, 0 to 1, of a wanted velocity and of an acceleration, and a drag (1/s), that keep all joints within limits.

        Near a singularity hardly any change of direction is possible; the drag then reduces the current velocity, which only scales
        the joint speeds.

        The joints accelerate by ``J⁺ẍ`` and, since the arm's posture changes, by ``(dJ⁺/dt) ẋ``; the latter may take a quarter of
        their limit.

        Args:
            now: current velocity, (6,) m/s and rad/s, as is ``wanted``.
            acceleration: (6,) m/s² and rad/s².
            stopping: use all of what the joints can reliably do.
        """
        margins = self._margins
        max_acceleration = JOINT_ACCELERATION * (max(STOPPING, margins.acceleration) if stopping else margins.acceleration)
        fraction = push = 1.0
        fastest = 1e-9
        for joint, (inverse, change) in enumerate(zip(self._inverse, self._change, strict=True)):
            speed, bend, gain = _dot(inverse, wanted), _dot(change, now), _dot(inverse, acceleration)
            fastest = max(fastest, abs(_dot(inverse, now)))
            distance = self._max[joint] - self._q[joint] if speed > 0 else self._q[joint] - self._min[joint]
            limit = margins.speed * joint_speed_limit(joint, BRAKING * distance)
            if abs(speed) > limit:
                fraction = min(fraction, limit / abs(speed))
            if abs(bend) > BENDING * max_acceleration:
                fraction = min(fraction, math.sqrt(BENDING * max_acceleration / abs(bend)))
            # An acceleration that opposes the bend, such as braking before the arm is stretched, may be larger by it.
            available = (
                max_acceleration + abs(bend) if bend * gain < 0 else max_acceleration - min(abs(bend), BENDING * max_acceleration)
            )
            needed = _sum(inverse, acceleration)
            if needed > available:
                push = min(push, available / needed)
        return fraction, push, (1.0 - push) * min(DRAG, 0.5 * max_acceleration / fastest)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Dot product of six plain floats: NumPy is slower."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4] + a[5] * b[5]


def _sum(a: Sequence[float], b: Sequence[float]) -> float:
    """Worst case of :func:`_dot`: absolute linear plus absolute angular part, since the filter reverses them at different times."""
    return abs(a[0] * b[0] + a[1] * b[1] + a[2] * b[2]) + abs(a[3] * b[3] + a[4] * b[4] + a[5] * b[5])
