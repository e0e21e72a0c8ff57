"""From Cartesian targets to joint torques: a jerk-limited target filter and an impedance controller, both at 1 kHz."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dposv

from onedp_ros.control.joints import TORQUE_LIMITS
from onedp_ros.control.limits import LONGEST_STOP
from onedp_ros.geometry import multiply_xyzw, rotation_between, rotation_difference, xyzw_from_rotation_vector
from onedp_ros.settings import Range, check_fields, within

Array = NDArray[np.float64]
Triple = tuple[float, float, float]

STILL = (0.0, 0.0, 0.0)
STRONGEST_PUSH = 100.0  # N


@dataclasses.dataclass(frozen=True)
class ServoLimits:
    """Limits of the filtered motion: m/s, m/s², m/s³ and rad/s, rad/s², rad/s³; ``gain`` (1/s) is how fast an error closes.

    The section ``servo`` of a robot file. The FR3's own limits: https://frankarobotics.github.io/docs, "Robot and interface
    specifications".
    """

    gain: float = within(Range(1.0, 50.0, "1/s", "less lags by seconds, more is too fast for a 1 kHz loop"))
    linear_speed: float = within(Range(1e-4, 3.0, "m/s", "less is standing still, and an FR3 moves at 3 m/s at most"))
    linear_acceleration: float = within(Range(0.5, 9.0, "m/s²", "less hardly brakes, and an FR3 takes 9 m/s² at most"))
    linear_jerk: float = within(Range(10.0, 4500.0, "m/s³", "less hardly brakes, an FR3 takes 4500 m/s³ at most"))
    angular_speed: float = within(Range(1e-3, 2.5, "rad/s", "less is standing still, and an FR3 turns at 2.5 rad/s at most"))
    angular_acceleration: float = within(Range(1.0, 17.0, "rad/s²", "less hardly brakes, and an FR3 takes 17 rad/s² at most"))
    angular_jerk: float = within(Range(20.0, 8500.0, "rad/s³", "less hardly brakes, and an FR3 takes 8500 rad/s³ at most"))

    def __post_init__(self) -> None:
        check_fields(self, "servo")
        for kind in ("linear", "angular"):
            speed, acceleration, jerk = (getattr(self, f"{kind}_{name}") for name in ("speed", "acceleration", "jerk"))
            if (stop := speed / acceleration + acceleration / jerk + 2.0 / self.gain) > LONGEST_STOP:
                raise ValueError(
                    f"servo.{kind}_speed is {speed:g}, {kind}_acceleration {acceleration:g}, {kind}_jerk {jerk:g} and gain "
                    f"{self.gain:g}, so that a stop takes {stop:.2g} s, expected {LONGEST_STOP:g} s at most (speed/acceleration + "
                    f"acceleration/jerk + 2/gain)"
                )


class TargetFilter:
    """Follows a target that may jump with a pose that does not: acceleration and jerk stay within their limits, speed within the
    fraction ``speed_margin`` of its limit.

    Velocity is proportional to the error (bounded by the speed limit and the braking distance), acceleration to the velocity error,
    and its rate of change is bounded. Position and velocity in the base frame. Uses plain floats: three times as fast as NumPy on
    three numbers.
    """

    def __init__(self, limits: ServoLimits, speed_margin: float = 1.0) -> None:
        self.limits = limits
        self._speed, self._turn_rate = speed_margin * limits.linear_speed, speed_margin * limits.angular_speed
        self.jerk_fraction = 1.0  # of the jerk limits, in use
        self.reset(np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))

    def reset(self, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Start at rest at a pose: (3,) m, (4,) xyzw."""
        self._position: Triple = tuple(np.asarray(position, np.float64).tolist())
        self._quaternion: Sequence[float] = np.asarray(quaternion, np.float64).tolist()
        self._velocity = self._acceleration = self._spin = self._spin_up = STILL

    def take_over(self, position: ArrayLike, quaternion: ArrayLike, twist: ArrayLike) -> None:
        """Continue from a measured pose, (3,) m and (4,) xyzw, and twist (6,), m/s and rad/s, with the current accelerations."""
        self._position, self._quaternion = tuple(np.asarray(position).tolist()), np.asarray(quaternion).tolist()
        x, y, z, a, b, c = np.asarray(twist).tolist()
        self._velocity, self._spin = (x, y, z), (a, b, c)

    @property
    def position(self) -> Array:
        """(3,) m."""
        return np.array(self._position)

    @property
    def quaternion(self) -> Array:
        """(4,) xyzw."""
        return np.array(self._quaternion)

    @property
    def pose(self) -> tuple[Sequence[float], Sequence[float]]:
        """Position and quaternion as plain floats."""
        return self._position, self._quaternion

    @property
    def twist(self) -> Sequence[float]:
        """Velocity (m/s) and angular velocity (rad/s) as six plain floats."""
        return self._velocity + self._spin

    @property
    def velocity(self) -> Array:
        """(3,) m/s."""
        return np.array(self._velocity)

    @property
    def acceleration(self) -> Array:
        """(3,) m/s²."""
        return np.array(self._acceleration)

    @property
    def angular_velocity(self) -> Array:
        """(3,) rad/s."""
        return np.array(self._spin)

    @property
    def angular_acceleration(self) -> Array:
        """(3,) rad/s²."""
        return np.array(self._spin_up)

    @property
    def at_rest(self) -> bool:
        """Whether the motion is negligible: below 0.1 mm/s, 0.1 mrad/s, 0.01 m/s² and 0.01 rad/s²."""
        return max(map(abs, self._velocity + self._spin)) < 1e-4 and max(map(abs, self._acceleration + self._spin_up)) < 1e-2

    def step(self, position: Array, quaternion: Array, dt: float) -> None:
        """Advance by ``dt`` (s) towards the target: (3,) m, (4,) xyzw."""
        self.follow(*self.wanted(position.tolist(), quaternion.tolist()), dt)

    def wanted(self, position: Sequence[float], quaternion: Sequence[float], fraction: float = 1.0) -> tuple[Triple, Triple]:
        """This fraction of the velocity (m/s) and angular velocity (rad/s) that close the error to a target."""
        lim, (x, y, z) = self.limits, self._position
        error = position[0] - x, position[1] - y, position[2] - z
        turn = rotation_between(quaternion, self._quaternion)
        return (
            _closing(error, fraction, lim.gain, self._speed, lim.linear_acceleration),
            _closing(turn, fraction, lim.gain, self._turn_rate, lim.angular_acceleration),
        )

    def follow(self, velocity: Triple, spin: Triple, dt: float, fraction: float = 1.0, drag: float = 0.0) -> None:
        """Advance by ``dt`` (s) towards a wanted velocity (m/s) and angular velocity (rad/s), with this fraction of the
        accelerations and a drag (1/s) on the current velocity."""
        lim = self.limits
        push, twist = self.pushes(velocity, spin, fraction)
        if drag:
            push, twist = _plus(push, self._velocity, -drag), _plus(twist, self._spin, -drag)
        self._acceleration = _changed(push, self._acceleration, self.jerk_fraction * lim.linear_jerk * dt)
        self._spin_up = _changed(twist, self._spin_up, self.jerk_fraction * lim.angular_jerk * dt)
        self.coast(dt)

    def pushes(self, velocity: Triple, spin: Triple, fraction: float = 1.0) -> tuple[Triple, Triple]:
        """This fraction of the acceleration (m/s²) and angular acceleration (rad/s²) towards the wanted velocities."""
        lim = self.limits
        return (
            _towards(velocity, self._velocity, fraction, lim.gain, lim.linear_acceleration),
            _towards(spin, self._spin, fraction, lim.gain, lim.angular_acceleration),
        )

    @property
    def moment(self) -> tuple[Any, ...]:
        """The current pose, velocity and acceleration, for :meth:`restore`."""
        return self._position, self._quaternion, self._velocity, self._spin, self._acceleration, self._spin_up

    def restore(self, moment: tuple[Any, ...]) -> None:
        """Go back to a :attr:`moment`."""
        self._position, self._quaternion, self._velocity, self._spin, self._acceleration, self._spin_up = moment

    def coast(self, dt: float) -> None:
        """Advance by ``dt`` (s) at the current acceleration."""
        (px, py, pz), (vx, vy, vz), (ax, ay, az) = self._position, self._velocity, self._acceleration
        vx, vy, vz = self._velocity = vx + dt * ax, vy + dt * ay, vz + dt * az
        self._position = px + dt * vx, py + dt * vy, pz + dt * vz
        (x, y, z), (ax, ay, az) = self._spin, self._spin_up
        x, y, z = self._spin = x + dt * ax, y + dt * ay, z + dt * az
        i, j, k, w = multiply_xyzw(xyzw_from_rotation_vector(x * dt, y * dt, z * dt), self._quaternion)
        length = math.sqrt(i * i + j * j + k * k + w * w)
        self._quaternion = i / length, j / length, k / length, w / length

    def brake(self, dt: float, fraction: float = 1.0, drag: float = 0.0) -> None:
        """Advance by ``dt`` (s), decelerating; ``fraction`` and ``drag`` as in :meth:`follow`."""
        self.follow(STILL, STILL, dt, fraction, drag)


