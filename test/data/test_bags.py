"""Bags: whole or not at all, readable by others, and every damage named."""

import ast
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap_ros2.reader import read_ros2_messages
from recordings import ARM, START, Record, frame
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

import onedp_ros
from onedp_ros.contract import Contract
from onedp_ros.data.bags.reader import TYPES, BagError, Refusals, find_bags, read_bag, read_messages, read_metadata, read_serialized
from onedp_ros.data.bags.writer import EpisodeWriter


def test_every_message_comes_back_as_it_was_written(tmp_path: Path, contract: Contract) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    joints, velocities, pose, target = rng.normal(size=9), rng.normal(size=9), rng.normal(size=7), rng.normal(size=8)
    names = [*ARM, *contract.arm.finger_joints]
    with EpisodeWriter(tmp_path / "episode", contract) as writer:
        writer.add_image("front", START + 1, image)
        writer.add_joint_state(START + 2, names, joints, velocities)
        writer.add_pose(START + 3, pose[:3], pose[3:])
        writer.add_target(START + 4, target[:3], target[3:7], target[7])

    messages = {topic: (stamp, message) for topic, stamp, message in read_bag(tmp_path / "episode")}
    stamp, message = messages["front_camera/color/image_raw"]
    assert stamp == START + 1
    assert (message.encoding, message.height, message.width, message.step) == ("rgb8", 120, 160, 480)
    assert message.data.tobytes() == image.tobytes()
    stamp, message = messages["joint_states"]
    assert (stamp, message.name) == (START + 2, names)
    assert message.position.tolist() == joints.tolist()
    assert message.velocity.tolist() == velocities.tolist()
    stamp, message = messages["current_pose"]
    assert (stamp, message.header.frame_id) == (START + 3, contract.base_frame)
    p, q = message.pose.position, message.pose.orientation
    assert [p.x, p.y, p.z, q.x, q.y, q.z, q.w] == pose.tolist()
    stamp, message = messages["target_pose"]
    assert (stamp, message.pose.position.x) == (START + 4, target[0])
    stamp, message = messages["gripper_target"]
    assert (stamp, message.name, message.position.tolist()) == (START + 4, ["gripper"], [target[7]])


def test_bag_is_read_by_an_independent_reader_with_ros_names(record: Record) -> None:
    (file,) = record(seconds=0.5).glob("*.mcap")
    seen = {}
    for message in read_ros2_messages(str(file)):
        seen.setdefault(message.channel.topic, (message.schema.name, message.ros_msg, message.log_time_ns))
    assert {topic: kind for topic, (kind, _, _) in seen.items()} == {
        "/wrist_camera/color/image_raw": "sensor_msgs/msg/Image",
        "/front_camera/color/image_raw": "sensor_msgs/msg/Image",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/current_pose": "geometry_msgs/msg/PoseStamped",
        "/target_pose": "geometry_msgs/msg/PoseStamped",
        "/gripper_target": "sensor_msgs/msg/JointState",
    }
    _, image, logged = seen["/wrist_camera/color/image_raw"]
    assert bytes(image.data) == frame("wrist", 0).tobytes()
    assert logged == START == image.header.stamp.sec * 10**9 + image.header.stamp.nanosec


def test_metadata_tells_how_the_episode_came_about(record: Record, contract: Contract) -> None:
    metadata = read_metadata(record(success=False))
    assert Contract.from_dict(metadata["contract"]) == contract
    assert (metadata["task"], metadata["seed"], metadata["success"]) == ("pnp_milk", 3, False)
    assert metadata["versions"]["numpy"] == np.__version__


def test_an_episode_is_never_overwritten(record: Record, contract: Contract) -> None:
    path = record(seconds=0.2)
    with pytest.raises(BagError, match="exists"):
        EpisodeWriter(path, contract)


def test_discarded_episode_leaves_nothing(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "episode", contract) as writer:
        writer.add_pose(START, [0, 0, 0], [1, 0, 0, 0])
        writer.discard()
    assert not list(tmp_path.iterdir())


