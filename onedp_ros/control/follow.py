"""Turns the stream of targets into the servo's reference: follows the newest while it is fresh. The arm's watchdog."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.control.joints import JointGuard, JointMargins
from onedp_ros.control.limits import STALE_AFTER, WORKSPACE
from onedp_ros.control.servo import STILL, ServoLimits, TargetFilter, Triple
from onedp_ros.geometry import columns_from_pose, rotation_between
from onedp_ros.settings import Range, check_fields, within

Array = NDArray[np.float64]

SPEED_MARGIN = 0.9  # of the speed limits: a jerk-limited change of target lets the filter exceed them by that much
TICK = 0.001  # s, the cycle of the arm's controller
LOOK_EVERY = 10  # cycles between reads of the joints
# m, and elements of a rotation matrix: differences below which poses are the same to the robot, which reports in single precision,
# and above which they cannot belong to the same motion.
SAME_POSE, OTHER_MOTION = 1e-7, 1e-4
DEPTH = 12  # commands among which the last one that the robot received is searched
MAX_FAILED_SEARCHES = 50  # then searching ends: this robot reports its last command differently
MAX_COASTED_TICKS = 20  # missed commands that the robot extrapolates over; after more it stops

RESUME_DISTANCE = Range(
    0.005, 0.2, "m", "a smaller one than the arm's lag prevents following, a larger one allows unexpected motion"
)
INSET = Range(0.001, 0.03, "m", "less does not cover the arm's overshoot, more wastes a small workspace")
WALL_DECELERATION = Range(0.0, 9.0, "m/s²", "an FR3 takes 9 m/s² at most")
RESUME_ANGLE = Range(
    0.02, 1.0, "rad", "a smaller one than the arm's lag prevents following, a larger one allows unexpected rotation"
)


@dataclasses.dataclass(frozen=True)
class FollowLimits:
    """``workspace_min``, ``workspace_max`` (m, tool center point, base frame); ``stale_after`` (s): older targets are ignored;
    ``resume_distance`` (m), ``resume_angle`` (rad): following starts only with a target this close; ``inset`` (m): the reference
    keeps this distance from the walls of the workspace, so that the arm's overshoot stays inside; ``wall_deceleration`` (m/s²): how
    the reference brakes towards them."""

    workspace_min: tuple[float, float, float] = within(WORKSPACE)
    workspace_max: tuple[float, float, float] = within(WORKSPACE)
    stale_after: float = within(STALE_AFTER)
    resume_distance: float = within(RESUME_DISTANCE)
    resume_angle: float = within(RESUME_ANGLE)
    inset: float = within(INSET)
    wall_deceleration: float = within(WALL_DECELERATION)

    def __post_init__(self) -> None:
        check_fields(self, "follow")


class TargetFollower:
    """Makes a smooth reference from targets that may jump, stall and end.

    ``state`` is ``holding``, ``following`` or ``stopping``; ``columns`` is the reference in the robot's format, 16 numbers.
    Following starts with a fresh target near the reference; one that is too far away is counted in ``far`` and ignored. Without a
    fresh target the reference decelerates and holds.

    Args:
        joints: returns the current joint angles (7,) rad and Jacobian (6, 7); called every :data:`LOOK_EVERY` cycles, during which
            an arm within its limits hardly moves.
    """

    def __init__(
        self, limits: FollowLimits, servo: ServoLimits, margins: JointMargins, joints: Callable[[], tuple[Sequence[float], Array]]
    ) -> None:
        self._limits, self._guard, self._joints = limits, JointGuard(margins), joints
        self._low = [low + limits.inset for low in limits.workspace_min]
        self._high = [high - limits.inset for high in limits.workspace_max]
        self._stale_after = round(limits.stale_after * 1e9)
        self.filter = TargetFilter(servo, SPEED_MARGIN)
        self.far = 0

    def start(
        self,
        position: Sequence[float],
        quaternion: Sequence[float],
        now: int,
        motion: Callable[[], tuple[ArrayLike, ArrayLike, ArrayLike]] | None = None,
    ) -> None:
        """Hold a pose, (3,) m and (4,) xyzw. Targets stamped before ``now`` (ns) will not be followed.

        Args:
            motion: returns the measured pose, as above, and twist (6,), m/s and rad/s, of an arm that lags behind the reference,
                as under impedance control; a stop starts from there. None: the arm is at the reference.
        """
        self._motion = motion
        self.filter.reset(position, quaternion)
        self._seen, self._cycle = now, 0
        self._ticks = self._looked = self._since = 0
        self._sent: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=DEPTH)
        self._store()
        self._failed_searches = 0
        self._seen_joints = self._joints()
        self._guard.look(*self._seen_joints, 0.0)
        self._set_jerk()
        self.fraction, self._push = 1.0, (1.0, 0.0)
        self.state = "holding"
        self._goal = self.filter.pose

    def catch_up(self, ticks: int, commanded: Sequence[float] | None) -> None:
        """Start a cycle ``ticks`` after the previous one, from the pose that the robot reports as its last command.

        A robot that misses a command continues at the last acceleration (libfranka, "Packet handling"); continuing from any other
        pose would be a jump to it. Only the robot's last commanded pose tells how many commands were late.

        Args:
            commanded: that pose (``O_T_EE_c``), 16 numbers; None if the robot is not pose-controlled.
        """
        self._ticks += ticks
        if ticks == 1 and (commanded is None or max(map(abs, map(operator.sub, commanded, self.columns))) < SAME_POSE):
            self._failed_searches = 0
            return
        if commanded is not None and self._failed_searches < MAX_FAILED_SEARCHES:
            smallest, best = OTHER_MOTION, self._sent[-1][1]
            for tick, moment in reversed(self._sent):
                self.filter.restore(moment)
                self._coast(self._ticks - 1 - tick)
                mine = columns_from_pose(*self.filter.pose)
                away = max([abs(a - b) for a, b in zip(mine, commanded, strict=True)])
                if away < SAME_POSE:
                    self._failed_searches = 0
                    return
                if away < smallest:
                    smallest, best = away, self.filter.moment
            self._failed_searches += 1
            self.filter.restore(best)
            if smallest < OTHER_MOTION:
                return
        self._coast(ticks - 1)

    def _coast(self, ticks: int) -> None:
        for _ in range(min(ticks, MAX_COASTED_TICKS)):
            self.filter.coast(TICK)

    def step(self, stamp: int, position: Sequence[float], quaternion: Sequence[float], now: int, stop: bool = False) -> None:
        """Advance the reference by one cycle.

        Args:
            stamp: arrival time of the newest target, ns on the clock of ``now``.
            position, quaternion: that target, (3,) m and (4,) xyzw, plain floats.
            stop: decelerate, whatever the target.
        """
        fresh, turn = not stop and now - stamp < self._stale_after, self._cycle % LOOK_EVERY
        self._cycle += 1
        changed = fresh and stamp > self._seen
        if changed:
            self._seen = stamp
            self._accept(position, quaternion)
        elif not fresh and self.state == "following":
            self.state, changed = "stopping", True
            if self._motion is not None:
                self.filter.take_over(*self._motion())
        if turn == 1:  # reading the joints is spread over four cycles
            self._seen_joints = self._joints()
            self._looked, self._since = self._ticks, self._ticks - self._looked
        elif turn == 2:
            self._guard.look(*self._seen_joints, TICK * self._since)
        elif turn == 4:
            self._set_jerk()
        if self.state == "holding":
            self._store()
            return
        if changed or turn == 3:
            self._limit_to_joints()
        if self.state == "following":
            self.filter.follow(*self._wanted(self.fraction), TICK, *self._push)
        else:
            self.filter.brake(TICK, *self._push)
        if self.state == "stopping" and self.filter.at_rest:
            self.state, self._goal = "holding", self.filter.pose
            self.filter.reset(*self._goal)
        self._store()

    def _store(self) -> None:
        self._sent.append((self._ticks, self.filter.moment))
        self.columns = columns_from_pose(*self.filter.pose)

    def _accept(self, position: Sequence[float], quaternion: Sequence[float]) -> None:
        inside = tuple(min(max(p, low), high) for p, low, high in zip(position, self._low, self._high, strict=True))
        if self.state != "following":
            limits, (here, turned) = self._limits, self.filter.pose
            turn = math.hypot(*rotation_between(quaternion, turned))
            if math.dist(inside, here) > limits.resume_distance or turn > limits.resume_angle:
                self.far += 1
                return
            self.state = "following"
        self._goal = inside, quaternion

    def _wanted(self, fraction: float) -> tuple[Triple, Triple]:
        """The filter's wanted velocity, but no faster towards a wall than the arm can brake in front of it."""
        (x, y, z), spin = self.filter.wanted(*self._goal, fraction)
        here, brake = self.filter.pose[0], self._limits.wall_deceleration
        low, high = self._low, self._high
        velocity = (
            min(max(x, -math.sqrt(brake * max(here[0] - low[0], 0.0))), math.sqrt(brake * max(high[0] - here[0], 0.0))),
            min(max(y, -math.sqrt(brake * max(here[1] - low[1], 0.0))), math.sqrt(brake * max(high[1] - here[1], 0.0))),
            min(max(z, -math.sqrt(brake * max(here[2] - low[2], 0.0))), math.sqrt(brake * max(high[2] - here[2], 0.0))),
        )
        return velocity, spin

    def _set_jerk(self) -> None:
        limits = self.filter.limits
        self.filter.jerk_fraction = self._guard.jerk_fraction(limits.linear_jerk, limits.angular_jerk)

    def _limit_to_joints(self) -> None:
        """Compute the fractions of the filter's wanted motion that the joints can follow."""
        stopping = self.state == "stopping"
        velocity, spin = (STILL, STILL) if stopping else self._wanted(1.0)
        push, twist = self.filter.pushes(velocity, spin)
        self.fraction, fraction, drag = self._guard.fractions(self.filter.twist, velocity + spin, push + twist, stopping)
        self._push = fraction, drag
