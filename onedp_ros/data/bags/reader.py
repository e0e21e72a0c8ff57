"""Reading rosbag2 bags: one MCAP bag per episode, under its final name once it is complete.

An episode is written to ``<name>.partial/`` next to its final place and moved there, synced to disk, when it is closed. So every
``<name>/`` is complete, and a remaining ``<name>.partial/`` is an episode whose recording died: all but its last half second is
there and is read like any other bag. What was known at its start is in ``episode.json`` next to it.

No ROS is needed: ``rosbags`` (https://ternaris.gitlab.io/rosbags) writes and reads the files of ROS 2 Jazzy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.typesys import Stores, get_typestore

from onedp_ros.config import ConfigError, parse_json_value, parse_yaml, read_json, read_yaml
from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.bags.mcap_reader import McapError, McapFile, RawMessage
from onedp_ros.data.bags.storage import read_sqlite, unpacked

PARTIAL = ".partial"
EPISODE_FILE = "episode.json"
METADATA_FILE = "metadata.yaml"

TYPES = get_typestore(Stores.ROS2_JAZZY)
_PACKAGES = ("onedp_ros", "mujoco", "numpy", "rosbags")
_STORAGE = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_BEGINNINGS = {  # first bytes of files that are not bags, and what to do with them
    b"\x89HDF\r\n\x1a\n": "it is an HDF5 file; 'onedp convert' reads robomimic's, named .hdf5",
    b"#ROSBAG V": "it is a ROS 1 bag; convert it to ROS 2 with rosbags-convert (pip install rosbags)",
    b"PK\x03\x04": "it is a zip file; unpack it, or give a zarr store as .zarr.zip",
}


class BagError(RuntimeError):
    """A bag that cannot be read or written; the message names the file and the remedy."""


def versions() -> dict[str, str]:
    """Versions of the software that records an episode; MuJoCo's matters for contacts."""
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


class Refusals:
    """The parts of a recording that could not be used.

    Attributes:
        messages: number of refused messages, by topic.
        reasons: reason for the first of them, by topic.
        damage: descriptions of what could not be read in its files, and how often.
        unstamped: number of messages without a stamp, by topic; the time of recording is used instead.
    """

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.damage: Counter[str] = Counter()
        self.unstamped: Counter[str] = Counter()

    def add(self, topic: str, reason: object) -> None:
        """Count a refused message."""
        self.messages[topic] += 1
        self.reasons.setdefault(topic, str(reason).removeprefix(f"{topic.removesuffix('/compressed')}: "))

    def counts(self) -> Counter[str]:
        """Counts by description: refused messages per topic with the first reason, and the damage."""
        found = Counter({f"{topic} message refused (the first: {self.reasons[topic]})": n for topic, n in self.messages.items()})
        return found + self.damage


def find_bags(paths: Iterable[str | Path]) -> tuple[list[Path], dict[Path, str]]:
    """Find the bags in ``paths``: each a bag, a storage file (.mcap, .db3), a folder of these, or of folders of these.

    A folder without metadata.yaml is one bag if its files are named after it, as by rosbag2; otherwise each file is a recording.

    Returns:
        The bags, sorted within each folder, including interrupted recordings; and those that cannot be read, with the reason.

    Raises:
        BagError: a path that does not exist or a folder without any bag.
    """
    bags: list[Path] = []
    broken: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"{path} does not exist; give a bag or a folder of bags")
        candidates = [path] if path.is_file() else _within(path)
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


def _within(folder: Path, depth: int = 1) -> list[Path]:
    if _is_bag(folder):
        return [folder]
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            found += [path] if path.name.endswith(_STORAGE) else []
        elif _is_bag(path):
            found.append(path)
        elif depth and any(_storage_files(path)):
            found += _within(path, depth - 1)
    return found


def _is_bag(folder: Path) -> bool:
    if folder.name.endswith(PARTIAL) or (folder / METADATA_FILE).exists():
        return folder.is_dir()
    named = re.compile(re.escape(folder.name) + r"(_\d+)?\.(mcap|db3)(\.zstd)?")
    return folder.is_dir() and any(named.fullmatch(path.name) for path in _storage_files(folder))


def _storage_files(folder: Path) -> list[Path]:
    """The storage files in a folder, those of a split recording in the order of their numbers."""
    found = [path for path in folder.iterdir() if path.name.endswith(_STORAGE) and path.is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])


