"""Bags: whole or not at all, readable by others, and every damage named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mcap_ros2.reader import read_ros2_messages
from recordings import ARM, START, Record, frame
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from onedp_ros.contract import Contract
from onedp_ros.data.bag_writer import EpisodeWriter
from onedp_ros.data.bags import BagError, find_bags, read_bag, read_metadata


def test_every_message_comes_back_as_it_was_written(tmp_path: Path, contract: Contract) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    joints, velocities, pose, target = rng.normal(size=9), rng.normal(size=9), rng.normal(size=7), rng.normal(size=8)
    names = [*ARM, *contract.finger_joints]
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
from onedp_ros.data.bag_writer import EpisodeWriter
from onedp_ros.resources import task_contract
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


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.9, -1])
def test_truncated_bag_is_named_with_a_remedy(record: Record, kept: float) -> None:
    bag = record(seconds=0.5)
    (file,) = bag.glob("*.mcap")
    size = file.stat().st_size
    os.truncate(file, int(kept * size) if isinstance(kept, float) else kept % size)
    with pytest.raises(BagError, match=rf"{bag} cannot be read: it is truncated or damaged.*record that episode again"):
        list(read_bag(bag))


def test_damaged_metadata_and_missing_files_are_named(record: Record, tmp_path: Path) -> None:
    bag = record(seconds=0.2)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(BagError, match=r"metadata\.yaml is damaged"):
        read_metadata(bag)
    (tmp_path / "sqlite").mkdir()
    (tmp_path / "sqlite" / "sqlite_0.db3").touch()
    assert "reindex" in find_bags([tmp_path])[1][tmp_path / "sqlite"]
    with pytest.raises(BagError, match="does not exist"):
        list(read_bag(tmp_path / "none"))
    with pytest.raises(BagError, match="does not exist"):
        find_bags([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="holds no bag"):
        find_bags([tmp_path / "empty"])


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
