"""The schedule that samples targets from chunks by time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS
from onedp_ros.control.chunk import ActionChunk, Target
from onedp_ros.control.handover import DEFAULT, FIRST_FADE, FIRST_TIME, HANDOVERS, WINDOW
from onedp_ros.geometry import quaternion_from_rotation_vector, quaternion_multiply, rotation_difference

SPAN = 10_000_000  # ns over which the velocities of two plans are compared
MAX_OFFSET, MAX_DRIFT = 4.0, 1.0  # m or rad, m/s or rad/s: more is not an arm's motion, and would overshoot the plan


class ChunkSchedule:
    """Makes a plan from the most recent chunks and samples the current target from it.

    Samples by time, at ``now + lead``, never by index: actions whose time has passed are skipped.

    Args:
        lead: how far ahead of the clock to sample, s; covers the latency to the arm and the arm's lag behind its targets. May be
            changed at any time.
        stale_after: age since arrival, s, from which a chunk is no longer followed.
        handover: how a new chunk replaces the last, one of :data:`onedp_ros.control.handover.HANDOVERS`; ValueError otherwise.
    """

    def __init__(self, lead: float, stale_after: float, handover: str = DEFAULT) -> None:
        if handover not in HANDOVERS:
            raise ValueError(f"handover is '{handover}', expected {' or '.join(HANDOVERS)}")
        self.lead, self._stale_after = lead, round(stale_after * NANOSECONDS)
        self._handover = HANDOVERS[handover]
        self.clear()

    def clear(self) -> None:
        """Discard all chunks; follow none until the next one arrives."""
        self._recent: list[ActionChunk] = []
        self._plan: ActionChunk | None = None
        self._arrived = self._begun = self._since = 0
        self._fade = 0.0
        self._offset, self._drift = np.zeros(6), np.zeros(6)  # from the plan, at the time _since, and its rate, 1/s

    @property
    def chunk(self) -> ActionChunk | None:
        """The newest chunk."""
        return self._recent[-1] if self._recent else None

    def add(self, chunk: ActionChunk, now: int, rest: Target | None = None) -> None:
        """Add a chunk, which arrived at ``now`` (ns), to the plan. If the last one is stale or the clock was set back, the plan
        restarts from ``rest``, the last target sent."""
        time = now + round(self.lead * NANOSECONDS)
        if not self._fresh(now) or self._recent[-1].stamp > chunk.stamp:
            self.clear()
        times = time, time + SPAN
        if self._plan is None:
            self._begun = time
        before = [rest, rest] if self._plan is None else [self._target(t) for t in times]
        oldest = chunk.stamp - WINDOW * NANOSECONDS
        same = [c for c in self._recent if oldest < c.stamp < chunk.stamp and len(c.stamps) == len(chunk.stamps)]
        self._recent, self._arrived, self._since = [*same, chunk], now, time
        self._plan = self._handover.plan(self._recent)
        if self._handover.fade:
            first = time - self._begun < FIRST_TIME * NANOSECONDS
            self._fade = FIRST_FADE if first else self._handover.fade
            self._offset, later = (_offset(b, self._plan.at(t)) for b, t in zip(before, times, strict=True))
            self._drift = np.clip((later - self._offset) * (NANOSECONDS / SPAN), -MAX_DRIFT, MAX_DRIFT)

    def sample(self, now: int) -> Target | None:
        """The target at ``now`` (ns); None if stale: no chunk, none for ``stale_after``, or the last one has ended."""
        time = now + round(self.lead * NANOSECONDS)
        return self._target(time) if self._plan is not None and self._fresh(now) and time <= self._plan.stamps[-1] else None

    def _fresh(self, now: int) -> bool:
        return bool(self._recent) and 0 <= now - self._arrived <= self._stale_after

    def _target(self, time: int) -> Target:
        """The plan at ``time`` (ns) plus the remaining offset from it, which decays critically damped, so that neither the target
        nor its velocity jumps."""
        assert self._plan is not None
        target = self._plan.at(time)
        if not self._fade:
            return target
        fade, seconds = self._fade, max(time - self._since, 0) / NANOSECONDS
        left = math.exp(-seconds / fade) * (self._offset + (self._drift + self._offset / fade) * seconds)
        quaternion = quaternion_multiply(quaternion_from_rotation_vector(left[3:]), target.quaternion)
        return Target(target.position + left[:3], quaternion, target.opening)


def _offset(target: Target | None, planned: Target) -> NDArray[np.float64]:
    """Position (m) and rotation vector (rad) from a plan to a target, (6,); zero without a target."""
    if target is None:
        return np.zeros(6)
    with np.errstate(over="ignore"):
        offset = np.concatenate((target.position - planned.position, rotation_difference(target.quaternion, planned.quaternion)))
    return np.clip(offset, -MAX_OFFSET, MAX_OFFSET)
