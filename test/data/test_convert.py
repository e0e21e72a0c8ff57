"""Conversion: what the live node would have seen, beside what was commanded then."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from recordings import ARM, HALF_FRAME, START, Record, frame, position

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, ObservationAssembler, decode_action
from onedp_ros.data.bags import EpisodeWriter, read_bag
from onedp_ros.data.convert import ConvertError, convert, main
from onedp_ros.data.episodes import grid_segments, read_episodes
from onedp_ros.data.messages import feed
from onedp_ros.geometry import gripper_down, rotation_angle


def test_store_has_the_replay_buffer_layout(record: Record, contract: Contract, tmp_path: Path) -> None:
    bags = [record("a"), record("b", seconds=1.0)]
    report = convert(bags, tmp_path / "data.zarr", contract, workers=2, progress=False)
    root = zarr.open_group(str(tmp_path / "data.zarr"), mode="r")
    n = report.steps
    assert {name: (a.shape, str(a.dtype)) for name, a in root["data"].arrays()} == {
        "wrist": ((n, 120, 160, 3), "uint8"),
        "front": ((n, 120, 160, 3), "uint8"),
        "state": ((n, 9), "float32"),
        "action": ((n, 10), "float32"),
    }
    assert root["meta/episode_ends"][:].tolist() == [40, 60]
    assert root["meta/episode_ends"].dtype == np.int64
    assert json.loads((tmp_path / "data.zarr" / ".zgroup").read_text()) == {"zarr_format": 2}
    attributes = dict(root.attrs)
    assert Contract.from_dict(attributes["contract"]) == contract
    assert [(e["bag"], e["steps"], e["seed"]) for e in attributes["episodes"]] == [("a", 40, 3), ("b", 20, 3)]
    assert attributes["gaps"] == 0
    assert os.listdir(tmp_path / "data.zarr" / "data" / "wrist")


def test_steps_are_complete_sets_with_the_command_of_their_stamp(record: Record, contract: Contract) -> None:
    (episode,), _ = read_episodes(record(), contract)
    for step, stamp in enumerate(episode.stamps):
        k = 3 * step + 1  # frame 0 has no partner yet; the first target comes with frame 1
        assert stamp == START + k * HALF_FRAME
        newest, other = ("front", "wrist") if k % 2 else ("wrist", "front")
        np.testing.assert_array_equal(episode.images[newest][step], frame(newest, k))
        np.testing.assert_array_equal(episode.images[other][step], frame(other, k - 1))
        np.testing.assert_allclose(episode.state[step, :3], position(int(stamp)), atol=1e-6)
        target, _, opening = decode_action(episode.action[step])
        np.testing.assert_allclose(target, position(int(stamp)) + np.array([0, 0, 0.1]), atol=1e-6)
        assert opening == pytest.approx(0.08 if stamp < START + NANOSECONDS else 0.0)


def test_converted_steps_equal_what_the_live_node_assembles(record: Record, contract: Contract) -> None:
    bag = record(seconds=1.0)
    assembler = ObservationAssembler(contract)
    live = {}
    for topic, _, message in read_bag(bag):
        feed(assembler, topic, message)
        live.update({o.stamp: o for o in assembler.pop()})
    (episode,), _ = read_episodes(bag, contract)
    for i, stamp in enumerate(episode.stamps):
        assert episode.state[i].tobytes() == live[int(stamp)].state.tobytes()
        for camera, images in episode.images.items():
            assert images[i].tobytes() == live[int(stamp)].images[camera].tobytes()


def test_action_between_two_targets_is_interpolated_and_the_gripper_held(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "bag", contract) as writer:
        for k in range(60):
            stamp = START + k * HALF_FRAME
            writer.add_image("wrist" if k % 2 == 0 else "front", stamp, frame("wrist", k))
        for k in range(210):
            stamp = START + k * 5_000_000
            writer.add_joint_state(stamp, list(contract.finger_joints), [0.04, 0.04])
            writer.add_pose(stamp, [0.5, 0, 0.3], [1, 0, 0, 0])
        for k in range(11):  # between the sets, at 10 Hz, turning 1 rad/s
            stamp = START + k * 100_000_000 + 1_000_000
            writer.add_target(stamp, [0.5, 0, 0.1 * k], gripper_down(0.1 * k), 0.08 if k < 5 else 0.01)
    (episode,), _ = read_episodes(tmp_path / "bag", contract)
    assert len(episode.stamps) > 15
    for stamp, action in zip(episode.stamps, episode.action, strict=True):
        k = (stamp - START - 1_000_000) / 100_000_000
        target, quaternion, opening = decode_action(action)
        assert target[2] == pytest.approx(0.1 * k, abs=1e-6)
        assert rotation_angle(quaternion, gripper_down(0.1 * k)) < 1e-3
        assert opening == pytest.approx(0.08 if k < 5 else 0.01)


def test_gap_ends_an_episode_and_is_reported(record: Record, contract: Contract, tmp_path: Path) -> None:
    bag = record(lost=lambda camera, k: camera == "front" and 45 <= k < 75)
    report = convert([bag], tmp_path / "data.zarr", contract, workers=1, progress=False)
    assert (report.episodes, report.gaps) == (2, 1)
    assert report.dropped["no front frame within slop"] > 10
    first, second = read_episodes(bag, contract)[0]
    for episode in (first, second):
        assert np.all(np.abs(np.diff(episode.stamps) - contract.dt_ns) <= contract.dt_ns / 2)
    assert second.stamps[0] - first.stamps[-1] > 4 * contract.dt_ns


def test_one_lost_frame_costs_no_step(record: Record, contract: Contract) -> None:
    episodes, _ = read_episodes(record(lost=lambda camera, k: k == 61), contract)
    assert [len(e.stamps) for e in episodes] == [40]


def test_grid_takes_the_nearest_and_starts_at_a_command() -> None:
    stamps = np.array([0, 3, 7, 13, 14, 23, 60, 69], dtype=np.int64)
    none = np.zeros(len(stamps), dtype=bool)
    assert [s.tolist() for s in grid_segments(stamps, 10, none)] == [[0, 2, 5], [6, 7]]
    commanded = np.array([s in (3, 13, 23, 69) for s in stamps])
    assert [s.tolist() for s in grid_segments(stamps, 10, commanded)] == [[1, 3, 5], [7]]


def test_bag_of_another_contract_is_refused_by_field(record: Record, contract: Contract, tmp_path: Path) -> None:
    bags = [record("a", 0.5), record("b", 0.5, under=dataclasses.replace(contract, slop=0.01))]
    with pytest.raises(ContractError, match=r"the task file and .*b differ in 'slop': 0.03 against 0.01"):
        convert(bags, tmp_path / "data.zarr", contract, progress=False)
    with pytest.raises(ContractError, match=r"a and .*b differ in 'slop'"):
        convert(bags, tmp_path / "data.zarr", progress=False)
    assert not (tmp_path / "data.zarr").exists()


def test_damaged_partial_and_failed_episodes_are_left_out_and_named(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("good", 0.5)
    record("failed", 0.5, success=False)
    record("died", 0.5, finish=False)
    (file,) = record("truncated", 0.5).glob("*.mcap")
    os.truncate(file, file.stat().st_size // 2)
    out = tmp_path / "out.zarr"
    assert main([str(tmp_path), "--out", str(out), "--json", str(tmp_path / "report.json"), "--workers", "1"]) == 2
    errors = capsys.readouterr().err
    assert "died.partial: its recording died" in errors
    assert "truncated cannot be read" in errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["episodes"], report["unsuccessful"], len(report["skipped"])) == (1, 1, 2)

    assert main([str(tmp_path / "good"), "--out", str(out)]) == 1
    assert "exists; choose another name" in capsys.readouterr().err
    assert main([str(tmp_path / "truncated"), "--out", str(tmp_path / "none.zarr"), "--workers", "1"]) == 1
    assert "no bag could be converted" in capsys.readouterr().err
    assert not list(tmp_path.glob("none*"))


def test_bag_without_a_topic_is_named(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "bag", contract) as writer:
        writer.add_image("wrist", START, frame("wrist", 0))
        writer.add_joint_state(START, [*ARM, *contract.finger_joints], np.zeros(9))
        writer.add_pose(START, [0, 0, 0], [1, 0, 0, 0])
    with pytest.raises(ConvertError, match=r"lacks the topics \['front_camera/color/image_raw', 'gripper_target', 'target_pose'\]"):
        convert([tmp_path / "bag"], tmp_path / "data.zarr", contract, workers=1, progress=False)


def test_wrong_encoding_and_missing_joints_name_the_bag_and_the_remedy(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "joints", contract) as writer:
        writer.add_joint_state(START, ARM, np.zeros(7))
    with EpisodeWriter(tmp_path / "size", contract) as writer:
        writer.add_image("wrist", START, np.zeros((100, 160, 3), np.uint8))
    with pytest.raises(ConvertError) as error:
        convert([tmp_path / "joints", tmp_path / "size"], tmp_path / "data.zarr", contract, workers=1, progress=False)
    assert "joints: joint_states has joints" in str(error.value)
    assert "size: wrist_camera/color/image_raw: image is 160x100" in str(error.value)
