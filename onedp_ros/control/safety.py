"""The gate between policy and arm: rejects invalid chunks, limits every target, and stops the arm when none arrives."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.contract import NANOSECONDS
from onedp_ros.control.chunk import ActionChunk, Target
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.geometry import quaternion_from_rotation_vector, quaternion_multiply, rotation_angle, rotation_difference

Array = NDArray[np.float64]

LONGEST_STEP = 0.05  # s: a longer pause between two targets does not allow a larger step
SMOOTHING = 0.05  # s over which the speed that a stop starts from is averaged
AT_REST = 1e-3  # m/s and rad/s
SPAN = 0.02  # s over which the speed of the measured pose is estimated
SLOW, SLOW_TURN = 0.02, 0.1  # m/s, rad/s: a slower arm is at rest
LONGEST_BRAKE = 0.5  # s that the measured pose may take to come to rest

# Poses farther apart than these speeds allow do not belong to one arm. An FR3 moves at up to 3 m/s and turns at 2.5 rad/s, but its
# wrist alone is faster.
FASTEST, FASTEST_TURN = 3.0, 10.0  # m/s, rad/s
JITTER, JITTER_TURN = 0.01, 0.05  # m, rad


def pose_fault(position: ArrayLike, quaternion: ArrayLike) -> str:
    """Why this is not a valid pose, ``not_finite`` or ``not_a_rotation``; empty if it is."""
    values = np.concatenate([np.asarray(position, np.float64), np.asarray(quaternion, np.float64)])
    if not np.all(np.isfinite(values)):
        return "not_finite"
    return "" if abs(float(np.linalg.norm(values[3:])) - 1.0) < 0.01 else "not_a_rotation"


@dataclasses.dataclass(frozen=True)
class MeasuredPose:
    """The end effector's pose at ``stamp`` (ns): position (3,) m and unit quaternion xyzw (4,), base frame."""

    stamp: int
    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]


def jump(before: MeasuredPose, after: MeasuredPose) -> str:
    """Describe an impossible motion between two measured poses; empty if the motion is possible."""
    dt = abs(after.stamp - before.stamp) / NANOSECONDS
    away, turn = math.dist(after.position, before.position), rotation_angle(after.quaternion, before.quaternion)
    if away <= FASTEST * dt + JITTER and turn <= FASTEST_TURN * dt + JITTER_TURN:
        return ""
    return f"jumped by {away:.2f} m and {turn:.2f} rad within {dt:.3f} s"


