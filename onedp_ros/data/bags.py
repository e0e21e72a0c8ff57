"""rosbag2 bags: one MCAP bag an episode, under its name when it is whole, and read back.

An episode is written into ``<name>.partial/`` beside its final place and moved there, synced to disk, when it is closed. So
every ``<name>/`` is complete, and a ``<name>.partial/`` that is left is an episode whose recording died: all of it but the last
half second is there and is read as any other bag. What was known at its start lies beside it, in ``episode.json``.

No ROS is needed: ``rosbags`` (https://ternaris.gitlab.io/rosbags) writes and reads the files of ROS 2 Jazzy.
"""

from __future__ import annotations

import bisect
import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import yaml
from backports import zstd
from numpy.typing import ArrayLike, NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter, decompress
from rosbags.typesys import Stores, get_typestore

from onedp_ros.contract import NANOSECONDS, Contract

TARGET_POSE_TOPIC = "target_pose"
GRIPPER_TARGET_TOPIC = "gripper_target"
PARTIAL = ".partial"
EPISODE_FILE = "episode.json"
CHUNK_TIME = 0.5  # s after which a chunk is closed, be it full (1 MiB) or not: what a killed recording may lose
SYNC_PERIOD = 1.0  # s between syncs to disk: what a power cut may cost
LEVEL = 1  # of zstd: images with a camera's noise come out as small as with 3, the default, and cost a quarter less

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

_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")  # of an MCAP file: kind, length
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = range(2, 7)
_MAX_RECORD = 2**30  # bytes; a longer one is no record

_Raw = tuple[int, str, str, bytes]  # log time (ns), topic, type, serialized message
_Self = TypeVar("_Self", bound="BagWriter")


class BagError(RuntimeError):
    """A bag that cannot be read or written; the message names the file and what to do."""