def _plus(a: Triple, b: Triple, scale: float) -> Triple:
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def _closing(error: Triple, fraction: float, gain: float, speed: float, max_acceleration: float) -> Triple:
    """A fraction of the velocity that closes the error: proportional, within the speed limit and the braking distance."""
    x, y, z = error
    distance = math.sqrt(x * x + y * y + z * z)
    # half of the acceleration is kept in reserve for the delay of braking
    scale = fraction * min(gain, min(speed, math.sqrt(max_acceleration * distance)) / max(distance, 1e-12))
    return scale * x, scale * y, scale * z


def _towards(wanted: Triple, velocity: Triple, fraction: float, gain: float, max_acceleration: float) -> Triple:
    """A fraction of the acceleration towards the wanted velocity, within its limit."""
    x, y, z = 4.0 * gain * (wanted[0] - velocity[0]), 4.0 * gain * (wanted[1] - velocity[1]), 4.0 * gain * (wanted[2] - velocity[2])
    scale = fraction * min(1.0, max_acceleration / max(math.sqrt(x * x + y * y + z * z), 1e-12))
    return scale * x, scale * y, scale * z


def _changed(wanted: Triple, acceleration: Triple, max_change: float) -> Triple:
    """The acceleration, changed towards the wanted one by at most ``max_change``."""
    ax, ay, az = acceleration
    x, y, z = wanted[0] - ax, wanted[1] - ay, wanted[2] - az
    scale = min(1.0, max_change / max(math.sqrt(x * x + y * y + z * z), 1e-12))
    return ax + scale * x, ay + scale * y, az + scale * z


