"""What ``onedp inspect`` says of recordings and training sets whose content is known."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import zarr
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from onedp_ros.cli.inspect import main
from onedp_ros.contract import NANOSECONDS, Contract, task_contract
from onedp_ros.data.bags.reader import read_bag
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.data.convert import ConvertError, convert
from onedp_ros.evaluation.bag_reading import KEPT_FRAMES, BagReading
from onedp_ros.evaluation.inspect import InspectError, inspect_bag, inspect_dataset, inspect_set, ranges
from onedp_ros.geometry import gripper_down
from onedp_ros.resources import resource

CONTRACT = task_contract("pnp_milk")
START = 1_700_000_000 * NANOSECONDS
HALF_FRAME = 16_666_667  # ns
Record = Callable[..., Path]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Record an arm that rises by 0.1 m/s, seen by two 30 Hz cameras, ``stagger`` ns apart, whose frame k is missing if ``lost``,
    and black if ``blind``.

    Targets come at 50 Hz, 0.05 m above the arm, and turn by 0.5 rad/s; the opening is commanded to close after a second.
    """

    def write(
        name: str = "episode",
        seconds: float = 2.0,
        lost: Callable[[str, int], bool] = lambda camera, k: False,
        blind: Callable[[str, int], bool] = lambda camera, k: False,
        size: tuple[int, int] = (120, 160),
        stagger: int = HALF_FRAME,
        finish: bool = True,
        **notes: Any,
    ) -> Path:
        events: list[tuple[int, str, int]] = []
        for k in range(round(seconds * 30)):
            for camera, offset in (("wrist", 0), ("front", stagger)):
                if not lost(camera, k):
                    events.append((START + 2 * k * HALF_FRAME + offset, camera, k))
        events += [(START + k * 20_000_000, "target", k) for k in range(round(seconds * 50))]
        events += [(START + k * 5_000_000, "state", k) for k in range(-2, round(seconds * 200) + 10)]
        writer = EpisodeWriter(tmp_path / name, CONTRACT, notes)
        for stamp, kind, k in sorted(events):
            since = (stamp - START) / NANOSECONDS
            position = np.array([0.5, 0.0, 0.2 + 0.1 * since])
            if kind == "state":
                arm = [f"fr3_joint{i}" for i in range(1, 8)]
                writer.add_joint_state(stamp, [*arm, *CONTRACT.arm.finger_joints], np.full(9, 0.03))
                writer.add_pose(stamp, position, gripper_down(0.0))
            elif kind == "target":
                writer.add_target(stamp, position + np.array([0, 0, 0.05]), gripper_down(0.5 * since), 0.08 if since < 1 else 0.0)
            else:
                image = np.full((*size, 3), (k % 256, 100, 50), np.uint8)
                image[size[0] // 2 :] = 255
                if blind(kind, k):
                    image[:] = 0
                writer.add_image(kind, stamp, image)
        if not finish:
            writer.abort()
            return writer.partial
        return writer.close(success=True)

    return write


def test_the_figures_are_those_of_the_recording(record: Record, tmp_path: Path) -> None:
    bag = record(operator="ana")
    report, _ = inspect_bag(bag)
    assert report["fits"] is True and report["problems"] == [] and report["not_converted"] is None
    assert report["metadata"]["operator"] == "ana" and report["metadata"]["success"] is True
    wrist, pose = (report["topics"][t] for t in ("wrist_camera/color/image_raw", "current_pose"))
    assert (wrist["type"], wrist["messages"]) == ("sensor_msgs/msg/Image", 60)
    assert wrist["hz"] == pytest.approx(30.0, abs=0.01) and pose["hz"] == pytest.approx(200.0, abs=0.01)
    assert wrist["images"] == {"rgb8 160x120": 60} and wrist["gaps"] == 0 and wrist["out_of_order"] == 0
    assert report["sync_ms"]["wrist-front"] == pytest.approx({"p50": 16.667, "p95": 16.667, "max": 16.667}, abs=1e-3)
    converted = convert([bag], tmp_path / "data.zarr", workers=1, progress=False)
    assert report["steps"] == converted.steps > 30 and report["pieces"] == converted.episodes == 1
    assert report["dropped"] == converted.dropped


def test_the_ranges_are_those_of_the_motion(record: Record) -> None:
    found = inspect_bag(record())[0]["ranges"]
    assert found["measured"]["x"] == pytest.approx([0.5, 0.5]) and found["measured"]["opening"] == pytest.approx([0.06, 0.06])
    assert found["measured"]["z"] == pytest.approx([0.2, 0.4], abs=0.01)
    assert found["target"]["z"] == pytest.approx([0.25, 0.45], abs=0.01)
    assert found["target"]["opening"] == pytest.approx([0.0, 0.08])
    assert found["speed_m_s"] == pytest.approx({"p50": 0.1, "p95": 0.1, "max": 0.1}, rel=0.01)
    assert found["turn_rad_s"] == pytest.approx({"p50": 0.5, "p95": 0.5, "max": 0.5}, rel=0.01)
    assert found["turn_rad"] == pytest.approx(0.5 * 2.0, abs=0.05)


def test_speeds_do_not_reach_from_one_episode_into_the_next() -> None:
    action = np.stack(
        [CONTRACT.arm.encode_action(np.array([x, 0, 0.2]), gripper_down(yaw), 0.08) for x, yaw in ((0.3, 0), (0.31, 0), (0.6, 2))]
    )
    state = np.tile(np.float32([0, 0, 0, 1, 0, 0, 0, 0, 0]), (3, 1))
    found = ranges(CONTRACT, state, action, [2, 3])
    assert found["speed_m_s"]["max"] == pytest.approx(0.2, rel=1e-3) and found["turn_rad_s"]["max"] == pytest.approx(0, abs=1e-3)
    assert found["turn_rad"] == pytest.approx(0, abs=1e-3)
    assert ranges(CONTRACT, state, action, [3])["speed_m_s"]["max"] == pytest.approx(5.8, rel=1e-3)
    assert ranges(CONTRACT, state, action, [3])["turn_rad"] == pytest.approx(2.0, abs=1e-3)
    assert ranges(CONTRACT, state[:1], action[:1], [1])["speed_m_s"]["max"] == 0.0


def test_lost_frames_show_as_gaps_and_in_the_synchrony(record: Record) -> None:
    bag = record(lost=lambda camera, k: camera == "front" and 20 <= k < 26)
    report, _ = inspect_bag(bag)
    front = report["topics"]["front_camera/color/image_raw"]
    assert (front["gaps"], front["missing_frames"], front["longest_gap_frames"]) == (1, 6, 6)
    assert report["topics"]["wrist_camera/color/image_raw"]["gaps"] == 0
    assert report["sync_ms"]["wrist-front"]["max"] == pytest.approx(3.5 * 33.333, abs=0.1)
    assert report["pieces"] == 2 and report["dropped"]["no front frame within slop"] > 0


def test_a_camera_that_sees_nothing_is_named_and_teaches_nothing(record: Record, tmp_path: Path) -> None:
    bag = record(blind=lambda camera, k: camera == "front" and 20 <= k < 40)
    report, _ = inspect_bag(bag)
    assert report["dropped"]["front picture featureless"] == 40 and report["pieces"] == 2
    assert any("40 front picture featureless" in warning for warning in report["warnings"])
    converted = convert([bag], tmp_path / "data.zarr", workers=1, progress=False)
    assert converted.dropped == report["dropped"] and list(converted.warnings.values()) == [report["warnings"]]
    blind = record("blind", blind=lambda camera, k: camera == "wrist")
    with pytest.raises(ConvertError, match="wrist picture featureless"):
        convert([blind], tmp_path / "none.zarr", workers=1, progress=False)


def test_synchrony_is_told_by_the_frames_of_both_cameras(record: Record) -> None:
    for silent in ("wrist", "front"):
        bag = record(silent, stagger=0, lost=lambda camera, k, silent=silent: camera == silent and 20 <= k < 26)
        sync = inspect_bag(bag)[0]["sync_ms"]["wrist-front"]
        assert sync["p50"] == pytest.approx(0, abs=1e-3) and sync["max"] == pytest.approx(3 * 33.333, abs=0.1)


def test_what_does_not_fit_is_named(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    slow = record("slow", seconds=4.0, lost=lambda camera, k: camera == "wrist" and k % 2 == 1)
    report, _ = inspect_bag(slow)
    assert report["fits"] is False
    assert any("wrist_camera/color/image_raw arrived at 15.0 Hz, expected at least control_hz 20" in p for p in report["problems"])

    blind = record("blind", lost=lambda camera, k: camera == "front")
    report, recording = inspect_bag(blind)
    assert report["fits"] is False and report["steps"] == 0 and report["ranges"] is None
    assert any("front_camera/color/image_raw is missing" in p for p in report["problems"])
    assert report["sync_ms"] == {} and list(recording.cameras(CONTRACT)) == ["wrist"]

    square = record("square", size=(160, 160))
    assert "image is 160x160, expected 160x120" in inspect_bag(square)[0]["not_converted"]
    assert main([str(square)]) == 2
    out = capsys.readouterr().out
    assert "does not convert" in out and "fits its contract" not in out


def test_a_task_file_other_than_the_noted_contract_is_a_misfit(record: Record) -> None:
    bag = record()
    report, _ = inspect_bag(bag, dataclasses.replace(CONTRACT, control_hz=10.0))
    assert report["fits"] is False and "control_hz" in report["problems"][0]
    assert inspect_bag(bag, CONTRACT)[0]["fits"] is True


def test_an_interrupted_recording_is_inspected_as_far_as_it_goes(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    partial = record(finish=False, operator="ana")
    assert main([str(partial)]) == 0
    out = capsys.readouterr().out
    assert "interrupted True" in out and "operator ana" in out and "wrist_camera/color/image_raw" in out


def test_frames_are_kept_evenly_and_not_in_number_of_the_length(record: Record) -> None:
    recording = BagReading(record(seconds=7.0, size=(240, 320)), CONTRACT)
    for frames in recording.frames.values():
        stamps = np.array([stamp for stamp, _ in frames.kept])
        assert KEPT_FRAMES // 2 <= len(stamps) <= KEPT_FRAMES
        assert len(set(np.diff(stamps).tolist())) == 1
        assert stamps[0] - START <= HALF_FRAME and START + 7 * NANOSECONDS - stamps[-1] < 8 * 2 * HALF_FRAME
        assert all(image.shape == (240, 320, 3) for _, image in frames.kept)
    # and they are the frames of their stamps
    assert [int(image[0, 0, 0]) for _, image in recording.frames["wrist_camera/color/image_raw"].kept][:3] == [0, 4, 8]


def test_a_bag_of_another_recorder_needs_the_task_file(record: Record, tmp_path: Path) -> None:
    """Images compressed, topics with a slash, an image that is no camera's, and no notes."""
    types = get_typestore(Stores.ROS2_JAZZY)
    compressed = types.types["sensor_msgs/msg/CompressedImage"]
    foreign = tmp_path / "foreign"
    with Writer(foreign, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        for topic, stamp, message in list(read_bag(record())):
            if topic.startswith("front"):
                image = cv2.imencode(".jpg", message.data.reshape(message.height, message.width, 3))[1].reshape(-1)
                topic, message = f"{topic}/compressed", compressed(message.header, "jpeg", image)
            elif topic.startswith("wrist"):
                depth = dataclasses.replace(message, encoding="16UC1", width=message.width // 2, step=message.width)
                messages = [(topic, message), ("wrist_camera/depth/image_raw", depth)]
            if not topic.startswith("wrist"):
                messages = [(topic, message)]
            for name, content in messages:
                if name not in connections:
                    connections[name] = writer.add_connection(f"/{name}", content.__msgtype__, typestore=types)
                writer.write(connections[name], stamp, types.serialize_cdr(content, content.__msgtype__))

    report, recording = inspect_bag(foreign)
    assert report["fits"] is None and report["steps"] == 0 and "--task" in report["not_converted"]
    assert report["topics"]["front_camera/color/image_raw/compressed"]["images"] == {"jpeg 160x120": 60}
    assert len(report["sync_ms"]) == 3, "every pair of image topics"

    report, recording = inspect_bag(foreign, CONTRACT)
    assert report["fits"] is True and report["steps"] > 30 and report["metadata"] == {}
    assert list(recording.cameras(CONTRACT)) == ["wrist", "front", "wrist_camera/depth/image_raw"]
    assert list(report["sync_ms"]) == ["wrist-front"]
    assert report["topics"]["wrist_camera/depth/image_raw"]["images"] == {"16UC1 80x120": 60}
    assert not recording.frames["wrist_camera/depth/image_raw"].kept, "depth is no picture"
    task = str(resource("config", "tasks", "pnp_milk.yaml"))
    assert main([str(foreign), "--task", task, "--out", str(tmp_path / "out")]) == 0
    assert main([str(foreign), "--out", str(tmp_path / "out")]) == 2


def test_pictures_and_json_of_a_folder_with_a_damaged_bag(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("bags/a", stagger=0)
    record("bags/b", lost=lambda camera, k: camera == "front" and 20 <= k < 26, problems=["front camera was silent"])
    damaged = record("bags/c")
    storage = next(damaged.glob("*.mcap"))
    storage.write_bytes(b"something else")
    out, file = tmp_path / "out", tmp_path / "report.json"
    assert main([str(tmp_path / "bags"), "--out", str(out), "--json", str(file)]) == 2

    report = json.loads(file.read_text())
    assert [Path(r["bag"]).name for r in report["bags"]] == ["a", "b"] and list(report["unreadable"]) == [str(damaged)]
    assert report["totals"]["bags"] == 2 and report["totals"]["unreadable"] == 1 and report["totals"]["successful"] == 2
    assert report["totals"]["steps"] == sum(r["steps"] for r in report["bags"])
    text = capsys.readouterr().out
    assert re.search(r"^b .* yes +yes +6 +6 .* front camera was silent$", text, re.MULTILINE)
    assert f"cannot be read: {damaged}" in text and "2 bags" in text
    assert sorted(p.name for p in out.iterdir()) == ["a_images.png", "a_timeline.png", "b_images.png", "b_timeline.png"]

    def red(name: str) -> int:
        picture = imageio.imread(out / name)[..., :3].astype(int)
        return int(np.sum((picture[..., 0] > 180) & (picture[..., 1] < 80) & (picture[..., 2] < 80)))

    assert red("a_timeline.png") == 0 < red("b_timeline.png"), "a gap is red"
    sheet = imageio.imread(out / "a_images.png")[..., :3]
    frames = np.unique(sheet[(sheet[..., 1] == 100) & (sheet[..., 2] == 50), 0])
    assert len(frames) == 8 and frames[0] == 0 and frames[-1] >= 57, "eight moments, from the start to the end"


def test_two_bags_of_one_name_are_not_drawn_over_each_other(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(record("one/a")), str(record("two/a"))]
    assert main(paths) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*paths, "--out", str(tmp_path / "out")])
    assert "two bags are named a; inspect them one at a time, with different --out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_set_has_the_figures_of_its_bags(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = [record("a"), record("b", lost=lambda camera, k: camera == "front" and 20 <= k < 26)]
    path = tmp_path / "data.zarr"
    converted = convert(bags, path, workers=1, progress=False)
    report = inspect_dataset(path)
    assert (report["episodes"], report["steps"], report["gaps"]) == (
        converted.episodes,
        converted.steps,
        1,
    ) and converted.episodes == 3
    assert report["seconds"] == pytest.approx(converted.steps / 20) and report["problems"] == []
    assert report["images"]["wrist"] == [converted.steps, 120, 160, 3]
    assert Contract.from_dict(report["contract"]) == CONTRACT and report["dropped"] == converted.dropped
    one, two = (inspect_bag(bag)[0]["ranges"] for bag in bags)
    assert report["ranges"]["target"]["z"] == pytest.approx(
        [min(one["target"]["z"][0], two["target"]["z"][0]), max(one["target"]["z"][1], two["target"]["z"][1])]
    )
    file = tmp_path / "report.json"
    assert main([str(path), str(bags[0]), "--json", str(file)]) == 0
    assert json.loads(file.read_text())["datasets"] == [report]
    assert f"{converted.episodes} episodes, {converted.steps} steps at 20 Hz" in capsys.readouterr().out


def test_a_lerobot_set_has_the_figures_of_the_replay_buffer(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [record("a"), record("b", lost=lambda camera, k: camera == "front" and 20 <= k < 26)]
    for format in ("zarr", "lerobot"):
        convert(bags, tmp_path / format, workers=1, progress=False, format=format)
    ours, theirs = inspect_dataset(tmp_path / "zarr"), inspect_set(tmp_path / "lerobot")
    for key in ("contract", "episodes", "steps", "seconds", "steps_an_episode", "images", "ranges", "problems", "warnings"):
        assert theirs[key] == ours[key], key
    assert main([str(tmp_path / "lerobot"), str(tmp_path / "zarr")]) == 0
    assert capsys.readouterr().out.count("3 episodes, ") == 2
    (tmp_path / "lerobot" / "meta" / "onedp.json").unlink()
    assert main([str(tmp_path / "lerobot"), str(tmp_path / "zarr")]) == 2, "the other one is shown all the same"
    assert "stores no contract; give the task file with --task" in (out := capsys.readouterr().out) and "3 episodes, " in out
    assert main([str(tmp_path / "lerobot"), "--task", "pnp_milk"]) == 0


def test_what_is_no_recording_is_named_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, what in (("demo.hdf5", "truncated or not an HDF5 file"), ("demo.HDF5", "it is an HDF5 file")):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        assert main([str(tmp_path / name), "--task", "pnp_milk"]) == 2
        out = capsys.readouterr().out
        assert what in out and "mcap" not in out.replace(".mcap", "")


def test_the_time_between_stamp_and_recording_is_shown(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    late = tmp_path / "late"
    with Writer(late, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        messages = []
        for topic, stamp, message in read_bag(record()):
            lag = 200_000_000 if topic.startswith("wrist") else 0 if topic == "joint_states" else 1_500_000
            messages.append((stamp + lag, topic, message))
        for logged, topic, message in sorted(messages, key=lambda entry: entry[0]):
            if topic not in connections:
                connections[topic] = writer.add_connection(f"/{topic}", message.__msgtype__, typestore=types)
            writer.write(connections[topic], logged, types.serialize_cdr(message, message.__msgtype__))
    report, _ = inspect_bag(late, CONTRACT)
    lags = {topic: t["lag_ms"] for topic, t in report["topics"].items()}
    assert lags["wrist_camera/color/image_raw"]["p50"] == pytest.approx(200) and lags["joint_states"] is None
    assert lags["current_pose"] == pytest.approx({"p50": 1.5, "min": 1.5, "max": 1.5})
    assert report["fits"] is False and "was recorded 0.200 s after its stamps" in report["warnings"][0]
    assert main([str(late), "--task", "pnp_milk"]) == 2
    out = capsys.readouterr().out
    assert re.search(r"^ +wrist_camera/color/image_raw .* 200\.0 ms ", out, re.MULTILINE) and "fits its contract" not in out


def test_a_broken_training_set_is_named(record: Record, tmp_path: Path) -> None:
    good = tmp_path / "data.zarr"
    convert([record()], good, workers=1, progress=False)

    def broken(name: str) -> tuple[Path, Any]:
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name, zarr.open_group(str(tmp_path / name), mode="r+")

    path, root = broken("cut.zarr")
    root["data/front"].resize((7, 120, 160, 3))
    assert "cut short" in inspect_dataset(path)["problems"][0]
    assert main([str(path)]) == 2
    path, root = broken("nan.zarr")
    root["data/action"][3, 0] = np.nan
    report = inspect_dataset(path)
    assert "NaN" in report["problems"][0] and report["ranges"] is None
    path, root = broken("other.zarr")
    del root["data/state"]
    with pytest.raises(InspectError, match=r"other\.zarr is not a training set.*onedp convert"):
        inspect_dataset(path)


def test_rerun_without_its_sdk_names_the_remedy(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(RuntimeError, match="pip install rerun-sdk"):
        main([str(record()), "--rerun", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "episode"), "--rerun"])
    assert "--out" in capsys.readouterr().err


def test_rerun_takes_every_message_at_its_stamp(record: Record, tmp_path: Path) -> None:
    rerun = pytest.importorskip("rerun")
    assert main([str(record()), "--rerun", "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob("*.rrd.partial"))
    view = rerun.dataframe.load_recording(str(tmp_path / "episode.rrd")).view(index="stamp", contents="/**")
    table = view.select().read_all()
    values = [v for v in table.column("/position/z/target_pose:Scalar").to_pylist() if v is not None]
    assert len(values) == 100 and values[0] == pytest.approx([0.25]) and values[50] == pytest.approx([0.35], abs=1e-3)
    for column in ("/wrist_camera/color/image_raw:Blob", "/front_camera/color/image_raw:Blob"):
        assert table.num_rows - table.column(column).null_count == 60
    assert table.num_rows - table.column("/opening/target:Scalar").null_count == 100
    assert table.column("stamp")[-1].value == START + 409 * 5_000_000


def test_the_foxglove_layout_shows_what_is_recorded(record: Record) -> None:
    layout = json.loads(resource("config", "foxglove", "pnp_milk.json").read_text())

    def leaves(node: Any) -> list[str]:
        return [node] if isinstance(node, str) else [*leaves(node["first"]), *leaves(node["second"])]

    panels = layout["configById"]
    assert sorted(leaves(layout["layout"])) == sorted(panels)
    assert {panel.split("!")[0] for panel in panels} == {"Image", "Plot", "RawMessages"}
    messages = {f"/{topic}": message for topic, _, message in read_bag(record())}
    shown = {config["imageMode"]["imageTopic"] for panel, config in panels.items() if panel.startswith("Image!")}
    assert shown == {f"/{camera.topic}" for camera in CONTRACT.cameras.values()} <= set(messages)
    values = {}
    for path in [path for panel, config in panels.items() if panel.startswith("Plot!") for path in config["paths"]]:
        topic, *fields = re.findall(r"^/\w+|\.[a-z_]+|\[-?\d+\]|\.@mul\(\d+\)", path["value"])
        assert topic + "".join(fields) == path["value"] and path["enabled"] is True
        value: Any = messages[topic]
        for field in fields:
            if field.startswith("."):
                value = value * int(field[6:-1]) if field.startswith(".@mul") else getattr(value, field[1:])
            else:
                value = value[int(field[1:-1])]
        values[path["label"]] = float(value)
    assert len(values) == 8 and values["measured (twice a finger)"] == pytest.approx(0.06) and values["target"] == 0.0
    assert panels["RawMessages!diagnostics"]["topicPath"] == "/diagnostics"
