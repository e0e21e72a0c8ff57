"""Continuous time: observations, chunks and targets come when they would come live."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onedp_ros.contract import NANOSECONDS, Contract, Observation
from onedp_ros.evaluation.rollout import rollout
from onedp_ros.geometry import gripper_down
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import EVALUATION_SEEDS
from onedp_ros.tasks.timed_drive import TARGET_HZ, TimedStep, Timing, drive_timed
from onedp_ros.twin.stepped import SteppedCell

MS = 1_000_000
LEAD = 0.1


@pytest.fixture
def cell(reach: Path) -> Iterator[SteppedCell]:
    cell = TASKS.get("reach").make(Contract.from_yaml(reach))
    assert isinstance(cell, SteppedCell)
    cell.reset(np.random.default_rng(0))
    yield cell
    cell.close()


class AlongX:
    """Plans to move along x at 0.1 m/s, and remembers at which time it saw what. ``offset`` (m): of its plans, in turn."""

    nfe = 1

    def __init__(self, cell: SteppedCell, *offset: float) -> None:
        self.cell, self.offset = cell, offset or (0.0,)
        self.begun: list[tuple[int, list[int]]] = []  # time (ns), stamps of the window

    def predict(self, windows: list[list[Observation]]) -> np.ndarray:
        contract = self.cell.contract
        stamp = windows[0][-1].stamp
        offset = self.offset[len(self.begun) % len(self.offset)]
        self.begun.append((self.cell.stamp, [o.stamp for o in windows[0]]))
        x = [0.4 + offset + 0.1 * s / NANOSECONDS for s in contract.action_stamps(stamp)]
        return np.stack([contract.arm.encode_action(np.array([a, 0.0, 0.3]), gripper_down(0.0), 0.05) for a in x])[None]


def drive(cell: SteppedCell, predictor: Any, latency: str | float, seconds: float) -> list[TimedStep]:
    driving = drive_timed(predictor, cell, Timing(latency, LEAD))
    return [next(driving) for _ in range(round(seconds * TARGET_HZ))]


def test_the_world_goes_on_while_the_policy_predicts(cell: SteppedCell) -> None:
    predictor = AlongX(cell)
    steps = drive(cell, predictor, 0.1, 1.2)
    starts = np.array([begun for begun, _ in predictor.begun])
    assert set(np.diff(starts)) <= {100 * MS}, "one begins as the other ends: there is always a newer observation"
    ages = [begun - window[-1] for begun, window in predictor.begun]
    assert max(ages) < 25 * MS, "from the newest set"
    for begun, (before, newest) in predictor.begun[3:]:
        assert abs(newest - before - cell.contract.dt_ns) < 25 * MS, f"at {begun}"
    assert [s.stamp for s in steps[:3]] == [0, round(NANOSECONDS / 60), round(NANOSECONDS / 30)]
    assert not any(s.followed for s in steps if s.stamp < 100 * MS) and all(s.followed for s in steps if s.stamp > 101 * MS)
    moving = steps[50:]  # the start has faded
    for step in moving:
        assert step.target.position[0] == pytest.approx(0.4 + 0.1 * (step.stamp / NANOSECONDS + LEAD), abs=1e-4)
    assert cell.cell.position[0] == pytest.approx(moving[-1].target.position[0], abs=0.03), "the arm follows"


def test_chunks_that_come_when_all_is_past_are_not_followed_and_the_arm_holds(cell: SteppedCell) -> None:
    start = cell.cell.position
    predictor = AlongX(cell)
    steps = drive(cell, predictor, 0.8, 2.0)
    assert len(predictor.begun) == 3
    assert not any(step.followed for step in steps)
    np.testing.assert_allclose(steps[-1].target.position, start, atol=1e-3)
    np.testing.assert_allclose(cell.cell.position, start, atol=1e-3)


def test_between_chunks_that_are_too_far_apart_the_arm_brakes_and_goes_on(cell: SteppedCell) -> None:
    steps = drive(cell, AlongX(cell), 0.4, 3.0)
    followed = [step.followed for step in steps]
    changes = np.diff(np.array(followed, int))
    assert (changes == 1).sum() > 3 and (changes == -1).sum() > 2, "each chunk is followed until it is stale"
    assert cell.cell.position[0] > 0.45


def test_the_same_seed_gives_the_same_episode_and_an_expert_succeeds(reach: Path) -> None:
    class Expert:
        nfe = 1

        def predict(self, windows: list[list[Observation]]) -> np.ndarray:
            return np.tile(cell.expert_action(), (1, cell.contract.horizon, 1))

    cell = TASKS.get("reach").make(Contract.from_yaml(reach))
    results = [rollout(Expert(), cell, EVALUATION_SEEDS, 1, 5.0, timing=Timing("v100")) for _ in range(2)]
    cell.close()
    assert results[0].success and 0.2 < results[0].time < 3.0
    assert results[0].time == results[1].time


def test_latencies() -> None:
    assert Timing("v100").seconds(1, 0.5) == pytest.approx(0.016)
    assert Timing("v100").seconds(10, 0.5) == pytest.approx(0.075)
    assert Timing("v100").seconds(100, 0.5) == pytest.approx(0.669)
    assert Timing("measured").seconds(10, 0.5) == 0.5
    assert Timing("0.3").seconds(10, 0.5) == Timing(0.3).seconds(1, 0.0) == 0.3
    for wrong in ("a100", "-0.1", "nan", "inf", "30"):
        with pytest.raises(ValueError, match=f"latency is '{wrong}', expected measured or v100, or seconds from 0 to 10"):
            Timing(wrong)
    with pytest.raises(ValueError, match=r"lead is 0.7 s"):
        Timing("v100", 0.7)


def test_what_only_knows_control_steps_is_refused(cell: SteppedCell) -> None:
    stepwise: Any = SimpleNamespace(contract=cell.contract)
    with pytest.raises(ValueError, match="reach is simulated in lockstep"):
        next(drive_timed(AlongX(cell), stepwise, Timing()))