def _files(bag: Path) -> list[Path]:
    """The storage files of a bag: those listed in its metadata that exist; else all."""
    if bag.is_file():
        return [bag]
    folder = bag / bag.name.removesuffix(PARTIAL) if bag.name.endswith(PARTIAL) else bag
    found = _storage_files(folder)
    try:
        named = {Path(str(name)).name for name in _information(folder / METADATA_FILE)["relative_file_paths"]}
    except (BagError, KeyError, TypeError):
        return found
    return [path for path in found if path.name in named] or found


def _busy(bag: Path) -> str:
    """Why a recording is not ready: it is still being written, and its writer holds a lock on its notes; else empty."""
    try:
        with (bag / EPISODE_FILE).open() as notes:
            fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "it is still being recorded; wait until that has ended"
    except OSError:
        pass  # not one of ours, or without notes
    return ""


def _defect(bag: Path) -> str:
    """Why there is nothing to read in a bag; empty if something can be read."""
    files = _files(bag)
    if not files:
        where = "nothing of it was written to disk" if bag.name.endswith(PARTIAL) else "it holds no .mcap or .db3 file"
        return f"{where}; look for its files where it was recorded"
    if (bag / METADATA_FILE).exists():
        return ""  # it was closed; later damage shows when it is read
    reasons = []
    for file in files:
        if not file.name.endswith(_STORAGE):
            return _foreign(file)
        if file.suffix != ".mcap":
            return ""
        try:
            if not McapFile(file).empty:
                return ""
            reasons.append("nothing of it was written to disk; look for a copy where it was recorded")
        except (McapError, OSError) as error:
            reasons.append(str(error))
    return reasons[0]


def _foreign(file: Path) -> str:
    """What a file is whose name is not a bag's, and the remedy."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        begin = stream.read(16)
        for beginning, what in _BEGINNINGS.items():
            if begin.startswith(beginning):
                return what
    return f"it is not a bag file, those end in {', '.join(_STORAGE[:2])}; give a bag or a folder of bags"


def _interrupted(bag: Path) -> bool:
    """Whether a recording was not finished."""
    if bag.name.endswith(PARTIAL):
        return True
    if (bag / METADATA_FILE).exists():
        return False
    if (file := _files(bag)[-1:]) and file[0].suffix == ".mcap":
        with contextlib.suppress(McapError, OSError):
            return not McapFile(file[0]).closed
    return False


def _information(file: Path) -> dict[str, Any]:
    """rosbag2's metadata of a bag, from metadata.yaml or the copy of it in an MCAP file; empty if there is none.

    Raises:
        BagError: it is damaged.
    """
    try:
        if file.name == METADATA_FILE:
            found = read_yaml(file)["rosbag2_bagfile_information"]
        else:
            text = McapFile(file).metadata if file.suffix == ".mcap" else ""
            found = parse_yaml(text, str(file)) if text else {}
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
        return found
    except (ValueError, KeyError, OSError) as error:
        raise BagError(f"{file} is damaged ({error}); 'ros2 bag reindex' creates a new metadata.yaml") from error


KINDS: dict[str, type | tuple[type, ...]] = {
    "contract": dict,
    "success": bool,
    "problems": list,
    "versions": dict,
    "streams": dict,
    "interrupted": bool,
}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The recorder's notes (task, contract, seed, success, …); empty for a bag of another recorder.

    For an interrupted recording, what was known at its start, and ``{"interrupted": True}``. Notes with this package's names but of
    another type belong to another recorder, and are renamed to say so. ``problems`` reports damaged notes.
    """
    path = Path(path)
    ending: dict[str, Any] = {"interrupted": True} if _interrupted(path) else {}
    file = path / (EPISODE_FILE if path.name.endswith(PARTIAL) else METADATA_FILE)
    if not file.exists():
        file = next((file for file in _files(path) if file.suffix == ".mcap"), path)
    try:
        if file.name == EPISODE_FILE:
            found = read_json(file)
        else:
            found = {str(key): _from_json(value) for key, value in (_information(file).get("custom_data") or {}).items()}
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
    except (BagError, ValueError, AttributeError, OSError) as error:
        reason = str(error) if isinstance(error, BagError) else f"{file} is damaged ({error})"
        return {**ending, "problems": [f"{reason}; its recorder's notes are lost, give the task with --task"]}
    notes = {}
    for key, value in found.items():
        ours = isinstance(value, KINDS.get(key, object))
        notes[key if ours else f"{key} (of another recorder)"] = value
    return {**notes, **ending}


