"""From chunks to targets: sampled by time, and handed over from one chunk to the next."""

import itertools

import numpy as np
import pytest

from onedp_ros.contract import task_contract
from onedp_ros.control.chunk import ActionChunk, Target
from onedp_ros.control.handover import AGE, FADE, FEW, FIRST_FADE, WINDOW
from onedp_ros.control.schedule import ChunkSchedule
from onedp_ros.geometry import gripper_down, rotation_angle

CONTRACT = task_contract("pnp_milk")
MS = 1_000_000
STAMP = 1_000_000_000_000


def chunk_along_x(
    stamp: int = STAMP, speed: float = 0.2, aside: float = 0.0, yaw: float = 0.0, opening: float = 0.05
) -> ActionChunk:
    """A hand that is at x = 0.5 m at :data:`STAMP` and moves at ``speed``, ``aside`` (m) along y, turning by 2 rad/s."""
    stamps = CONTRACT.action_stamps(stamp)
    seconds = (stamps - STAMP) / 1e9
    positions = np.stack([0.5 + speed * seconds, np.full(16, aside), np.full(16, 0.3)], axis=1)
    quaternions = np.stack([gripper_down(yaw + 2.0 * s) for s in seconds])
    return ActionChunk(stamp, stamps, positions, quaternions, np.full(16, opening))