class SafetyGate:
    """Checks chunks and limits targets. ``rejected`` and ``limited`` count by reason.

    Every target it returns is finite, has a unit quaternion, lies in the workspace, and is no farther from the last one than the
    speed limits allow; except in a stop, which may go back to the measured pose.
    """

    def __init__(self, limits: SafetyLimits) -> None:
        self.limits = limits
        self.rejected: Counter[str] = Counter()
        self.limited: Counter[str] = Counter()
        self._low, self._high = np.array(limits.workspace_min), np.array(limits.workspace_max)
        self._stamp: int | None = None
        self.target: Target | None = None
        self._rest()

    def _rest(self) -> None:
        self._velocity, self._angular_velocity = np.zeros(3), np.zeros(3)
        self._settled, self._trail = True, deque[MeasuredPose]()

    def start(self, position: ArrayLike, quaternion: ArrayLike, opening: float | None = None) -> Target:
        """Start at rest at the measured pose, (3,) m and (4,) xyzw, and return it as the first target. ``opening`` defaults to the
        last target's.

        Raises:
            ValueError: the pose is not finite, has an invalid rotation, or lies outside the workspace.
        """
        p, q = np.asarray(position, np.float64), np.asarray(quaternion, np.float64)
        if pose_fault(p, q):
            raise ValueError(f"measured pose {p.tolist()}, {q.tolist()} is invalid; check the robot's state publisher")
        if np.any(p < self._low) or np.any(p > self._high):
            raise ValueError(
                f"end effector at {p.round(3).tolist()} m is outside the workspace {self._low.tolist()} to {self._high.tolist()}; "
                f"move it inside, or widen the workspace in the robot's file"
            )
        opening = self._last().opening if opening is None else opening
        self.target = Target(
            p.copy(), q / np.linalg.norm(q), min(max(float(opening), self.limits.opening[0]), self.limits.opening[1])
        )
        self._rest()
        return self.target

    def check(self, chunk: ActionChunk, now: int) -> bool:
        """Whether the chunk that arrived at ``now`` (ns) may be followed; counts the reason if not."""
        reason = self._fault(chunk, now)
        if reason is not None:
            self.rejected[reason] += 1
            return False
        self._stamp = chunk.stamp
        return True

    def _fault(self, chunk: ActionChunk, now: int) -> str | None:
        tolerance = self.limits.future_tolerance * NANOSECONDS
        arrays = (chunk.positions, chunk.quaternions, chunk.openings)
        if not all(np.all(np.isfinite(a)) for a in arrays):
            return "not_finite"
        if np.any(np.abs(np.linalg.norm(chunk.quaternions, axis=-1) - 1.0) > 0.01):
            return "not_a_rotation"
        if len(chunk.stamps) < 2 or np.any(np.diff(chunk.stamps) <= 0):
            return "times_not_rising"
        if chunk.stamp - now > tolerance:
            return "from_the_future"
        if now - chunk.stamp > self.limits.max_chunk_age * NANOSECONDS:
            return "too_old"
        if self._stamp is not None and chunk.stamp < self._stamp <= now + tolerance:  # otherwise the clock was set back
            return "out_of_order"
        return None

    def limit(self, target: Target, dt: float) -> Target:
        """The target to send ``dt`` (s) after the last one: towards ``target`` (finite), within workspace and speeds."""
        last, dt = self._last(), min(max(dt, 0.0), LONGEST_STEP)
        self._settled = False
        self._trail.clear()
        inside = np.clip(target.position, self._low, self._high)
        self.limited["workspace"] += bool(np.any(np.abs(inside - target.position) > 1e-9))
        step, fast = _shortened(inside - last.position, self.limits.linear_speed * dt)
        self.limited["linear_speed"] += fast
        turn, fast = _shortened(rotation_difference(target.quaternion, last.quaternion), self.limits.angular_speed * dt)
        self.limited["angular_speed"] += fast
        opening = min(max(target.opening, self.limits.opening[0]), self.limits.opening[1])
        self.limited["opening"] += abs(opening - target.opening) > 1e-9
        if dt > 0:
            fraction = min(dt / SMOOTHING, 1.0)
            self._velocity = self._velocity + fraction * (step / dt - self._velocity)
            self._angular_velocity = self._angular_velocity + fraction * (turn / dt - self._angular_velocity)
        return self._advance(step, turn, opening)

    def stop(self, dt: float, measured: MeasuredPose | None = None) -> Target:
        """The target to send ``dt`` (s) after the last one when there is no chunk to follow: decelerates, then holds.

        The arm lags behind the targets, so letting the targets come to rest would move it farther than necessary. With the newest
        ``measured`` pose the target is set there at every step until the arm is at rest: its own limits then decide how hard it
        brakes, whatever its controller.
        """
        dt = min(max(dt, 0.0), LONGEST_STEP)
        if measured is not None and not self._settled:
            return self._follow_to_rest(measured)
        self._trail.clear()
        self._velocity = _slowed(self._velocity, self.limits.linear_deceleration * dt)
        self._angular_velocity = _slowed(self._angular_velocity, self.limits.angular_deceleration * dt)
        self._settled = self._settled or not self.moving
        return self._advance(self._velocity * dt, self._angular_velocity * dt, self._last().opening)

    def _follow_to_rest(self, measured: MeasuredPose) -> Target:
        trail = self._trail
        if not trail or measured.stamp > trail[-1].stamp:
            trail.append(measured)
        seconds = [(measured.stamp - m.stamp) / NANOSECONDS for m in trail]
        if seconds[0] >= SPAN:
            before = [m for m, past in zip(trail, seconds, strict=True) if past >= SPAN][-1]
            past = (measured.stamp - before.stamp) / NANOSECONDS
            self._velocity = (measured.position - before.position) / past
            self._angular_velocity = rotation_difference(measured.quaternion, before.quaternion) / past
            slow = np.linalg.norm(self._velocity) < SLOW and np.linalg.norm(self._angular_velocity) < SLOW_TURN
            if slow or seconds[0] > LONGEST_BRAKE:
                self._rest()
        position = np.clip(measured.position, self._low, self._high)
        self.target = Target(position, measured.quaternion, self._last().opening)
        return self.target

    @property
    def moving(self) -> bool:
        """Whether a stop is still in progress."""
        return bool(self._trail or max(np.linalg.norm(self._velocity), np.linalg.norm(self._angular_velocity)) > AT_REST)

    def _last(self) -> Target:
        if self.target is None:
            raise RuntimeError("safety gate has no measured pose to start from; call start() first")
        return self.target

    def _advance(self, step: Array, turn: Array, opening: float) -> Target:
        last = self._last()
        quaternion = quaternion_multiply(quaternion_from_rotation_vector(turn), last.quaternion)
        position = np.clip(last.position + step, self._low, self._high)
        self.target = Target(position, quaternion / math.sqrt(float(quaternion @ quaternion)), opening)
        return self.target


def _shortened(vector: Array, limit: float) -> tuple[Array, bool]:
    length = float(np.linalg.norm(vector))
    return (vector * (limit / length), True) if length > limit else (vector, False)


def _slowed(velocity: Array, loss: float) -> Array:
    speed = float(np.linalg.norm(velocity))
    return velocity * max(1.0 - loss / speed, 0.0) if speed > 0 else velocity
