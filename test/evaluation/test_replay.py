"""Replays of demonstrations, and what the comparison of recorded and replayed sets and windows tells. No ROS."""

import argparse
import dataclasses
import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from rosbags.typesys import Stores, get_typestore

from onedp_ros.cli.replay import main
from onedp_ros.contract import NANOSECONDS, ContractError, Normalizer, task_contract
from onedp_ros.data.bags.reader import BagError, read_bag
from onedp_ros.data.bags.writer import BagWriter, EpisodeWriter
from onedp_ros.evaluation.replay import choose_policy
from onedp_ros.evaluation.replay_report import compare, compare_sets, table
from onedp_ros.evaluation.replayed import observe, read_recording, replay_offline, source_topics, stamps_of_windows
from onedp_ros.geometry import gripper_down, tool_yaw
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy

CONTRACT = task_contract("pnp_milk")
START = 1_700_000_000 * NANOSECONDS
MS = 1_000_000
TYPES = get_typestore(Stores.ROS2_JAZZY)


def commanded(stamp):
    """Where the arm should be: position, quaternion, opening."""
    t = min((stamp - START) / NANOSECONDS, 1.95)
    return np.array([0.5 + 0.1 * t, 0.0, 0.3]), gripper_down(0.5 * t), 0.08 if t < 1.0 else 0.0