@pytest.fixture(params=["newest", "ensemble"])
def handover(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stream(schedule: ChunkSchedule, make, ticks: int, latency: int = 15, every: int = 1) -> list[Target]:
    """Targets of 60 a second, with a chunk ``make(i, stamp)`` at every so many ticks, made from what was seen ``latency`` ms
    before."""
    targets = []
    for i in range(ticks):
        now = STAMP + round(i * 1e9 / 60)
        if i % every == 0:
            schedule.add(make(i // every, now - latency * MS), now)
        target = schedule.sample(now)
        assert target is not None
        targets.append(target)
    return targets


def test_samples_ahead_by_lead_and_drops_what_has_passed(handover: str) -> None:
    schedule = ChunkSchedule(0.02, 0.25, handover)
    assert schedule.sample(STAMP) is None
    schedule.add(chunk_along_x(), STAMP + 30 * MS)
    target = schedule.sample(STAMP + 30 * MS)
    assert target is not None
    assert target.position[0] == pytest.approx(0.5 + 0.2 * 0.05, abs=1e-6)


def test_newest_follows_the_newest_chunk_at_once() -> None:
    schedule = ChunkSchedule(0.0, 0.25, "newest")
    schedule.add(chunk_along_x(), STAMP)
    schedule.add(chunk_along_x(STAMP + 100 * MS, aside=0.05), STAMP + 120 * MS)
    target = schedule.sample(STAMP + 150 * MS)
    assert target is not None
    np.testing.assert_allclose(target.position, [0.5 + 0.2 * 0.15, 0.05, 0.3], atol=1e-6)


def test_is_stale_after_the_time_without_a_chunk_and_when_time_runs_back(handover: str) -> None:
    schedule = ChunkSchedule(0.0, 0.25, handover)
    schedule.add(chunk_along_x(), STAMP)
    assert schedule.sample(STAMP + 250 * MS) is not None
    assert schedule.sample(STAMP + 251 * MS) is None
    assert schedule.sample(STAMP - 1) is None
    schedule.clear()
    assert schedule.sample(STAMP) is None


def test_is_stale_when_the_chunk_has_run_out(handover: str) -> None:
    schedule = ChunkSchedule(0.0, 5.0, handover)
    schedule.add(chunk_along_x(), STAMP)
    assert schedule.sample(STAMP + 700 * MS) is not None
    assert schedule.sample(STAMP + 701 * MS) is None


def test_chunks_that_plan_the_same_motion_are_followed_without_a_lag(handover: str) -> None:
    schedule = ChunkSchedule(0.18, 0.25, handover)
    for i, target in enumerate(stream(schedule, lambda _, stamp: chunk_along_x(stamp), 30)):
        seconds = i / 60 + 0.18
        np.testing.assert_allclose(target.position, [0.5 + 0.2 * seconds, 0.0, 0.3], atol=1e-6)
        assert rotation_angle(target.quaternion, gripper_down(2.0 * seconds)) < 2e-4


def test_the_ensemble_takes_the_shaking_out_of_independent_draws() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.0, [0.006, 0.02], size=(240, 2))

    def shaking(handover: str) -> tuple[float, float]:
        """RMS of the second difference across the motion (m), and of the yaw (rad)."""
        schedule = ChunkSchedule(0.18, 0.25, handover)
        targets = stream(schedule, lambda i, s: chunk_along_x(s, aside=draws[i, 0], yaw=draws[i, 1]), 240)[30:]
        across = np.diff([t.position[1] for t in targets], n=2)
        turns = np.diff([rotation_angle(t.quaternion, gripper_down(1.0)) for t in targets if t.position[0] > 0.62], n=2)
        return float(np.sqrt(np.mean(across**2))), float(np.sqrt(np.mean(turns**2)))

    (across, turning), (across_newest, turning_newest) = shaking("ensemble"), shaking("newest")
    assert across < 0.1 * across_newest
    assert turning < 0.1 * turning_newest


def test_two_ways_are_never_averaged() -> None:
    schedule = ChunkSchedule(0.18, 0.25, "ensemble")
    left = stream(schedule, lambda i, s: chunk_along_x(s, aside=0.15 if i % 4 else -0.15), 120)[60:]
    across = np.array([t.position[1] for t in left])
    assert across.min() > 0.14, "the side of the most"


def faded(seconds: float, fade: float) -> float:
    """What remains of an offset."""
    return float((1 + seconds / fade) * np.exp(-seconds / fade))


def test_a_plan_that_changes_is_followed_within_the_fade_and_without_a_jump() -> None:
    schedule = ChunkSchedule(0.18, 0.25, "ensemble")
    targets = stream(schedule, lambda i, s: chunk_along_x(s, aside=0.05 if i >= 30 else 0.0), 90)
    across = np.array([t.position[1] for t in targets])
    assert np.abs(np.diff(across, n=2)).max() < 0.05 / (60 * FADE) ** 2
    assert across[30] < 1e-9
    assert across[30 + round(60 * (FEW + 4 * FADE))] > 0.85 * 0.05, "old plans do not hold it back"


@pytest.mark.parametrize("every", [1, 6, 12])
def test_no_target_jumps_however_seldom_chunks_come(every: int) -> None:
    schedule = ChunkSchedule(0.18, 0.25, "ensemble")
    targets = stream(schedule, lambda i, s: chunk_along_x(s, aside=0.01 * (i % 2), yaw=0.1 * (i % 2)), 120, every=every)
    steps = np.diff([t.position for t in targets], axis=0) - [0.2 / 60, 0, 0]
    assert np.linalg.norm(steps, axis=1).max() < 0.01 * (1 / 60 / FADE) + 1e-6
    turns = [rotation_angle(a.quaternion, b.quaternion) for a, b in itertools.pairwise(targets)]
    assert max(turns) < 2.0 / 60 + 0.1 * (1 / 60 / FADE) + 1e-6


def test_the_opening_is_the_newest_chunks() -> None:
    schedule = ChunkSchedule(0.18, 0.25, "ensemble")
    openings = [t.opening for t in stream(schedule, lambda i, s: chunk_along_x(s, opening=0.08 if i < 20 else 0.0), 30)]
    assert openings[19] == pytest.approx(0.08) and openings[20] == 0.0


def test_following_begins_where_the_target_rests() -> None:
    schedule = ChunkSchedule(0.18, 0.25, "ensemble")
    rest = Target(np.array([0.5, 0.0, 0.25]), gripper_down(0.3), 0.08)
    schedule.add(chunk_along_x(), STAMP, rest)
    first = schedule.sample(STAMP)
    assert first is not None
    np.testing.assert_allclose(first.position, rest.position, atol=1e-9)
    assert rotation_angle(first.quaternion, rest.quaternion) < 1e-6
    later = schedule.sample(STAMP + 250 * MS)
    assert later is not None and later.position[2] == pytest.approx(0.3 - 0.05 * faded(0.25, FIRST_FADE), abs=1e-6)


@pytest.mark.parametrize("why", ["cleared", "stale", "clock set back"])
def test_what_was_before_a_gap_is_forgotten(why: str) -> None:
    schedule = ChunkSchedule(0.0, 0.25, "ensemble")
    for i in range(5):
        schedule.add(chunk_along_x(STAMP + 10 * i * MS, aside=0.02), STAMP + 10 * i * MS)
    now = STAMP + {"cleared": 60, "stale": 400, "clock set back": -500}[why] * MS
    if why == "cleared":
        schedule.clear()
    schedule.add(chunk_along_x(now), now)
    target = schedule.sample(now)
    assert target is not None and target.position[1] == pytest.approx(0.0, abs=1e-12)


def test_chunks_of_other_lengths_are_not_mixed() -> None:
    schedule = ChunkSchedule(0.0, 0.25, "ensemble")
    schedule.add(chunk_along_x(), STAMP)
    whole = chunk_along_x(STAMP + 20 * MS, aside=0.01)
    short = ActionChunk(whole.stamp, whole.stamps[:8], whole.positions[:8], whole.quaternions[:8], whole.openings[:8])
    schedule.add(short, STAMP + 20 * MS)
    target = schedule.sample(STAMP + 220 * MS)
    assert target is not None and 0.0 < target.position[1] < 0.01


def test_old_chunks_lose_their_say() -> None:
    assert WINDOW > 2 * AGE
    schedule = ChunkSchedule(0.0, 1.0, "ensemble")
    schedule.add(chunk_along_x(aside=0.02), STAMP)
    now = STAMP + round(1.1e9 * WINDOW)
    schedule.add(chunk_along_x(now), now)
    target = schedule.sample(now + 300 * MS)
    assert target is not None and target.position[1] == pytest.approx(0.02 * faded(0.3, FIRST_FADE), abs=1e-6)


def test_unknown_handover() -> None:
    with pytest.raises(ValueError, match="handover is 'best', expected ensemble or newest"):
        ChunkSchedule(0.0, 0.25, "best")
