"""rosbag2 bags: one MCAP bag an episode, under its name when it is whole, and read back.

An episode is written into ``<name>.partial/`` beside its final place and moved there, synced to disk, when it is closed. So
every ``<name>/`` is complete, and a ``<name>.partial/`` that is left is an episode whose recording died: all of it but the last
half second is there and is read as any other bag. What was known at its start lies beside it, in ``episode.json``.

No ROS is needed: ``rosbags`` (https://ternaris.gitlab.io/rosbags) writes and reads the files of ROS 2 Jazzy.
"""

from __future__ import annotations

import bisect
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.storage_mcap import decompress
from rosbags.typesys import Stores, get_typestore

from onedp_ros.contract import NANOSECONDS

TARGET_POSE_TOPIC = "target_pose"
GRIPPER_TARGET_TOPIC = "gripper_target"
PARTIAL = ".partial"
EPISODE_FILE = "episode.json"

TYPES = get_typestore(Stores.ROS2_JAZZY)
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGES = ("onedp_ros", "mujoco", "numpy", "rosbags")

_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")  # of an MCAP file: kind, length
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = range(2, 7)
_MAX_RECORD = 2**30  # bytes; a longer one is no record

_Raw = tuple[int, str, str, bytes]  # log time (ns), topic, type, serialized message


class BagError(RuntimeError):
    """A bag that cannot be read or written; the message names the file and what to do."""


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
            if reason := _busy(bag) or _defect(bag):
                broken[bag] = reason
            else:
                bags.append(bag)
    return bags, broken


def _is_bag(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in (".mcap", ".db3")
    return path.name.endswith(PARTIAL) or any(p.name == "metadata.yaml" or p.suffix in (".mcap", ".db3") for p in path.iterdir())


def _busy(bag: Path) -> str:
    """Whether a recording is still being written: its writer holds a lock on its notes."""
    try:
        with (bag / EPISODE_FILE).open() as notes:
            fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "it is being recorded; come back when that is over"
    except OSError:
        pass  # not one of ours, or without notes
    return ""


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
            if msgtype not in TYPES.fielddefs or (wanted is not None and topic not in wanted):
                continue
            message: Any = TYPES.deserialize_cdr(data, msgtype)
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
