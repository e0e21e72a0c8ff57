"""Writing bags: one MCAP bag per episode, under its final name once it is complete; see :mod:`onedp_ros.data.bags.reader`.

``rosbags`` writes the same files on every machine, with ROS or without.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np
from backports import zstd
from numpy.typing import ArrayLike, NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter

from onedp_ros.contract import NANOSECONDS, Contract, Feature, Floats
from onedp_ros.contract.features import slices
from onedp_ros.data.bags.reader import (
    EPISODE_FILE,
    PARTIAL,
    TYPES,
    BagError,
    sync,
    versions,
)

CHUNK_TIME = 0.5  # s after which a chunk is closed, full (1 MiB) or not: the most that a killed recording loses
SYNC_PERIOD = 1.0  # s between syncs to disk: the most that a power failure loses
LEVEL = 1  # of zstd: images with camera noise get as small as with 3, the default, in three quarters of the time

_Time = TYPES.types["builtin_interfaces/msg/Time"]
_Header = TYPES.types["std_msgs/msg/Header"]
_Image = TYPES.types["sensor_msgs/msg/Image"]
_JointState = TYPES.types["sensor_msgs/msg/JointState"]
_Point = TYPES.types["geometry_msgs/msg/Point"]
_Quaternion = TYPES.types["geometry_msgs/msg/Quaternion"]
_Pose = TYPES.types["geometry_msgs/msg/Pose"]
_PoseStamped = TYPES.types["geometry_msgs/msg/PoseStamped"]

_NOTHING = np.zeros(0)

_Self = TypeVar("_Self", bound="BagWriter")


class _Storage(McapWriter):
    """An MCAP file that keeps every closed chunk whatever happens to the process. Chunks have checksums, to detect damage."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        parameter = zstd.CompressionParameter
        # One for all chunks, since creating it takes time.
        compressor = zstd.ZstdCompressor(options={int(parameter.compression_level): LEVEL, int(parameter.checksum_flag): 1})
        self.compressor = lambda data: compressor.compress(data, compressor.FLUSH_FRAME)
        self.size = 0
        self._closed_at = time.monotonic()

    def write(self, connection: Any, timestamp: int, data: bytes | memoryview) -> None:
        super().write(connection, timestamp, data)
        if time.monotonic() - self._closed_at > CHUNK_TIME:
            self.flush()

    def flush(self) -> None:
        """Close the current chunk, if it has messages."""
        if self.chunk.msgs:
            self.close_chunk()

    def close_chunk(self) -> None:
        super().close_chunk()
        self.bio.flush()
        self.size = self.bio.tell()
        self._closed_at = time.monotonic()


class _Writer(Writer):
    STORAGE_PLUGINS = {StoragePlugin.MCAP: _Storage}  # noqa: RUF012


