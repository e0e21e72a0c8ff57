"""What a Cartesian motion asks of the FR3's joints, and how much of it they can give."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

Array = NDArray[np.float64]

# FR3 (https://frankarobotics.github.io/docs/robot_specifications.html). Ranges and speeds are those of libfranka's rate_limiting.h,
# a little narrower than what newer robots allow.
JOINT_MIN = (-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196)  # rad
JOINT_MAX = (2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196)
JOINT_SPEED = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)  # rad/s
SPEED_OFFSET = (0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35)  # rad/s
DECELERATION = (6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0)  # rad/s², towards an end of the range
JOINT_ACCELERATION = 10.0  # rad/s²
TORQUE_LIMITS = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])  # Nm
TORQUE_RATE = 1000.0  # Nm/s

DAMPING = 1e-6 * np.eye(6)


def joint_speed_limit(joint: int, distance: float) -> float:
    """Greatest speed (rad/s) of a joint (0 to 6) towards an end of its range that is ``distance`` (rad) away (libfranka,
    ``rate_limiting.h``, ``computeUpperLimitsJointVelocity``)."""
    braked = math.sqrt(max(2.0 * DECELERATION[joint] * distance, 0.0)) - SPEED_OFFSET[joint]
    return min(max(braked, 0.0), JOINT_SPEED[joint])


@dataclasses.dataclass(frozen=True)
class JointMargins:
    """Shares of the joints' limits that a motion may use, and the distance (rad) kept from the ends of their ranges."""

    speed: float = 0.7
    acceleration: float = 0.7
    range: float = 0.05


class JointGuard:
    """Says which share of a Cartesian velocity and acceleration the joints can follow.

    The joints' part of a twist is that of the pseudo-inverse, which the robot's own inverse kinematics resembles; hence margins.
    Near a singularity the shares go to nothing by themselves.
    """

    def __init__(self, margins: JointMargins) -> None:
        self._margins = margins

    def look(self, q: Sequence[float], jacobian: Array) -> None:
        """Take the present joint angles (7,) rad and Jacobian (6, 7), linear rows first, base frame."""
        _, solved, _ = dposv(jacobian @ jacobian.T + DAMPING, jacobian)
        self._q, self._inverse = q, solved.T.tolist()

    def shares(self, twist: Sequence[float], acceleration: Sequence[float]) -> tuple[float, float]:
        """The shares, 0 to 1, of a velocity (6,) m/s and rad/s and of an acceleration (6,) that keep all joints within limits."""
        margins, speed_share, greatest = self._margins, 1.0, 1e-9
        a, b, c, d, e, f = twist
        g, h, i, j, k, m = acceleration
        for joint, (s, t, u, v, w, x) in enumerate(self._inverse):  # plain floats: NumPy is slower on seven
            speed = s * a + t * b + u * c + v * d + w * e + x * f
            angle = self._q[joint]
            distance = JOINT_MAX[joint] - angle if speed > 0 else angle - JOINT_MIN[joint]
            limit = margins.speed * joint_speed_limit(joint, distance - margins.range)
            if abs(speed) > limit:
                speed_share = min(speed_share, limit / abs(speed))
            greatest = max(greatest, abs(s * g + t * h + u * i + v * j + w * k + x * m))
        return speed_share, min(1.0, margins.acceleration * JOINT_ACCELERATION / greatest)