@pytest.fixture
def demonstration(tmp_path):
    """A bag of two seconds under a contract, commands at 20 Hz where asked for: the arm follows what is commanded at once."""

    def write(contract=CONTRACT, targets=True):
        rng = np.random.default_rng(0)
        with EpisodeWriter(tmp_path / "demonstration", contract) as writer:
            for k in range(400):
                stamp = START + 5 * MS * k
                writer.add_joint_state(stamp, contract.arm.finger_joints, [0.02, 0.02])
                writer.add_pose(stamp, *commanded(stamp)[:2])
                if targets and k % 10 == 0:
                    writer.add_target(stamp, *commanded(stamp))
                if k % 4 == 0:
                    name = list(contract.cameras)[k // 4 % 2]
                    coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                    writer.add_image(name, stamp, cv2.resize(coarse, (160, 120)))
        return tmp_path / "demonstration"

    return write


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    offset = np.array([0.5, 0, 0.3, 1, 0, 0, 0, -1, 0, 0.04], np.float32)
    normalizer = Normalizer(np.zeros(9, np.float32), np.ones(9, np.float32), offset, np.full(10, 0.02, np.float32))
    path = tmp_path / "onedp_s"
    save_policy(path, Policy(CONTRACT, NetworkConfig(encoder_width=16, unet_channels=(16, 32)), normalizer, "onedp_s"), {})
    return path


class Copycat:
    """Says what was commanded, ``x`` m, ``yaw`` rad and ``opening`` m off."""

    def __init__(self, x=0.0, yaw=0.0, opening=0.0):
        self.off, self.windows = (x, yaw, opening), []

    def predict(self, windows):
        (window,) = windows
        self.windows.append(window)
        x, yaw, more = self.off
        rows = []
        for stamp in CONTRACT.action_stamps(window[-1].stamp):
            position, quaternion, opening = commanded(int(stamp))
            rows.append(
                CONTRACT.arm.encode_action(position + np.array([x, 0, 0]), gripper_down(tool_yaw(quaternion) + yaw), opening + more)
            )
        return np.stack(rows)[None]


def actions_of(bag, predictor):
    recording = read_recording(bag, CONTRACT)
    report, _ = compare(recording, replay_offline(bag, recording, predictor), {})
    return report["actions"]


def test_a_policy_that_fits_a_demonstration_differs_by_nothing(demonstration):
    actions = actions_of(demonstration(), Copycat())
    assert actions["against"] == "commands"
    assert actions["predictions"] == actions["compared"] == 99  # from every frame but the first, which has no partner
    assert actions["position_mm"]["max"] < 0.01
    assert actions["rotation_deg"]["max"] < 0.01
    assert actions["gripper_mm"]["p50"] < 1e-3


def test_differences_from_what_was_commanded_are_told_in_millimetres_and_degrees(demonstration):
    bag = demonstration()
    actions = actions_of(bag, Copycat(x=0.005, yaw=np.deg2rad(2.0), opening=0.003))
    for p in ("p50", "p95", "max"):
        assert actions["position_mm"][p] == pytest.approx(5.0, abs=0.01)
        assert actions["rotation_deg"][p] == pytest.approx(2.0, abs=0.01)
    assert actions["gripper_mm"]["p50"] == pytest.approx(3.0, abs=0.01)


def test_what_is_no_rotation_is_counted_as_the_live_node_does(demonstration):
    class Broken(Copycat):
        def predict(self, windows):
            return super().predict(windows) * (len(self.windows) % 3 != 0)

    bag = demonstration()
    recording = read_recording(bag, CONTRACT)
    replayed = replay_offline(bag, recording, Broken())
    assert (len(replayed.chunks), replayed.counts["chunk against the contract"]) == (66, 33)


def test_the_policy_is_shown_windows_spaced_by_dt_from_the_start_on(demonstration):
    predictor = Copycat()
    actions_of(demonstration(), predictor)
    assert predictor.windows[0][0] is predictor.windows[0][1]
    gaps = [w[1].stamp - w[0].stamp for w in predictor.windows[3:]]
    assert set(gaps) == {60 * MS}, "of 40 and 60 ms before, as near to 50, the older"


def test_a_recording_without_anything_to_compare_with_is_refused(demonstration):
    with pytest.raises(BagError, match=r"neither action/chunk nor target_pose and gripper_target.*record them, too"):
        actions_of(demonstration(targets=False), Copycat())


def test_windows_that_may_begin_before_the_recording_are_left_out():
    step = CONTRACT.dt_ns // 2
    stamps = [START + k * step for k in range(12)]
    predicted = {stamps[k] for k in (2, 5, 7, 10)}
    whole = stamps_of_windows(CONTRACT, stamps, predicted, whole=True)
    assert whole == {stamps[2]: (stamps[0], stamps[2]), **{stamps[k]: (stamps[k - 2], stamps[k]) for k in (5, 7, 10)}}
    known = stamps_of_windows(CONTRACT, stamps, predicted, whole=False)
    assert known == {s: w for s, w in whole.items() if s != stamps[2]}


def test_what_no_prediction_saw_is_history_only_when_far_from_others():
    stamps = [START + k * 10 * MS for k in range(8)]
    (window,) = stamps_of_windows(CONTRACT, stamps, {stamps[7]}, whole=True).values()
    assert window == (stamps[3], stamps[7]), "0, 30 and 60 ms were kept, of which 30 is nearest to 20"


def test_sets_are_told_apart_that_differ_that_are_paired_otherwise_and_that_are_not_there():
    def made(wrist, front, state=b"s"):
        return {"wrist": wrist, "front": front, "state": state}

    replayed = {s: made(b"w%d" % s, b"f%d" % s) for s in (1, 2, 3, 4, 6, 7)}
    recorded = {
        0: made(b"w0", b"f0"),  # before the replay's first
        1: made(b"w1", b"f1"),
        2: made(b"w2", b"f1"),  # an older frame of the front camera
        3: made(b"??", b"f3"),
        4: made(b"w4", b"f4", b"?"),
        5: made(b"w5", b"f5"),
        7: made(b"w7", b"f7"),
    }
    report, apart = compare_sets(recorded, replayed)
    which = report.pop("which")
    assert report == {
        "recorded": 7,
        "compared": 6,
        "equal": 2,
        "different": 2,
        "paired_otherwise": 1,
        "missing": 1,
        "only_replayed": 1,
    }
    assert which == [{"stamp": 3, "different": ["wrist"]}, {"stamp": 4, "different": ["state"]}]
    assert apart == {2, 5}
    nothing, _ = compare_sets(recorded, {})
    assert (nothing["recorded"], nothing["compared"], nothing["equal"]) == (7, 0, 0)


def test_of_a_camera_recorded_raw_and_compressed_one_is_taken(demonstration, tmp_path):
    bag = demonstration()
    compressed = TYPES.types["sensor_msgs/msg/CompressedImage"]
    topics = source_topics(CONTRACT, "raw") | source_topics(CONTRACT, "compressed")
    with BagWriter(tmp_path / "both", CONTRACT, topics) as writer:
        for topic, stamp, message in read_bag(bag, source_topics(CONTRACT, "raw")):
            writer.write(topic, stamp, TYPES.serialize_cdr(message, message.__msgtype__))
            if topic.endswith("image_raw"):
                image = np.asarray(message.data).reshape(120, 160, 3)
                data = cv2.imencode(".jpg", image[..., ::-1])[1].reshape(-1)
                packed = compressed(message.header, "rgb8; jpeg compressed bgr8", data)
                writer.write(f"{topic}/compressed", stamp, TYPES.serialize_cdr(packed, packed.__msgtype__))
    assert read_recording(bag, CONTRACT).transport == "raw"
    assert read_recording(tmp_path / "both", CONTRACT).transport == "raw"
    assert read_recording(tmp_path / "both", CONTRACT, "compressed").transport == "compressed"
    raw, jpeg = (list(observe(tmp_path / "both", CONTRACT, t, Counter())) for t in ("raw", "compressed"))
    assert [o.stamp for o in raw] == [o.stamp for o in jpeg]
    difference = np.abs(raw[5].images["wrist"].astype(int) - jpeg[5].images["wrist"])
    assert 0 < difference.mean() < 10


def given(**options):
    return argparse.Namespace(**{"policy": None, "method": None, "engine": None, "seed": None, **options})


def test_the_policy_is_the_recorded_one_unless_another_is_given(bundle, tmp_path):
    noted = {"model": str(bundle), "method": "onedp_s", "engine": "openvino", "threads": "2", "seed": "5"}
    same = {"model": bundle, "method": "onedp_s", "engine": "openvino", "threads": 2, "seed": 5}
    assert choose_policy(given(), noted, "pnp_milk") == same
    assert choose_policy(given(seed=3, engine="torch"), noted, "pnp_milk") == {**same, "seed": 3, "engine": "torch"}
    assert choose_policy(given(policy=bundle), {}, "pnp_milk")["method"] == "onedp_s"
    released = choose_policy(given(method="dp_ddim10"), {}, "pnp_milk")
    assert (released["model"].name, released["engine"], released["seed"]) == ("teacher", "auto", 0)
    with pytest.raises(ValueError, match=r"nowhere, which does not exist here; give it, or another, with --policy"):
        choose_policy(given(), {**noted, "model": str(tmp_path / "nowhere")}, "pnp_milk")


def test_the_command_tells_how_a_policy_fits_a_demonstration(demonstration, bundle, tmp_path, capsys):
    bag, out = demonstration(), tmp_path / "out"
    assert main([str(bag), "--policy", str(bundle), "--engine", "torch", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "99 of 99 compared with the commands" in said
    report = json.loads((out / "replay.json").read_text())
    assert 30 < report["actions"]["position_mm"]["p50"] < report["actions"]["position_mm"]["max"], "it knows only one place"
    assert table(report) == said.strip()
    assert cv2.imread(str(out / "replay.png")).shape[0] > 500


def test_a_recording_of_another_contract_is_refused_and_the_field_named(demonstration, bundle):
    bag = demonstration(dataclasses.replace(CONTRACT, slop=0.02))
    with pytest.raises(ContractError, match="'slop'"):
        main([str(bag), "--policy", str(bundle), "--engine", "torch"])


def test_real_time_needs_the_graph(capsys):
    with pytest.raises(SystemExit):
        main(["bag", "--real-time"])
    assert "give --graph, too" in capsys.readouterr().err