class BagWriter:
    """Writes one episode from serialized messages.

    Messages survive a crash of the process after half a second, and a power failure after about one. Use it as a context manager:
    leaving it closes the episode, an exception leaves ``<path>.partial``. ``topics`` gives each topic's type, such as
    ``sensor_msgs/msg/Image``. Values of ``metadata`` are JSON; the task, the contract and the software versions are added. What is
    known only at the end (``success``) is passed to :meth:`close`.

    Raises:
        BagError: ``path`` exists, or a type is not in a standard package; or, here and in the other methods, the disk is full or
            fails. The writer has then ended, and what was written stays in ``<path>.partial``.
    """

    def __init__(
        self, path: str | Path, contract: Contract, topics: Mapping[str, str], metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        self.contract = contract
        self.metadata = {"task": contract.task, "contract": contract.to_dict(), "versions": versions(), **(metadata or {})}
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        if self.path.exists():
            raise BagError(f"{self.path} exists; choose another name")
        for topic, msgtype in topics.items():
            if msgtype not in TYPES.fielddefs:
                raise BagError(
                    f"{topic} has the type {msgtype}, which is not among ROS 2's standard messages; leave this topic out"
                )
        shutil.rmtree(self.partial, ignore_errors=True)  # left from an attempt that died
        self._ended = threading.Event()
        self._sync_error: list[OSError] = []
        self._syncer: threading.Thread | None = None
        self._mark: IO[str] | None = None
        self._writer = _Writer(self.partial / self.path.name, version=9, storage_plugin=StoragePlugin.MCAP)
        # Chunks compressed inside the MCAP file, which rosbag2, Foxglove and all MCAP tools read directly.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self.partial.mkdir(parents=True)
            self._mark = (self.partial / EPISODE_FILE).open("w", encoding="utf-8")
            fcntl.flock(self._mark, fcntl.LOCK_EX)  # held while recording, until this process closes it or ends
            self._mark.write(json.dumps(self.metadata))
            self._mark.flush()
            self._writer.open()
            for entry in (self.partial / EPISODE_FILE, self._writer.path, self.partial, self.partial.parent):
                sync(entry)
        except OSError as error:
            raise self._failure(error) from error
        assert isinstance(self._writer.storage, _Storage)
        self._storage = self._writer.storage
        self._connections = {
            topic: self._writer.add_connection("/" + topic.lstrip("/"), msgtype, typestore=TYPES)
            for topic, msgtype in topics.items()
        }
        arguments = (self._storage.bio.fileno(), self._ended, self._sync_error)
        self._syncer = threading.Thread(target=_sync_now_and_then, args=arguments, name="sync", daemon=True)
        self._syncer.start()

    @property
    def size(self) -> int:
        """Bytes in the file so far."""
        return self._storage.size

    def write(self, topic: str, logged: int, data: bytes | memoryview) -> None:
        """Write a serialized message (CDR) of one of the topics, with its log time (ns)."""
        try:
            if self._sync_error:
                raise self._sync_error[0]
            self._writer.write(self._connections[topic], logged, data)
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Write the current chunk to the file, when no message may follow for a while."""
        try:
            self._storage.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self, **metadata: Any) -> Path:
        """Finish the episode and move it to its final place. Returns its path."""
        self._end_syncs()
        if self._sync_error:
            raise self._failure(self._sync_error[0])
        for key, value in {**self.metadata, **metadata}.items():
            self._writer.set_custom_data(key, json.dumps(value))
        bag = self.partial / self.path.name
        try:
            self._writer.close()
            for entry in (*bag.iterdir(), bag):
                sync(entry)
            bag.rename(self.path)
            shutil.rmtree(self.partial)
            sync(self.path.parent)
        except OSError as error:
            raise self._failure(error) from error
        return self.path

    def abort(self) -> None:
        """End without finishing: ``<path>.partial`` stays, with what was written to the file."""
        self._end_syncs()
        with suppress(OSError):  # of a full disk, when writing the rest
            self._writer.abort()

    def discard(self) -> None:
        """Discard the episode."""
        self.abort()
        try:
            shutil.rmtree(self.partial)
        except OSError as error:
            raise BagError(f"{self.partial} could not be discarded: {error}; make its folder writable") from error

    def _end_syncs(self) -> None:
        self._ended.set()
        if self._mark is not None:
            self._mark.close()
        if self._syncer is not None:
            self._syncer.join()

    def _failure(self, error: OSError) -> BagError:
        """End the recording and return the error to raise."""
        self.abort()
        disk = self.partial.absolute()
        while not os.path.ismount(disk):
            disk = disk.parent
        trouble = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"reports '{error.strerror}'"
        return BagError(
            f"the disk at {disk} {trouble}: {self.partial} ends here, and its content is readable; free space, or record to "
            f"another disk"
        )

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ended.is_set():
            return  # closed or discarded
        if kind is None:
            self.close()
        else:
            self.abort()


def _sync_now_and_then(file: int, ended: threading.Event, failed: list[OSError]) -> None:
    """Runs in a thread, since a disk may be slow."""
    while not ended.wait(SYNC_PERIOD):
        try:
            os.fdatasync(file)
        except OSError as error:
            failed.append(error)
            return


class EpisodeWriter(BagWriter):
    """Writes one episode with the topics and types of a real recording. All stamps are ns; they are also the log times."""

    def __init__(self, path: str | Path, contract: Contract, metadata: Mapping[str, Any] | None = None) -> None:
        topics = {camera.topic: _Image.__msgtype__ for camera in contract.cameras.values()}
        super().__init__(path, contract, {**topics, **contract.state_topics, **contract.action_topics}, metadata)

    def _add(self, topic: str, stamp: int, message: Any) -> None:
        self.write(topic, stamp, TYPES.serialize_cdr(message, message.__msgtype__))

    def _header(self, stamp: int, frame: str) -> Any:
        seconds, nanoseconds = divmod(int(stamp), NANOSECONDS)
        return _Header(_Time(seconds, nanoseconds), frame)

    def add_image(self, camera: str, stamp: int, image: NDArray[np.uint8]) -> None:
        """Add a frame of the contract's camera ``camera``: (H, W, 3) uint8 RGB."""
        height, width, channels = image.shape
        if image.dtype != np.uint8 or channels != 3:
            raise BagError(f"{camera} image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        header = self._header(stamp, f"{camera}_camera_color_optical_frame")
        data = np.ascontiguousarray(image).reshape(-1)
        self._add(self.contract.cameras[camera].topic, stamp, _Image(header, height, width, "rgb8", 0, 3 * width, data))

    def add_joint_state(self, stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> None:
        """Add joint positions (rad, fingers m) and velocities of the single arm, by name."""
        self._add_joints(self.contract.arm.joint_states_topic, stamp, names, positions, velocities)

    def add_pose(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Add the single arm's end effector pose in the base frame: (3,) m, (4,) xyzw."""
        self._add(self.contract.arm.pose_topic, stamp, self._pose_stamped(stamp, position, quaternion))

    def add_target(self, stamp: int, position: ArrayLike, quaternion: ArrayLike, opening: float) -> None:
        """Add a command to the single arm: target pose in the base frame, (3,) m, (4,) xyzw, and gripper opening, m."""
        self._add(self.contract.arm.target_topic, stamp, self._pose_stamped(stamp, position, quaternion))
        self._add_joints(self.contract.arm.gripper_topic, stamp, ["gripper"], [opening])

    def add_state(self, stamp: int, state: Floats) -> None:
        """Add a state (state_dim,) of any contract, as one message on each of its topics."""
        self._add_features(stamp, self.contract.state, state)

    def add_action(self, stamp: int, action: Floats) -> None:
        """Add a command (action_dim,) of any contract, as one message on each of its topics."""
        self._add_features(stamp, self.contract.action, action)

    def _add_features(self, stamp: int, features: Sequence[Feature], values: Floats) -> None:
        at = slices(features)
        for topic in dict.fromkeys(feature.topic for feature in features):
            parts = [(feature, values[at[feature.name]]) for feature in features if feature.topic == topic]
            if parts[0][0].is_pose:
                position: Floats = np.zeros(3)
                quaternion: Floats = np.array([0.0, 0.0, 0.0, 1.0])
                for feature, value in parts:
                    if feature.kind == "position":
                        position = value
                    else:
                        quaternion = feature.quaternions(value)
                self._add(topic, stamp, self._pose_stamped(stamp, position, quaternion))
            else:
                names = [name for feature, _ in parts for name in feature.message_names or (feature.name,)]
                self._add_joints(topic, stamp, names, np.concatenate([value for _, value in parts]))

    def _add_joints(self, topic: str, stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> None:
        values = (np.asarray(v, dtype=np.float64) for v in (positions, velocities))
        self._add(topic, stamp, _JointState(self._header(stamp, ""), list(names), *values, _NOTHING))

    def _pose_stamped(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> Any:
        pose = _Pose(_Point(*map(float, np.asarray(position))), _Quaternion(*map(float, np.asarray(quaternion))))
        return _PoseStamped(self._header(stamp, self.contract.base_frame), pose)