def _from_json(text: Any) -> Any:
    try:
        return parse_json_value(text, "") if isinstance(text, str) else text
    except ConfigError:
        return text  # another recorder's note


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left of an interrupted recording: messages, the time they span (s), and the bytes truncated at the end."""

    messages: int
    seconds: float
    cut_bytes: int


def kept(path: str | Path) -> Kept | None:
    """What is left of an interrupted recording; None for a bag that was closed. BagError if nothing can be read."""
    path = Path(path)
    if not _interrupted(path):
        return None
    count, first, last = 0, 0, 0
    for message in read_serialized(path):
        first = min(first, message.logged) if count else message.logged
        last = max(last, message.logged)
        count += 1
    cut = sum(file.stat().st_size - McapFile(file).read_to for file in _files(path) if file.suffix == ".mcap")
    return Kept(count, (last - first) / NANOSECONDS, cut)


class Message(NamedTuple):
    """A message: topic without leading "/", header stamp and log time (ns), the deserialized message."""

    topic: str
    stamp: int
    logged: int
    content: Any


def read_bag(path: str | Path, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, Any]]:
    """Topic, stamp and content of :func:`read_messages`."""
    for topic, stamp, _, content in read_messages(path, topics):
        yield topic, stamp, content


def read_messages(path: str | Path, topics: Collection[str] | None = None, refusals: Refusals | None = None) -> Iterator[Message]:
    """Messages in log order, of all topics or of ``topics`` only.

    The stamp is the log time if a message has no header or a zero stamp. Reads MCAP and SQLite, compressed or not. Types outside
    ROS 2 Jazzy's standard packages are skipped, and so are truncated or damaged parts and messages that cannot be deserialized,
    which are reported to ``refusals``.

    Raises:
        BagError: it does not exist, or nothing of it can be read.
    """
    refusals = refusals or Refusals()
    for logged, name, msgtype, encoding, data in read_serialized(path, topics, refusals):
        topic = name.lstrip("/")
        if encoding not in ("cdr", "") or msgtype not in TYPES.fielddefs:
            if topics is not None:
                refusals.add(topic, f"its type {msgtype} ({encoding}) is not among ROS 2's standard messages")
            continue
        try:
            content: Any = TYPES.deserialize_cdr(data, msgtype)
        except Exception as error:  # rosbags raises errors of many kinds, assertions included
            refusals.add(topic, f"it cannot be decoded as {msgtype}, {type(error).__name__}: {error}")
            continue
        stamp = logged
        if (header := getattr(content, "header", None)) is not None:
            stamp = header.stamp.sec * NANOSECONDS + header.stamp.nanosec
            if not stamp:
                stamp = logged
                refusals.unstamped[topic] += 1
        yield Message(topic, stamp, logged, content)


def read_serialized(
    path: str | Path, topics: Collection[str] | None = None, refusals: Refusals | None = None
) -> Iterator[RawMessage]:
    """All messages of a bag, or those of ``topics``, in log order, as recorded. Errors of :func:`read_messages`."""
    path = Path(path)
    if not path.exists():
        raise BagError(f"{path} does not exist; give a bag")
    wanted = None if topics is None else {topic.lstrip("/") for topic in topics}
    files, damage, errors, count = _files(path), Counter[str](), [], 0
    if not files or not files[0].name.endswith(_STORAGE):
        raise BagError(f"{path}: {_defect(path)}")
    for file in files:
        storage: McapFile | None = None
        try:
            with unpacked(file) as plain:
                if plain.suffix == ".mcap":
                    storage = McapFile(plain)
                for message in storage.messages(wanted) if storage else read_sqlite(plain, wanted):
                    count += 1
                    yield message
        except Exception as error:  # apsw and zstd raise errors of many kinds
            errors.append(f"{file.name}: {error}")
            damage[f"{file.name} cannot be read further: {error}"] += 1
        if storage is not None:
            damage.update({f"{file.name}: {what}": n for what, n in storage.damage.items()})
            if storage.read_to < storage.size:
                damage[f"{file.name}: {storage.size - storage.read_to} bytes at its end are cut short"] += 1
    if refusals is not None:
        refusals.damage.update(damage)
    if errors and not count:
        remedy = "; 'sqlite3 FILE .recover' may recover what is left" if files[0].suffix == ".db3" else ""
        raise BagError(f"{path} cannot be read: {errors[0]}; look for a copy where it was recorded{remedy}")
