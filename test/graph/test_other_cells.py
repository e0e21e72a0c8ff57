"""A cell with topics, cameras and a gripper of its own, whose arm is led by hand: from its bag to the live graph."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import zarr

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, task_contract
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.data.convert import ConvertError, convert
from onedp_ros.evaluation.replay_live import replay_in_graph
from onedp_ros.evaluation.replay_report import compare
from onedp_ros.evaluation.replayed import digests, observe, read_recording
from onedp_ros.geometry import gripper_down
from onedp_ros.learning.distill import distill
from onedp_ros.learning.train import train
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.settings import PretrainingSettings
from onedp_ros.policy.networks import NetworkConfig

MS = NANOSECONDS // 1000
CELL = Contract.from_dict(
    {
        **task_contract("pnp_milk").to_dict(),
        "task": "other_cell",
        "base_frame": "base_link",
        "cameras": {name: {"topic": f"cell/{name}/image", "height": 36, "width": 48} for name in ("left", "right", "wrist")},
        "crop": [32, 40],
        "state": [
            {"name": "position", "kind": "position", "topic": "ur/tcp_pose"},
            {"name": "rotation", "kind": "rotation_6d", "topic": "ur/tcp_pose"},
            {"name": "knuckle", "kind": "opening", "topic": "ur/joint_states", "joints": ["left_knuckle"], "range": [0.8, 0.0]},
        ],
        "action": [
            {"name": "position", "kind": "position", "topic": "ur/target"},
            {"name": "rotation", "kind": "rotation_6d", "topic": "ur/target"},
            {"name": "opening", "kind": "opening", "topic": "ur/gripper", "range": [0.0, 0.085]},
        ],
    }
)
SECONDS = 2
START = 1_700_000_000 * NANOSECONDS


def position(stamp: int) -> np.ndarray:
    return np.array([0.4, 0.1 * (stamp - START) / NANOSECONDS, 0.2])


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (36, 48 + 100, 3), dtype=np.uint8)
    events = [(START + k * 5 * MS, 0, "state", k) for k in range(-1, SECONDS * 200 + 2)]
    events += [(START + k * 33 * MS + 11 * MS * i, 1, c, k) for i, c in enumerate(CELL.cameras) for k in range(SECONDS * 30)]
    with EpisodeWriter(tmp_path_factory.mktemp("bags") / "by_hand", CELL) as writer:
        for stamp, _, what, k in sorted(events):
            if what == "state":
                writer.add_joint_state(stamp, ["elbow", "left_knuckle"], [1.0, 0.8 if stamp > START + NANOSECONDS else 0.0])
                writer.add_pose(stamp, position(stamp), gripper_down(0.3))
            else:
                writer.add_image(what, stamp, scene[:, k : k + 48])
    return writer.path


def test_from_the_bag_to_the_live_graph(bag, tmp_path):
    with pytest.raises(ConvertError, match=r"it lacks the topics \['ur/gripper', 'ur/target'\].*--kinesthetic"):
        convert([bag], tmp_path / "none.zarr", workers=1, progress=False)
    report = convert([bag], tmp_path / "data.zarr", workers=1, progress=False, kinesthetic=True)
    assert (report.episodes, report.warnings) == (1, {}) and report.steps >= 20 * SECONDS - 3
    root = zarr.open_group(str(tmp_path / "data.zarr"), mode="r")
    state, action = root["data/state"][:], root["data/action"][:]
    assert state.shape == (report.steps, 10) and action.shape == (report.steps, 10)
    np.testing.assert_array_equal(action[:-1, :3], state[1:, :3])  # what was measured a step later
    np.testing.assert_allclose(np.diff(state[:, 1]), 0.1 / 20, atol=2e-3)
    assert action[0, 9] == pytest.approx(0.085, abs=1e-6) and action[-1, 9] == pytest.approx(0.0, abs=1e-6)
    network = NetworkConfig(encoder_width=16, unet_channels=(16, 32), kernel=3, step_dim=16, keypoints=8, features=8)
    train(tmp_path / "data.zarr", tmp_path / "teacher", network, PretrainingSettings(steps=3, batch_size=4, mixed_precision="no"))
    # What so short a training makes of noise is no rotation; of zeros, as OneDP-D begins with, it is one.
    settings = find_method("onedp_d").settings(steps=3, batch_size=4)
    distill(tmp_path / "teacher", tmp_path / "data.zarr", "onedp_d", tmp_path / "policy", settings)

    recording = read_recording(bag, CELL)
    policy = {"model": tmp_path / "policy", "method": "onedp_d", "engine": "torch", "seed": 0, "threads": 1}
    replayed = replay_in_graph(bag, recording, logs=tmp_path / "logs", **policy)
    dropped: Counter[str] = Counter()
    expected = {o.stamp: digests(o) for o in observe(bag, CELL, recording.transport, dropped)}
    assert len(expected) > 50 and not {reason for reason in dropped if "slop" not in reason and "late" not in reason}
    result, _ = compare(recording, replayed, expected)
    assert result["observations"]["different"] == 0 and result["observations"]["equal"] >= 0.9 * len(expected)
    assert len(replayed.chunks) >= 0.9 * len(expected)
    assert result["actions"]["against"] == "nothing"


def test_two_arms_are_not_led_by_hand(bag, tmp_path):
    state = [f.to_dict() for f in CELL.state]
    second = [{**f, "name": f"second_{f['name']}", "topic": f"second/{f['topic']}"} for f in state]
    two = dataclasses.replace(Contract.from_dict({**CELL.to_dict(), "state": state + second}), task="other_cell")
    with pytest.raises(ContractError, match="differ in 'state'"):
        convert([bag], tmp_path / "none.zarr", two, workers=1, progress=False, kinesthetic=True)
