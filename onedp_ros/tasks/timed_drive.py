"""Run a policy on the twin's cell in continuous time: the world moves on while it predicts, as in the live graph."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from onedp_ros.contract import NANOSECONDS, ContractError, Observation, ObservationHistory
from onedp_ros.control.chunk import ActionChunk, Target
from onedp_ros.control.handover import DEFAULT, HANDOVERS
from onedp_ros.control.safety import MeasuredPose, SafetyGate
from onedp_ros.control.schedule import ChunkSchedule
from onedp_ros.tasks.base import Environment
from onedp_ros.twin.stepped import SETTLING, SteppedCell

LEAD = 0.18  # s, action_node's default
TARGET_HZ = 60.0
MAX_OBSERVATION_AGE = 0.2  # s, policy_node's default: no prediction from an older observation
LATENCIES = ("measured", "v100")
LONGEST_LATENCY, LONGEST_LEAD = 10.0, 0.5  # s


@dataclasses.dataclass(frozen=True)
class Timing:
    """Timing of the closed loop.

    Args:
        latency: of a prediction, from the observation to the chunk, s; ``measured``: the time it takes on this machine; ``v100``: 9
            ms for the observation plus 6.6 ms per network evaluation, or 7 ms if there is only one: DDPM-100, DDIM-10 and OneDP on
            a V100 (https://arxiv.org/abs/2410.21257).
        lead: how far ahead of the clock chunks are sampled, s.
        handover: how a new chunk replaces the last, one of :data:`onedp_ros.control.handover.HANDOVERS`.

    Raises:
        ValueError: a value out of range or an unknown word; names what is expected.
    """

    latency: str | float = "measured"
    lead: float = LEAD
    handover: str = DEFAULT

    def __post_init__(self) -> None:
        try:
            seconds = 0.0 if self.latency in LATENCIES else float(self.latency)
        except ValueError:
            seconds = math.nan
        if not 0.0 <= seconds <= LONGEST_LATENCY:
            raise ValueError(
                f"latency is '{self.latency}', expected {' or '.join(LATENCIES)}, or seconds from 0 to {LONGEST_LATENCY:g}"
            )
        if not 0.0 <= self.lead <= LONGEST_LEAD:
            raise ValueError(f"lead is {self.lead} s, expected 0 to {LONGEST_LEAD:g} s")
        if self.handover not in HANDOVERS:
            raise ValueError(f"handover is '{self.handover}', expected {' or '.join(HANDOVERS)}")

    def seconds(self, nfe: int, took: float) -> float:
        """The latency (s) of a prediction with ``nfe`` network evaluations that took ``took`` s on this machine."""
        if self.latency == "measured":
            return took
        if self.latency == "v100":
            return 0.009 + (0.007 if nfe == 1 else 0.0066 * nfe)
        return float(self.latency)


@dataclasses.dataclass(frozen=True)
class TimedStep:
    """One target of the stream: simulated time (``stamp``, ns), whether a chunk is ``followed`` (else the arm holds), the target
    that the ``newest`` chunk alone plans for that time, and the measured duration of the newest prediction (``inference_ms``)."""

    stamp: int
    target: Target
    followed: bool
    newest: Target
    inference_ms: float


def drive_timed(predictor: Any, environment: Environment, timing: Timing) -> Iterator[TimedStep]:
    """Run a policy on a cell that was just reset, forever, as observation_node, policy_node, action_node and twin_node do.

    Observations follow the cameras' exposures. Each prediction starts from the newest observation as soon as the previous one has
    ended; its chunk arrives after the latency, and is dropped if it holds NaN or an invalid rotation, or if all of its actions are
    in the past by then. Targets are sent at :data:`TARGET_HZ`, ahead of the clock, through the same schedule and safety limits as
    live; without a chunk to follow the arm holds.

    Args:
        predictor: see :mod:`onedp_ros.policy.predictor`.
        environment: a :class:`~onedp_ros.twin.stepped.SteppedCell`.
        timing: latency, lead and handover.

    Yields:
        Each target, after it was followed until the next.

    Raises:
        ValueError: the environment only advances in whole control steps.
    """
    if not isinstance(environment, SteppedCell):
        raise ValueError(f"task {environment.contract.task} is simulated in lockstep, not in continuous time; omit the latency")
    cell = environment.cell
    gate = SafetyGate(cell.settings.safety)
    schedule = ChunkSchedule(timing.lead, gate.limits.stale_after, timing.handover)
    gate.start(environment.position, cell.quaternion, cell.target_opening)
    policy = _Policy(predictor, environment, timing)
    followed, settled_at, moving, tick = False, 0, False, 0
    while True:
        now, dt = round(tick * NANOSECONDS / TARGET_HZ), 1.0 / TARGET_HZ
        for chunk in policy.chunks:
            if gate.check(chunk, now):
                schedule.add(chunk, now, gate.target)
        policy.chunks.clear()
        wanted = schedule.sample(now)
        if wanted is not None:
            target, followed = gate.limit(wanted, dt), True
        else:
            target = gate.stop(dt, MeasuredPose(now, environment.position, cell.quaternion))
            if moving:
                cell.brake()
                settled_at, moving = now + round(SETTLING * NANOSECONDS), False
        # the targets that twin_node accepts
        settled = now >= settled_at and not (cell.stopping and not cell.filter.at_rest)
        if moving or (wanted is not None and settled and environment.may_follow(target.position, target.quaternion)):
            moving, cell.stopping = True, False
            environment.command(target.position, target.quaternion, target.opening if followed else cell.target_opening)
        tick += 1
        policy.advance(round(tick * 1000 / TARGET_HZ))
        last = schedule.chunk
        newest = target if wanted is None or last is None else last.at(now + round(timing.lead * NANOSECONDS))
        yield TimedStep(now, target, wanted is not None, newest, policy.inference_ms)


class _Policy:
    """policy_node, next to a cell that keeps moving. ``chunks``: those that arrived and were not consumed yet."""

    def __init__(self, predictor: Any, cell: SteppedCell, timing: Timing) -> None:
        self._predictor, self._cell, self._timing = predictor, cell, timing
        self._history = ObservationHistory(cell.contract)
        self._newest: Observation | None = None
        self._running: tuple[int, ActionChunk | None] | None = None  # when it ends, ns, and its chunk
        self.chunks: list[ActionChunk] = []
        self.inference_ms = 0.0
        self._newest = cell.observe()
        self._start()

    def advance(self, until: int) -> None:
        """Advance the world to ``until`` (ms)."""
        while self._cell.stamp < until * 1_000_000:
            ends = [until] if self._running is None else [until, -(-self._running[0] // 1_000_000)]
            self._cell.advance(min(ends))
            if self._cell.new_set():
                if self._newest is not None:
                    self._history.add_distant(self._newest)
                self._newest = self._cell.observe()
            if self._running is not None and self._running[0] <= self._cell.stamp:
                end, chunk = self._running
                self._running = None
                if chunk is not None and end <= chunk.stamps[-1]:
                    self.chunks.append(chunk)
            self._start()

    def _start(self) -> None:
        """Start a prediction if none is running and there is a new observation."""
        if self._running is not None or self._newest is None:
            return
        observation, self._newest = self._newest, None
        if self._cell.stamp - observation.stamp > MAX_OBSERVATION_AGE * NANOSECONDS:
            self._history.add_distant(observation)
            return
        self._history.add(observation)
        window = self._history.window()
        assert window is not None
        begin = time.perf_counter()
        actions = self._predictor.predict([window])[0]
        took = time.perf_counter() - begin
        self.inference_ms = 1e3 * took
        chunk = None
        with suppress(ContractError):
            chunk = ActionChunk.from_actions(self._cell.contract, observation.stamp, actions)
        latency = self._timing.seconds(self._predictor.nfe, took)
        self._running = self._cell.stamp + round(latency * NANOSECONDS), chunk
