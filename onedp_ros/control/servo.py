"""From Cartesian targets to joint torques: a jerk-limited target filter and an impedance law. Both run at 1 kHz."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from onedp_ros.geometry import quaternion_from_rotation_vector, quaternion_multiply, rotation_difference

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ServoLimits:
    """Bounds of the filtered motion: m/s, m/s², m/s³ and rad/s, rad/s², rad/s³; ``gain`` (1/s) is how fast an error closes.

    The defaults are about a third of the FR3 data sheet's Cartesian limits (https://frankarobotics.github.io/docs, "Robot and
    interface specifications").
    """

    gain: float = 12.0
    linear_speed: float = 0.6
    linear_acceleration: float = 4.0
    linear_jerk: float = 400.0
    angular_speed: float = 1.6
    angular_acceleration: float = 10.0
    angular_jerk: float = 1000.0


class TargetFilter:
    """Follows a target that may jump with a pose that cannot: speed, acceleration and jerk stay within limits.

    Velocity is proportional to the error (bounded by speed and by what can still be braked), acceleration to the error in
    velocity, and the acceleration's change is bounded. Position and velocity in the base frame.
    """

    def __init__(self, limits: ServoLimits) -> None:
        self.limits = limits
        self.reset(np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))

    def reset(self, position: Array, quaternion: Array) -> None:
        """Begin at rest at a pose: (3,) m, (4,) xyzw."""
        self.position, self.quaternion = np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64)
        self.velocity, self.acceleration = np.zeros(3), np.zeros(3)
        self.angular_velocity, self.angular_acceleration = np.zeros(3), np.zeros(3)

    def step(self, position: Array, quaternion: Array, dt: float) -> None:
        """Advance by ``dt`` (s) towards the target: (3,) m, (4,) xyzw."""
        lim = self.limits
        self.velocity, self.acceleration = _advance(
            position - self.position,
            self.velocity,
            self.acceleration,
            (lim.gain, lim.linear_speed, lim.linear_acceleration, lim.linear_jerk),
            dt,
        )
        self.position = self.position + self.velocity * dt
        self.angular_velocity, self.angular_acceleration = _advance(
            rotation_difference(quaternion, self.quaternion),
            self.angular_velocity,
            self.angular_acceleration,
            (lim.gain, lim.angular_speed, lim.angular_acceleration, lim.angular_jerk),
            dt,
        )
        turned = quaternion_multiply(quaternion_from_rotation_vector(self.angular_velocity * dt), self.quaternion)
        self.quaternion = turned / math.sqrt(float(turned @ turned))


def _advance(
    error: Array, velocity: Array, acceleration: Array, limits: tuple[float, float, float, float], dt: float
) -> tuple[Array, Array]:
    """Velocity and acceleration after ``dt``. In plain floats: a third of the time of NumPy on three numbers."""
    gain, speed, most, jerk = limits
    ex, ey, ez = error.tolist()
    vx, vy, vz = velocity.tolist()
    ax, ay, az = acceleration.tolist()
    distance = math.sqrt(ex * ex + ey * ey + ez * ez)
    # half of the acceleration is kept for the brake's own delay
    scale = min(gain, min(speed, math.sqrt(most * distance)) / max(distance, 1e-12))
    bx, by, bz = 4.0 * gain * (scale * ex - vx), 4.0 * gain * (scale * ey - vy), 4.0 * gain * (scale * ez - vz)
    scale = min(1.0, most / max(math.sqrt(bx * bx + by * by + bz * bz), 1e-12))
    jx, jy, jz = scale * bx - ax, scale * by - ay, scale * bz - az
    scale = min(1.0, jerk * dt / max(math.sqrt(jx * jx + jy * jy + jz * jz), 1e-12))
    ax, ay, az = ax + scale * jx, ay + scale * jy, az + scale * jz
    return np.array([vx + ax * dt, vy + ay * dt, vz + az * dt]), np.array([ax, ay, az])


def _bounded(vector: Array, most: float) -> Array:
    x, y, z = vector.tolist()
    length = math.sqrt(x * x + y * y + z * z)
    return vector if length <= most else vector * (most / length)


@dataclasses.dataclass(frozen=True)
class ImpedanceGains:
    """Stiffness (N/m, Nm/rad), damping (Ns/m, Nms/rad), null-space gains (Nm/rad, Nms/rad) and error clips (m, rad)."""

    linear_stiffness: float = 1500.0
    angular_stiffness: float = 60.0
    linear_damping: float = 120.0
    angular_damping: float = 8.0
    posture_stiffness: float = 10.0
    posture_damping: float = 2.0
    linear_clip: float = 0.03
    angular_clip: float = 0.3


DAMPING = 1e-4 * np.eye(6)
TORQUE_LIMITS = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])  # Nm, FR3 data sheet


def impedance_torque(
    gains: ImpedanceGains,
    reference: TargetFilter,
    position: Array,
    quaternion: Array,
    jacobian: Array,
    joint_velocity: Array,
    posture_error: Array,
) -> NDArray[np.floating[Any]]:
    """Joint torques (7,) Nm, without gravity and Coriolis: ``Jᵀ(K clip(e) + D(ẋ_ref - Jq̇)) + N(posture)``.

    Args:
        reference: the filtered target, pose and velocity.
        position, quaternion: measured end effector, (3,) m and (4,) xyzw in the base frame.
        jacobian: (6, 7), linear rows first, base frame.
        joint_velocity: (7,) rad/s.
        posture_error: (7,) rad, preferred minus measured joint angles; acts in the null space only.
    """
    wrench = np.empty(6)
    twist = jacobian @ joint_velocity
    wrench[:3] = gains.linear_stiffness * _bounded(reference.position - position, gains.linear_clip)
    wrench[3:] = gains.angular_stiffness * _bounded(rotation_difference(reference.quaternion, quaternion), gains.angular_clip)
    wrench[:3] += gains.linear_damping * (reference.velocity - twist[:3])
    wrench[3:] += gains.angular_damping * (reference.angular_velocity - twist[3:])
    posture = gains.posture_stiffness * posture_error - gains.posture_damping * joint_velocity
    # null-space projector N = I - Jᵀ (J Jᵀ + λI)⁻¹ J
    _, leak, _ = dposv(jacobian @ jacobian.T + DAMPING, jacobian @ posture)
    return np.minimum(np.maximum(jacobian.T @ (wrench - leak) + posture, -TORQUE_LIMITS), TORQUE_LIMITS)
