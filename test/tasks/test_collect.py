"""Collecting demonstrations in the twin."""

from pathlib import Path

import numpy as np
import pytest

from onedp_ros.contract import Observation, ObservationAssembler, task_contract
from onedp_ros.data.bags.reader import read_bag
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import feed
from onedp_ros.tasks.collect import collect, demonstrate, take_over
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")


def first_uniforms(seed: int) -> tuple[np.random.Generator, bool]:
    """What a demonstration draws before its start, without recoveries: the generator after it, and whether it is disturbed."""
    rng = np.random.default_rng(seed)
    rng.uniform()
    return rng, bool(rng.uniform() < 0.5)


def test_demonstration_equals_what_the_environment_shows(tmp_path: Path) -> None:
    """Sets assembled from a bag are those that the lock-step cell shows a policy: same stamps, images and states."""
    seed = next(s for s in range(100) if not first_uniforms(s)[1])
    assert demonstrate(CONTRACT, seed, tmp_path / "bag", recoveries=0.0) == (True, "")
    assembler = ObservationAssembler(CONTRACT)
    sets, targets = {}, []
    for topic, stamp, message in read_bag(tmp_path / "bag"):
        if topic == "target_pose":
            targets.append((stamp, message.pose.position))
        feed(assembler, topic, message)
        sets.update({o.stamp: o for o in assembler.pop()})
    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(first_uniforms(seed)[0])
    assert len(targets) > 60
    for stamp, position in targets:
        observation = stepped.observe()
        recorded = sets[stamp] if stamp else observation  # a recording begins with one camera's frame, not with a set
        assert stamp == observation.stamp == stepped.stamp
        assert dict(recorded.image_stamps) == dict(observation.image_stamps)
        for name in CONTRACT.cameras:
            np.testing.assert_array_equal(recorded.images[name], observation.images[name])
        np.testing.assert_array_equal(recorded.state, observation.state)
        action = stepped.expert_action()
        np.testing.assert_array_equal(action[:3], np.array([position.x, position.y, position.z], np.float32))
        stepped.step(action)
    stepped.close()


def test_collect_keeps_successes_and_goes_on(tmp_path: Path) -> None:
    first = collect(tmp_path, 2, task="pnp_milk", jobs=1)
    assert first["kept"] == 2
    written = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = collect(tmp_path, 3, task="pnp_milk", jobs=2)
    assert again["kept"] == 3
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(kept) == 3 and kept.items() >= written.items()


def test_seeds_of_evaluations_are_never_demonstrated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed 100000 is reserved for evaluation \(from 100000 on\)"):
        collect(tmp_path, 2, task="pnp_milk", seed=99_999)


class Aside:
    """A policy that only ever goes to the right, with its hand closed."""

    def reset(self, seed: int) -> None:
        pass

    def predict(self, windows: list[list[Observation]]) -> np.ndarray:
        return np.tile(CONTRACT.arm.encode_action(np.array([0.5, 0.2, 0.35]), gripper_down(0.0), 0.0), (1, CONTRACT.horizon, 1))


def test_the_expert_takes_over_where_a_policy_led() -> None:
    stepped, moments = SteppedCell(CONTRACT, PnpMilk()), set()
    for seed in range(3):
        take_over(stepped, Aside(), seed, np.random.default_rng(seed), latest=12.0)
        moments.add(stepped.time)
        if stepped.time > 2.0:
            assert stepped.cell.position[1] == pytest.approx(0.2, abs=0.02)
        begin = stepped.time
        while not stepped.success() and stepped.time < begin + 12:
            stepped.step(stepped.expert_action())
        assert stepped.success()
    assert len(moments) == 3
    stepped.close()