def _bounded(vector: Array, limit: float) -> Array:
    x, y, z = vector.tolist()
    length = math.sqrt(x * x + y * y + z * z)
    return vector if length <= limit else vector * (limit / length)


@dataclasses.dataclass(frozen=True)
class ImpedanceGains:
    """Stiffness (N/m, Nm/rad), damping (Ns/m, Nms/rad), null-space gains (Nm/rad, Nms/rad) and error clips (m, rad)."""

    linear_stiffness: float = within(Range(10.0, 3000.0, "N/m", "the range of the FR3's own Cartesian impedance"))
    angular_stiffness: float = within(Range(1.0, 300.0, "Nm/rad", "the range of the FR3's own Cartesian impedance"))
    linear_damping: float = within(Range(10.0, 300.0, "Ns/m", "less oscillates, more is too much for a 1 kHz loop"))
    angular_damping: float = within(Range(1.0, 30.0, "Nms/rad", "less oscillates, more is too much for a 1 kHz loop"))
    posture_stiffness: float = within(Range(0.0, 100.0, "Nm/rad", "the wrist joints are limited to 12 Nm"))
    posture_damping: float = within(Range(0.1, 10.0, "Nms/rad", "less oscillates, more is too much for a 1 kHz loop"))
    linear_clip: float = within(Range(0.001, 0.1, "m", "less does not overcome friction, more pushes too hard"))
    angular_clip: float = within(Range(0.01, 1.0, "rad", "less does not overcome friction, more twists too hard"))

    def __post_init__(self) -> None:
        check_fields(self, "impedance")
        if (push := self.linear_stiffness * self.linear_clip) > STRONGEST_PUSH:
            raise ValueError(
                f"impedance.linear_stiffness is {self.linear_stiffness:g} N/m and linear_clip {self.linear_clip:g} m, so that the "
                f"arm pushes with {push:.0f} N, expected {STRONGEST_PUSH:g} N at most: ISO/TS 15066 allows 140 N on a hand"
            )


DAMPING = 1e-4 * np.eye(6)


def impedance_torque(
    gains: ImpedanceGains,
    reference: TargetFilter,
    position: Array,
    quaternion: Array,
    jacobian: Array,
    joint_velocity: Array,
    posture_error: Array,
    mass: Array | None = None,
) -> NDArray[np.floating[Any]]:
    """Joint torques (7,) Nm, without gravity and Coriolis: ``Jᵀ(K clip(e) + D(ẋ_ref - Jq̇)) + N(posture) + M J⁺ẍ_ref``.

    Args:
        reference: the filtered target, pose and velocity.
        position, quaternion: measured end effector, (3,) m and (4,) xyzw in the base frame.
        jacobian: (6, 7), linear rows first, base frame.
        joint_velocity: (7,) rad/s.
        posture_error: (7,) rad, preferred minus measured joint angles; acts in the null space only.
        mass: joint-space inertia matrix, (7, 7) kg m²; with it the arm follows the reference without impedance lag.
    """
    wrench = np.empty(6)
    twist = jacobian @ joint_velocity
    wrench[:3] = gains.linear_stiffness * _bounded(reference.position - position, gains.linear_clip)
    wrench[3:] = gains.angular_stiffness * _bounded(rotation_difference(reference.quaternion, quaternion), gains.angular_clip)
    wrench[:3] += gains.linear_damping * (reference.velocity - twist[:3])
    wrench[3:] += gains.angular_damping * (reference.angular_velocity - twist[3:])
    posture = gains.posture_stiffness * posture_error - gains.posture_damping * joint_velocity
    # null-space projector N = I - Jᵀ (J Jᵀ + λI)⁻¹ J
    gram = jacobian @ jacobian.T + DAMPING
    _, leak, _ = dposv(gram, jacobian @ posture)
    torque = jacobian.T @ (wrench - leak) + posture
    if mass is not None:
        _, push, _ = dposv(gram, np.concatenate([reference.acceleration, reference.angular_acceleration]))
        torque += mass @ (jacobian.T @ push)
    return np.minimum(np.maximum(torque, -TORQUE_LIMITS), TORQUE_LIMITS)