class _Storage(McapWriter):
    """An MCAP file that holds every closed chunk whatever becomes of the process. Damage shows: chunks carry a checksum."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        parameter = zstd.CompressionParameter
        # One for all chunks, since it takes time to make.
        compressor = zstd.ZstdCompressor(options={int(parameter.compression_level): LEVEL, int(parameter.checksum_flag): 1})
        self.compressor = lambda data: compressor.compress(data, compressor.FLUSH_FRAME)
        self.size = 0
        self._closed_at = time.monotonic()

    def write(self, connection: Any, timestamp: int, data: bytes | memoryview) -> None:
        super().write(connection, timestamp, data)
        if time.monotonic() - self._closed_at > CHUNK_TIME:
            self.flush()

    def flush(self) -> None:
        """Close the chunk, if it holds messages."""
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

    What is written is safe from the death of the process after half a second, and from a power cut after about one. Use as a
    context manager: leaving it closes the episode, an exception leaves ``<path>.partial``. ``topics`` gives each topic's type,
    such as ``sensor_msgs/msg/Image``. Values of ``metadata`` are JSON; the task, the contract and the versions of the software
    are added. What is known at the end (``success``) goes into :meth:`close`.

    Raises:
        BagError: ``path`` exists, or a type is of no standard package; or, here as in the other methods, the disk is full or
            fails. Then the writer has ended, and what had been written stays in ``<path>.partial``.
    """

    def __init__(
        self, path: str | Path, contract: Contract, topics: Mapping[str, str], metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        self.contract = contract
        self.metadata = {"task": contract.task, "contract": contract.to_dict(), "versions": versions(), **(metadata or {})}
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        if self.path.exists():
            raise BagError(f"{self.path} exists; choose another name or remove it")
        for topic, msgtype in topics.items():
            if msgtype not in _TYPES.fielddefs:
                raise BagError(
                    f"{topic} has the type {msgtype}, which is not among ROS 2's standard messages; leave that topic out"
                )
        shutil.rmtree(self.partial, ignore_errors=True)  # the same episode, of an attempt that died
        self._ended = threading.Event()
        self._sync_error: list[OSError] = []
        self._syncer: threading.Thread | None = None
        self._writer = _Writer(self.partial / self.path.name, version=9, storage_plugin=StoragePlugin.MCAP)
        # Chunks compressed inside the MCAP file: read by rosbag2, Foxglove and all MCAP tools without unpacking.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self.partial.mkdir(parents=True)
            (self.partial / EPISODE_FILE).write_text(json.dumps(self.metadata), encoding="utf-8")
            self._writer.open()
            for entry in (self.partial / EPISODE_FILE, self._writer.path, self.partial, self.partial.parent):
                sync(entry)
        except OSError as error:
            raise self._failure(error) from error
        assert isinstance(self._writer.storage, _Storage)
        self._storage = self._writer.storage
        self._connections = {
            topic: self._writer.add_connection("/" + topic.lstrip("/"), msgtype, typestore=_TYPES)
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
        """A serialized message (CDR) of one of the topics, with its log time (ns)."""
        try:
            if self._sync_error:
                raise self._sync_error[0]
            self._writer.write(self._connections[topic], logged, data)
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Hand over what has been written so far, at a moment when nothing more may come for a while."""
        try:
            self._storage.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self, **metadata: Any) -> Path:
        """Finish the episode and put it in its place. Returns its path."""
        self._end_syncs()
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
        """End without finishing: ``<path>.partial`` stays, with what was handed over."""
        self._end_syncs()
        with suppress(OSError):  # of a full disk, which could not take the rest
            self._writer.abort()

    def discard(self) -> None:
        """Throw the episode away."""
        self.abort()
        shutil.rmtree(self.partial)

    def _end_syncs(self) -> None:
        self._ended.set()
        if self._syncer is not None:
            self._syncer.join()

    def _failure(self, error: OSError) -> BagError:
        """End, and what to tell."""
        self.abort()
        disk = self.partial.absolute()
        while not os.path.ismount(disk):
            disk = disk.parent
        trouble = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"says '{error.strerror}'"
        return BagError(
            f"the disk at {disk} {trouble}: {self.partial} ends here, and what it holds is readable; free space, or record to "
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
    """In a thread, since a disk may take its time."""
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
        topics |= {contract.joint_states_topic: _JointState.__msgtype__, contract.pose_topic: _PoseStamped.__msgtype__}
        topics |= {TARGET_POSE_TOPIC: _PoseStamped.__msgtype__, GRIPPER_TARGET_TOPIC: _JointState.__msgtype__}
        super().__init__(path, contract, topics, metadata)

    def _add(self, topic: str, stamp: int, message: Any) -> None:
        self.write(topic, stamp, _TYPES.serialize_cdr(message, message.__msgtype__))

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
        self._add(self.contract.cameras[camera].topic, stamp, _Image(header, height, width, "rgb8", 0, 3 * width, data))

    def add_joint_state(self, stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> None:
        """Joint positions (rad, fingers m) and velocities, by name."""
        values = (np.asarray(v, dtype=np.float64) for v in (positions, velocities))
        self._add(self.contract.joint_states_topic, stamp, _JointState(self._header(stamp, ""), list(names), *values, _NOTHING))

    def add_pose(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Pose of the end effector in the base frame: (3,) m, (4,) xyzw."""
        self._add(self.contract.pose_topic, stamp, self._pose_stamped(stamp, position, quaternion))

    def add_target(self, stamp: int, position: ArrayLike, quaternion: ArrayLike, opening: float) -> None:
        """A command: target pose in the base frame, (3,) m, (4,) xyzw, and gripper opening, m."""
        self._add(TARGET_POSE_TOPIC, stamp, self._pose_stamped(stamp, position, quaternion))
        message = _JointState(self._header(stamp, ""), ["gripper"], np.array([opening], dtype=np.float64), _NOTHING, _NOTHING)
        self._add(GRIPPER_TARGET_TOPIC, stamp, message)

    def _pose_stamped(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> Any:
        pose = _Pose(_Point(*map(float, np.asarray(position))), _Quaternion(*map(float, np.asarray(quaternion))))
        return _PoseStamped(self._header(stamp, self.contract.base_frame), pose)


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
        The bags, sorted within each folder, interrupted recordings among them; and what cannot be read, with the reason.

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
            if bag.name.endswith(PARTIAL) and bag.with_name(bag.name.removesuffix(PARTIAL)).exists():
                continue  # the empty shell of an episode that was closed
            if reason := _defect(bag):
                broken[bag] = reason
            else:
                bags.append(bag)
    return bags, broken


def _is_bag(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in (".mcap", ".db3")
    return path.name.endswith(PARTIAL) or any(p.name == "metadata.yaml" or p.suffix in (".mcap", ".db3") for p in path.iterdir())


def _defect(bag: Path) -> str:
    """Why there is nothing to read; empty for a bag that was closed, or begun and interrupted."""
    if (file := _interrupted(bag)) is not None:
        try:
            if any(messages for _, messages in _scan(file)):
                return ""
        except BagError as error:
            return str(error)
    if file is not None or bag.name.endswith(PARTIAL):
        return "its recording died before any of it was on disk; record that episode again and delete this folder"
    if bag.is_dir() and not (bag / "metadata.yaml").exists():
        return "metadata.yaml is missing, its recording died; try 'ros2 bag reindex' or delete this folder"
    return ""


def _interrupted(bag: Path) -> Path | None:
    """The MCAP file of a recording that was not finished; None for any other bag."""
    folder = bag
    if bag.name.endswith(PARTIAL):
        folder = bag / bag.name.removesuffix(PARTIAL)
    elif not bag.is_dir() or (bag / "metadata.yaml").exists():
        return None
    files = list(folder.glob("*.mcap"))
    return files[0] if len(files) == 1 else None


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What the recorder noted (task, contract, seed, success, …); empty for a bag of another recorder.

    Of an interrupted recording, what was known at its start, and ``{"interrupted": True}``.

    Raises:
        BagError: metadata.yaml is damaged.
    """
    interrupted = _interrupted(Path(path)) is not None
    file = Path(path) / (EPISODE_FILE if interrupted else "metadata.yaml")
    ending = {"interrupted": True} if interrupted else {}
    if not file.exists():
        return ending
    try:
        text = file.read_text(encoding="utf-8")
        if interrupted:
            return {**json.loads(text), **ending}
        custom = yaml.load(text, Loader=_YAML_LOADER)["rosbag2_bagfile_information"].get("custom_data")
        return {key: _from_json(value) for key, value in (custom or {}).items()}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BagError(f"{file} is damaged ({error}); record that episode again or delete the bag") from error


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # another recorder's note


@dataclasses.dataclass(frozen=True)
class Kept:
    """What an interrupted recording still holds: messages, the time they span (s), and how many bytes at the end were cut."""

    messages: int
    seconds: float
    cut_bytes: int


def kept(path: str | Path) -> Kept | None:
    """Of an interrupted recording; None for a bag that was closed. BagError when it is damaged."""
    file = _interrupted(Path(path))
    if file is None:
        return None
    count, first, last, end = 0, 0, 0, 0
    for end, messages in _scan(file):  # noqa: B007
        if messages:
            first = messages[0][0] if not count else min(first, messages[0][0])
            last = max(last, messages[-1][0])
            count += len(messages)
    return Kept(count, (last - first) / NANOSECONDS, file.stat().st_size - end)


def read_bag(path: str | Path, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, Any]]:
    """Messages in log order: topic without leading "/", stamp (ns) of the header, message by fields.

    The stamp is the log time where a message has no header or an empty stamp. MCAP and SQLite, compressed or not. Types other
    than those of ROS 2 Jazzy's standard packages are passed over, and so are topics not among ``topics``, if given. An
    interrupted recording is read as far as it goes.

    Raises:
        BagError: absent, truncated though it had been closed, or damaged.
    """
    path = Path(path)
    wanted = None if topics is None else {topic.lstrip("/") for topic in topics}
    file = _interrupted(path)
    try:
        for logged, topic, msgtype, data in _finished(path) if file is None else _unfinished(file):
            topic = topic.lstrip("/")
            if msgtype not in _TYPES.fielddefs or (wanted is not None and topic not in wanted):
                continue
            message: Any = _TYPES.deserialize_cdr(data, msgtype)
            stamp = logged
            if (header := getattr(message, "header", None)) is not None:
                stamp = header.stamp.sec * NANOSECONDS + header.stamp.nanosec or logged
            yield topic, stamp, message
    except FileNotFoundError as error:
        raise BagError(f"{path} does not exist") from error
    except BagError:
        raise
    except Exception as error:  # rosbags raises errors of many kinds, assertions included, for a damaged file
        raise BagError(
            f"{path} cannot be read: it is truncated or damaged ({type(error).__name__}: {error}); record that episode again, "
            f"or try 'mcap recover' or 'ros2 bag reindex'"
        ) from error


def _finished(path: Path) -> Iterator[_Raw]:
    """All messages of a bag that was closed, in log order."""
    with Reader(path) as reader:
        for connection, logged, data in reader.messages():
            yield logged, connection.topic, connection.msgtype, data


def _unfinished(file: Path) -> Iterator[_Raw]:
    """All messages of a storage file without an end, in log order; neighbouring chunks may overlap in time."""
    waiting: list[_Raw] = []
    for _, messages in _scan(file):
        if messages:
            ready = bisect.bisect_right(waiting, messages[0][0], key=_log_time)
            yield from waiting[:ready]
            waiting = sorted([*waiting[ready:], *messages], key=_log_time)
    yield from waiting


def _log_time(message: _Raw) -> int:
    return message[0]


def _scan(file: Path) -> Iterator[tuple[int, list[_Raw]]]:
    """Go through an MCAP file as far as it is whole: the end (byte) of each record, and the messages in it, in log order.

    What is cut short at the end is left out, and so is a last chunk that does not agree with its checksum. BagError when
    another chunk follows such a one.
    """
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    damage = ""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if not _MAGIC.startswith(stream.read(len(_MAGIC))):
            raise BagError(f"{file} is no MCAP file; record that episode again and delete it")
        while len(head := stream.read(_RECORD.size)) == _RECORD.size:
            begin, (opcode, length) = stream.tell() - _RECORD.size, _RECORD.unpack(head)
            if opcode == 0 or size - stream.tell() < length <= _MAX_RECORD:
                return  # cut short, or space that a power cut left empty
            if length > _MAX_RECORD or (damage and opcode == _CHUNK):
                raise BagError(
                    f"{file} is damaged: {damage or f'no record begins at byte {begin}'}; record that episode again, "
                    f"or take what 'mcap recover' finds"
                )
            body = stream.read(length)
            messages: list[_Raw] = []
            if opcode == _CHUNK:
                try:
                    messages = _messages(body, schemas, channels)
                except Exception as error:  # of decompression, or of what came out of it
                    damage = f"the chunk at byte {begin} cannot be read ({error})"
            if not damage:
                yield size if opcode == _FOOTER else stream.tell(), messages


def _messages(chunk: bytes, schemas: dict[int, str], channels: dict[int, tuple[str, str]]) -> list[_Raw]:
    """The messages of a chunk, in log order; the schemas and channels in it come into ``schemas`` and ``channels``.

    The format: https://mcap.dev/spec.
    """
    size, crc, name = struct.unpack_from("<16xQII", chunk)
    compression, data = chunk[32 : 32 + name].decode(), chunk[40 + name :]
    records = decompress(data, compression, size, crc)
    messages: list[_Raw] = []
    at = 0
    while at < len(records):
        opcode, length = _RECORD.unpack_from(records, at)
        at += _RECORD.size
        if opcode == _SCHEMA:
            key, name = struct.unpack_from("<HI", records, at)
            schemas[key] = records[at + 6 : at + 6 + name].decode()
        elif opcode == _CHANNEL:
            key, schema, name = struct.unpack_from("<HHI", records, at)
            channels[key] = (records[at + 8 : at + 8 + name].decode(), schemas[schema])
        elif opcode == _MESSAGE:
            key, logged = struct.unpack_from("<H4xQ", records, at)
            messages.append((logged, *channels[key], records[at + 22 : at + length]))
        at += length
    messages.sort(key=_log_time)
    return messages