def test_killed_recording_costs_only_the_episode_being_written(tmp_path: Path) -> None:
    program = f"""
import itertools, numpy as np
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.contract import task_contract
for episode in itertools.count():
    with EpisodeWriter("{tmp_path}/episode_%d" % episode, task_contract("pnp_milk")) as writer:
        for stamp in range(100, 2000):
            writer.add_image("wrist", stamp, np.full((120, 160, 3), stamp % 256, np.uint8))
            if (episode, stamp) == (2, 1000):
                print("in the third", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the third\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    bags, broken = find_bags([tmp_path])
    assert not broken
    *whole, partial = bags
    assert [bag.name for bag in whole] == [f"episode_{i}" for i in range(len(whole))]
    assert len(whole) >= 2
    assert all(sum(1 for _ in read_bag(bag)) == 1900 for bag in whole)
    assert partial.name == f"episode_{len(whole)}.partial"
    assert sum(1 for _ in read_bag(partial)) > (900 - 20 if len(whole) == 2 else 0)  # 19 images make a chunk


def test_episode_that_died_can_be_recorded_again(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(tmp_path / "episode", contract) as writer:
        writer.add_pose(START, [0, 0, 0], [1, 0, 0, 0])
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["episode.partial"]
    with EpisodeWriter(tmp_path / "episode", contract) as writer:
        writer.add_pose(START, [0, 0, 0], [1, 0, 0, 0])
    assert [p.name for p in tmp_path.iterdir()] == ["episode"]


def stamps(bag: Path, refusals: Refusals | None = None) -> list[tuple[str, int]]:
    return [(message.topic, message.stamp) for message in read_messages(bag, None, refusals)]


@pytest.mark.parametrize("place", [0.3, 0.9, -1])
def test_a_closed_bag_that_was_cut_is_read_as_far_as_it_goes(record: Record, place: float) -> None:
    """As a copy that broke off: metadata.yaml is there and tells of more than the file holds."""
    bag = record()
    whole = stamps(bag)
    (file,) = bag.glob("*.mcap")
    size = file.stat().st_size
    os.truncate(file, int(place * size) if place > 0 else size - 1)
    refusals = Refusals()
    messages = stamps(bag, refusals)
    assert messages == whole[: len(messages)] and len(messages) > (0.1 * len(whole) if place > 0 else len(whole) - 1)
    assert [what.endswith("bytes at its end are cut short") for what in refusals.damage] == [True] * (place > 0)
    assert find_bags([bag]) == ([bag], {})


@pytest.mark.parametrize("size", [0, 5])
def test_a_file_that_holds_nothing_is_named_with_a_remedy(record: Record, size: int) -> None:
    bag = record(seconds=0.2)
    (file,) = bag.glob("*.mcap")
    os.truncate(file, size)
    assert stamps(bag) == []
    (bag / "metadata.yaml").unlink()
    assert "look for" in find_bags([file])[1][file]


def test_damaged_metadata_costs_only_the_notes(record: Record) -> None:
    bag = record(seconds=0.2)
    whole = stamps(bag)
    for text in ("rosbag2_bagfile_information: [", "", "7"):
        (bag / "metadata.yaml").write_text(text)
        assert find_bags([bag]) == ([bag], {}) and stamps(bag) == whole
        (problem,) = read_metadata(bag)["problems"]
        assert "metadata.yaml is damaged" in problem and "its recorder's notes are lost" in problem
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information:\n  relative_file_paths: [gone.mcap]\n")
    assert find_bags([bag]) == ([bag], {}) and stamps(bag) == whole
    assert read_metadata(bag) == {}


def test_without_metadata_the_notes_are_read_from_the_file_itself(record: Record, contract: Contract, tmp_path: Path) -> None:
    bag = record(seconds=0.2)
    notes = read_metadata(bag)
    (file,) = bag.glob("*.mcap")
    file.rename(tmp_path / "moved.mcap")
    assert read_metadata(tmp_path / "moved.mcap") == notes
    assert Contract.from_dict(notes["contract"]) == contract


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "sqlite").mkdir()
    (tmp_path / "sqlite" / "sqlite_0.db3").touch()
    with pytest.raises(BagError, match="sqlite cannot be read"):
        list(read_bag(tmp_path / "sqlite"))
    with pytest.raises(BagError, match="does not exist"):
        list(read_bag(tmp_path / "none"))
    with pytest.raises(BagError, match="does not exist"):
        find_bags([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="holds no bag"):
        find_bags([tmp_path / "empty"])


def test_loose_files_are_a_recording_each_and_a_split_one_is_one(record: Record, tmp_path: Path) -> None:
    whole = {}
    day = tmp_path / "day"
    day.mkdir()
    for name in ("pick_0", "pick_1", "other"):
        bag = record(name, 0.3)
        whole[day / f"{name}.mcap"] = stamps(bag)
        next(bag.glob("*.mcap")).rename(day / f"{name}.mcap")
        shutil.rmtree(bag)
    inner = record("day/inner", 0.2)
    split = tmp_path / "split"
    split.mkdir()
    for i in (10, 2):  # in the order of the numbers
        shutil.copy(day / "other.mcap", split / f"split_{i}.mcap")
    bags, broken = find_bags([tmp_path])
    assert (bags, broken) == ([inner, *sorted(whole), split], {}) or sorted(bags) == sorted([inner, *whole, split])
    assert {bag: stamps(bag) for bag in whole} == whole
    assert stamps(split) == 2 * whole[day / "other.mcap"]


def test_metadata_that_differ_from_the_storage_hide_no_message(record: Record) -> None:
    """Other QoS, other counts: metadata.yaml is written by hand, or by tools that do not know the storage."""
    bag = record(seconds=0.2)
    whole = stamps(bag)
    text = (bag / "metadata.yaml").read_text()
    changed = re.sub(r"offered_qos_profiles:(.|\n)*?type_description_hash: .*", "offered_qos_profiles: ''", text)
    assert changed != text
    (bag / "metadata.yaml").write_text(changed)
    assert stamps(bag) == whole


def test_notes_of_other_recorders_are_theirs(record: Record) -> None:
    bag = record(seconds=0.2)
    text = (bag / "metadata.yaml").read_text()
    custom = text.index("custom_data:")
    others = "custom_data:\n    contract: v2 2025\n    success: '0'\n    versions: '1.2'\n    problems: none\n    operator: Ada\n"
    rest = re.search(r"\n  \w", text[custom:])
    (bag / "metadata.yaml").write_text(text[:custom] + others + (text[custom + rest.start() + 1 :] if rest else ""))
    assert read_metadata(bag) == {
        "contract (of another recorder)": "v2 2025",
        "success (of another recorder)": 0,
        "versions (of another recorder)": 1.2,
        "problems (of another recorder)": "none",
        "operator": "Ada",
    }


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    for name, content, what in (
        ("demo.HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        ("old.bag", b"#ROSBAG V2.0\n" + bytes(100), "ROS 1"),
        ("notes.txt", b"hello", "not a bag file"),
        ("text.mcap", b"hello, I am text", "not an MCAP file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert what in find_bags([tmp_path / name])[1][tmp_path / name]
        if name != "text.mcap":
            with pytest.raises(BagError, match=what):
                list(read_bag(tmp_path / name))


def test_a_message_that_cannot_be_decoded_is_passed_over_and_counted(record: Record, tmp_path: Path) -> None:
    """Cut short, of an encoding or a type that is not known."""
    bad = tmp_path / "bad"
    with Writer(bad, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        for i, message in enumerate(read_serialized(record(seconds=0.2))):
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(message.topic, message.msgtype, typestore=TYPES)
            data = message.data[:30] if message.topic == "/joint_states" and i % 7 == 0 else message.data
            writer.write(connections[message.topic], message.logged, data)
    refusals = Refusals()
    read, every = stamps(bad, refusals), stamps(tmp_path / "episode")
    assert 0 < refusals.messages["joint_states"] == len(every) - len(read) < 10
    assert "cannot be decoded as sensor_msgs/msg/JointState" in refusals.reasons["joint_states"]


def test_no_error_advises_to_throw_a_recording_away() -> None:
    advice = re.compile(r"\b(delete|remove|erase|rm) (it|the|this|that|them)\b|record (that|the|this) episode again", re.IGNORECASE)
    package = Path(onedp_ros.__file__).parent
    texts = [
        f"{file.name}:{node.lineno} {node.value}"
        for folder in ("data", "evaluation", "learning", "twin")
        for file in (package / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and advice.search(node.value)
    ]
    assert texts == []


def test_a_killed_sqlite_recording_is_read_with_its_log(record: Record, tmp_path: Path) -> None:
    """As of rosbag2's preset 'resilient', which writes ahead into a file beside the database."""
    bag = tmp_path / "killed"
    with Writer(bag, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections: dict[str, Any] = {}
        for message in read_serialized(record(seconds=0.2)):
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(message.topic, message.msgtype, typestore=TYPES)
            writer.write(connections[message.topic], message.logged, message.data)
    (file,) = bag.glob("*.db3")
    whole = stamps(bag)
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("INSERT INTO messages (topic_id, timestamp, data) SELECT topic_id, timestamp + 1000000000, data FROM messages")
    database.commit()
    killed = tmp_path / "copy"
    shutil.copytree(bag, killed)  # while it is open, as a power cut leaves it
    database.close()
    (killed / "metadata.yaml").unlink()
    (killed / "killed.db3").rename(killed / "copy_0.db3")
    (killed / "killed.db3-wal").rename(killed / "copy_0.db3-wal")
    before = (killed / "copy_0.db3").read_bytes()
    assert len(stamps(killed)) == 2 * len(whole) > 0
    assert (killed / "copy_0.db3").read_bytes() == before
    assert find_bags([tmp_path / "copy"]) == ([killed], {})


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.FILE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_bags_of_other_recorders_are_read(
    tmp_path: Path, contract: Contract, storage: StoragePlugin, mode: CompressionMode
) -> None:
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE)
    kinds = types.types
    header = kinds["std_msgs/msg/Header"](kinds["builtin_interfaces/msg/Time"](0, 0), "")
    message = kinds["sensor_msgs/msg/JointState"](header, ["a"], np.ones(1), np.zeros(0), np.zeros(0))
    bag = Writer(tmp_path / "bag", version=8, storage_plugin=storage)
    bag.set_compression(mode, CompressionFormat.ZSTD)
    with bag:
        connection = bag.add_connection("/joint_states", message.__msgtype__, typestore=types)
        other = bag.add_connection("/own", "my_msgs/msg/Own", msgdef="int32 x", rihs01="RIHS01_" + "0" * 64)
        bag.write(connection, START, types.serialize_cdr(message, message.__msgtype__))
        bag.write(other, START, b"\x00\x01\x00\x00\x01\x00\x00\x00")
    ((topic, stamp, read),) = read_bag(tmp_path / "bag")
    assert (topic, stamp, read.name) == ("joint_states", START, ["a"])  # no header stamp: the log time
    assert read_metadata(tmp_path / "bag") == {}
