"""rosbag2 bags: one MCAP bag an episode, written whole or not at all, and read back.

An episode is written into ``<name>.partial/`` beside its final place and moved there, synced to disk, when it is closed. So
every ``<name>/`` is complete, and a ``<name>.partial/`` that is left is an episode whose recording died.

No ROS is needed: ``rosbags`` (https://ternaris.gitlab.io/rosbags) writes and reads the files of ROS 2 Jazzy.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from onedp_ros.contract import NANOSECONDS, Contract

TARGET_POSE_TOPIC = "target_pose"
GRIPPER_TARGET_TOPIC = "gripper_target"
PARTIAL = ".partial"

_TYPES = get_typestore(Stores.ROS2_JAZZY)
_Time = _TYPES.types["builtin_interfaces/msg/Time"]
_Header = _TYPES.types["std_msgs/msg/Header"]
_Image = _TYPES.types["sensor_msgs/msg/Image"]
_JointState = _TYPES.types["sensor_msgs/msg/JointState"]
_Point = _TYPES.types["geometry_msgs/msg/Point"]
_Quaternion = _TYPES.types["geometry_msgs/msg/Quaternion"]
_Pose = _TYPES.types["geometry_msgs/msg/Pose"]
_PoseStamped = _TYPES.types["geometry_msgs/msg/PoseStamped"]

_NOTHING = np.zeros(0)
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGES = ("onedp_ros", "mujoco", "numpy", "rosbags")


class BagError(RuntimeError):
    """A bag that cannot be read or written; the message names the file and what to do."""


class EpisodeWriter:
    """Writes one episode with the topics and types of a real recording. All stamps are ns; they are also the log times.

    Use as a context manager: leaving it closes the episode, an exception leaves ``<path>.partial``. What is known at the end
    (``success``) goes into :meth:`close`. Values of ``metadata`` are JSON; the task, the contract and the versions of the
    software are added.

    Raises:
        BagError: ``path`` exists.
    """

    def __init__(self, path: str | Path, contract: Contract, metadata: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.contract = contract
        self.metadata = {"task": contract.task, "contract": contract.to_dict(), "versions": versions(), **(metadata or {})}
        self._partial = self.path.with_name(self.path.name + PARTIAL)
        if self.path.exists():
            raise BagError(f"{self.path} exists; choose another name or remove it")
        shutil.rmtree(self._partial, ignore_errors=True)  # the same episode, of an attempt that died
        self._writer = Writer(self._partial / self.path.name, version=9, storage_plugin=StoragePlugin.MCAP)
        # Chunks compressed inside the MCAP file: read by rosbag2, Foxglove and all MCAP tools without unpacking.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._image_topics = {name: self._add(camera.topic, _Image) for name, camera in contract.cameras.items()}
        self._joint_states = self._add(contract.joint_states_topic, _JointState)
        self._pose = self._add(contract.pose_topic, _PoseStamped)
        self._target = self._add(TARGET_POSE_TOPIC, _PoseStamped)
        self._gripper = self._add(GRIPPER_TARGET_TOPIC, _JointState)

    def _add(self, topic: str, message: Any) -> Any:
        return self._writer.add_connection("/" + topic.lstrip("/"), message.__msgtype__, typestore=_TYPES)

    def _write(self, connection: Any, stamp: int, message: Any) -> None:
        self._writer.write(connection, stamp, _TYPES.serialize_cdr(message, connection.msgtype))

    def _header(self, stamp: int, frame: str) -> Any:
        seconds, nanoseconds = divmod(int(stamp), NANOSECONDS)
        return _Header(_Time(seconds, nanoseconds), frame)

    def add_image(self, camera: str, stamp: int, image: NDArray[np.uint8]) -> None:
        """A frame of the contract's camera ``camera``: (H, W, 3) uint8 RGB."""
        height, width, channels = image.shape
        if image.dtype != np.uint8 or channels != 3:
            raise BagError(f"{camera} image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        header = self._header(stamp, f"{camera}_camera_color_optical_frame")
        data = np.ascontiguousarray(image).reshape(-1)
        self._write(self._image_topics[camera], stamp, _Image(header, height, width, "rgb8", 0, 3 * width, data))

    def add_joint_state(self, stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> None:
        """Joint positions (rad, fingers m) and velocities, by name."""
        values = (np.asarray(v, dtype=np.float64) for v in (positions, velocities))
        self._write(self._joint_states, stamp, _JointState(self._header(stamp, ""), list(names), *values, _NOTHING))

    def add_pose(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Pose of the end effector in the base frame: (3,) m, (4,) xyzw."""
        self._write(self._pose, stamp, self._pose_stamped(stamp, position, quaternion))

    def add_target(self, stamp: int, position: ArrayLike, quaternion: ArrayLike, opening: float) -> None:
        """A command: target pose in the base frame, (3,) m, (4,) xyzw, and gripper opening, m."""
        self._write(self._target, stamp, self._pose_stamped(stamp, position, quaternion))
        message = _JointState(self._header(stamp, ""), ["gripper"], np.array([opening], dtype=np.float64), _NOTHING, _NOTHING)
        self._write(self._gripper, stamp, message)

    def _pose_stamped(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> Any:
        pose = _Pose(_Point(*map(float, np.asarray(position))), _Quaternion(*map(float, np.asarray(quaternion))))
        return _PoseStamped(self._header(stamp, self.contract.base_frame), pose)

    def close(self, **metadata: Any) -> Path:
        """Finish the episode and put it in its place. Returns its path."""
        for key, value in {**self.metadata, **metadata}.items():
            self._writer.set_custom_data(key, json.dumps(value))
        self._writer.close()
        bag = self._partial / self.path.name
        for entry in (*bag.iterdir(), bag):
            sync(entry)
        bag.rename(self.path)
        self._partial.rmdir()
        sync(self.path.parent)
        return self.path

    def discard(self) -> None:
        """Throw the episode away."""
        self._writer.abort()
        shutil.rmtree(self._partial)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer.storage is None:
            return  # closed or discarded
        if kind is None:
            self.close()
        else:
            self._writer.abort()


def versions() -> dict[str, str]:
    """Versions of the software that makes an episode; MuJoCo's matters for contact."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_bags(paths: Iterable[str | Path]) -> tuple[list[Path], dict[Path, str]]:
    """Bags among ``paths``: each a bag, a storage file (.mcap, .db3) or a folder of bags.

    Returns:
        The bags, sorted within each folder, and what is no whole bag with the reason.

    Raises:
        BagError: a path that does not exist or a folder without any bag.
    """
    bags: list[Path] = []
    broken: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"{path} does not exist; give a bag or a folder of bags")
        candidates = [path] if path.is_file() or _is_bag(path) else sorted(p for p in path.iterdir() if _is_bag(p))
        if not candidates:
            raise BagError(f"{path} holds no bag; give a bag (a folder with metadata.yaml) or a folder of bags")
        for bag in candidates:
            if bag.name.endswith(PARTIAL):
                broken[bag] = "its recording died before the end; record that episode again and delete this folder"
            elif bag.is_dir() and not (bag / "metadata.yaml").exists():
                broken[bag] = "metadata.yaml is missing, its recording died; try 'ros2 bag reindex' or delete this folder"
            else:
                bags.append(bag)
    return bags, broken


def _is_bag(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in (".mcap", ".db3")
    return path.name.endswith(PARTIAL) or any(p.name == "metadata.yaml" or p.suffix in (".mcap", ".db3") for p in path.iterdir())


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What :class:`EpisodeWriter` noted (task, contract, seed, success, …); empty for a bag of another recorder.

    Raises:
        BagError: metadata.yaml is damaged.
    """
    file = Path(path) / "metadata.yaml"
    if not file.exists():
        return {}
    try:
        custom = yaml.load(file.read_text(encoding="utf-8"), Loader=_YAML_LOADER)["rosbag2_bagfile_information"].get("custom_data")
        return {key: _from_json(value) for key, value in (custom or {}).items()}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, UnicodeDecodeError) as error:
        raise BagError(f"{file} is damaged ({error}); record that episode again or delete the bag") from error


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # another recorder's note


def read_bag(path: str | Path, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, Any]]:
    """Messages in log order: topic without leading "/", stamp (ns) of the header, message by fields.

    The stamp is the log time where a message has no header or an empty stamp. MCAP and SQLite, compressed or not. Types other
    than those of ROS 2 Jazzy's standard packages are passed over, and so are topics not among ``topics``, if given.

    Raises:
        BagError: absent, truncated or damaged.
    """
    try:
        with Reader(Path(path)) as reader:
            wanted = None if topics is None else {topic.lstrip("/") for topic in topics}
            connections = [
                c for c in reader.connections if c.msgtype in _TYPES.fielddefs and (wanted is None or c.topic.lstrip("/") in wanted)
            ]
            if not connections:
                return
            for connection, logged, data in reader.messages(connections):
                message: Any = _TYPES.deserialize_cdr(data, connection.msgtype)
                stamp = logged
                if (header := getattr(message, "header", None)) is not None:
                    stamp = header.stamp.sec * NANOSECONDS + header.stamp.nanosec or logged
                yield connection.topic.lstrip("/"), stamp, message
    except FileNotFoundError as error:
        raise BagError(f"{path} does not exist") from error
    except Exception as error:  # rosbags raises errors of many kinds, assertions included, for a damaged file
        raise BagError(
            f"{path} cannot be read: it is truncated or damaged ({type(error).__name__}: {error}); record that episode again, "
            f"or try 'mcap recover' or 'ros2 bag reindex'"
        ) from error
