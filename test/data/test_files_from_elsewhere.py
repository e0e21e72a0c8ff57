"""Any file of settings and any recording is used, or refused with what is wrong: nothing else is raised, waited for or written.

By default a few hundred files of each kind; ``pytest --hypothesis-profile fuzz test/data/test_files_from_elsewhere.py`` tries many.
"""

import contextlib
import io
import json
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import yaml
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from onedp_ros.contract import Contract
from onedp_ros.control.safety import SafetyLimits
from onedp_ros.data.bags import reader as bags
from onedp_ros.data.bags.reader import BagError, find_bags, read_messages, read_metadata
from onedp_ros.learning.train import read_section
from onedp_ros.policy.methods.settings import PretrainingSettings
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.resources import resource
from onedp_ros.robot.settings import RobotSettings
from onedp_ros.settings import from_mapping
from onedp_ros.teleop.devices import read_settings
from onedp_ros.teleop.session import Motion
from onedp_ros.twin.settings import TwinSettings

# ---- files of settings: one place of a good file changed at random


def read_robot(path: Path) -> object:
    return RobotSettings.from_yaml(path), SafetyLimits.from_yaml(path)


def read_teleop(path: Path) -> object:
    return Motion.from_yaml(path), read_settings(path, "spacemouse"), read_settings(path, "gamepad")


def read_training(path: Path) -> object:
    return NetworkConfig.from_dict(read_section(path, "network")), from_mapping(
        PretrainingSettings, "train", read_section(path, "train")
    )


KINDS: dict[str, tuple[Path, Callable[[Path], object]]] = {
    "task": (resource("config", "tasks", "pnp_milk.yaml"), Contract.from_yaml),
    "robot": (resource("config", "robot", "franka.yaml"), read_robot),
    "twin": (resource("config", "robot", "twin.yaml"), TwinSettings.from_yaml),
    "teleop": (resource("config", "teleop.yaml"), read_teleop),
    "training": (resource("config", "train", "compact.yaml"), read_training),
}

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1e9, 1e30, 1e308, 2**63, 10**30, True, 1e-300])
TEXTS = st.text(max_size=12) | st.sampled_from(["../x", "/etc/passwd", "a/b", "..", "", "~", "1e9", "yes", "null", "x" * 5000])
ANYTHING = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda some: st.lists(some, max_size=10) | st.dictionaries(TEXTS, some, max_size=4),
    max_leaves=12,
)
SNIPPETS = st.sampled_from(
    [
        "&a",
        "*a",
        "<<: *a",
        "<<:",
        "!!python/object/apply:os.system [touch evil]",
        "!!set",
        "[" * 40,
        "{" * 40,
        "- " * 40,
        "? ",
        "---\n",
        "\t",
        "\0",
        ": ",
        "\n",
        "'",
        '"',
        "|\n",
        ">\n",
        "%YAML 9\n",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "#",
    ]
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value in plain data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, file: Path) -> bytes:
    """A file with one or a few of its values replaced, or its text changed."""
    text = file.read_text(encoding="utf-8")
    how = draw(st.sampled_from(["value", "value", "value", "key", "text", "bytes"]))
    if how == "text":
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(SNIPPETS) + text[at + draw(st.integers(0, 5)) :]
        return text.encode(errors="replace")
    if how == "bytes":
        content = bytearray(text.encode())
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
        return bytes(content)
    data = yaml.safe_load(text)
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(places(data)[1:] or [(None,)]))
        parent = data
        for key in outer:
            parent = parent[key]
        if how == "key" and isinstance(parent, dict):
            parent[draw(TEXTS)] = parent.pop(last)
        else:
            parent[last] = draw(ANYTHING)
    return yaml.safe_dump(data, allow_unicode=True).encode(errors="replace")


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(data=st.data())
def test_any_file_of_settings(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    good, read = KINDS[kind]
    path = tmp_path_factory.getbasetemp() / f"{kind}.yaml"
    path.write_bytes(data.draw(changed(good)))
    try:
        read(path)
    except ValueError as error:
        assert len(str(error)) < 2000 and str(error)


# ---- bags


def record(opcode: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BQ", opcode, len(body) if length is None else length) + body


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


SIZES = st.integers(0, 200) | st.sampled_from([2**16, 2**20, 2**27, 2**28, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1])
NAMES = st.sampled_from(["current_pose", "/joint_states", "/wrist_camera/color/image_raw", "", "../x", "a" * 300])
MESSAGE_TYPES = st.sampled_from(
    [
        "geometry_msgs/msg/PoseStamped",
        "sensor_msgs/msg/JointState",
        "sensor_msgs/msg/Image",
        "sensor_msgs/msg/CompressedImage",
        "tf2_msgs/msg/TFMessage",
        "std_msgs/msg/Float64MultiArray",
        "own_msgs/msg/Foo",
        "import os",
        "",
        "sensor_msgs/msg/JointState'); x",
    ]
)
BODIES = st.binary(max_size=120) | st.binary(max_size=60).map(lambda data: b"\0\1\0\0" + data)
BOMBS = st.sampled_from([zstd.compress(b"\0" * 2**22), zstd.compress(b"\5" + b"\0" * 2**20), b"\x28\xb5\x2f\xfd" + b"\xff" * 30])


@st.composite
def inner_records(draw: st.DrawFn) -> bytes:
    out = b""
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["schema", "channel", "message", "message", "other"]))
        key = draw(st.integers(0, 3))
        if kind == "schema":
            out += record(
                3, struct.pack("<H", key) + text(draw(MESSAGE_TYPES)) + text("ros2msg") + text(draw(st.text(max_size=30)))
            )
        elif kind == "channel":
            out += record(
                4, struct.pack("<HH", key, draw(st.integers(0, 3))) + text(draw(NAMES)) + text("cdr") + struct.pack("<I", 0)
            )
        elif kind == "message":
            stamp = draw(st.integers(0, 2**64 - 1))
            out += record(5, struct.pack("<HIQQ", key, 0, stamp, stamp) + draw(BODIES | BOMBS))
        else:
            out += record(draw(st.integers(0, 255)), draw(st.binary(max_size=30)), draw(st.none() | SIZES))
    return out


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    inner = draw(inner_records()) + b"\0" * draw(st.sampled_from([0, 0, 0, 2**18]))
    name = draw(st.sampled_from(["", "zstd", "lz4", "zstd", "lz4", "gzip", "\x7f"]))
    packed = {"zstd": zstd.compress, "lz4": lz4.frame.compress}.get(name, bytes)(inner)
    if draw(st.integers(0, 9)) == 0:
        packed = draw(BOMBS)
    size = draw(st.just(len(inner)) | st.just(len(inner)) | SIZES)
    stored = draw(st.just(len(packed)) | st.just(len(packed)) | SIZES)
    return record(6, struct.pack("<QQQI", 0, 9, size % 2**64, 0) + text(name) + struct.pack("<Q", stored % 2**64) + packed)


@st.composite
def mcap_files(draw: st.DrawFn) -> bytes:
    """Files of records that may be anything, some cut short or with bytes changed."""
    out = io.BytesIO()
    out.write(b"\x89MCAP0\r\n" + record(1, text("ros2") + text("fuzz")))
    for _ in range(draw(st.integers(0, 5))):
        out.write(draw(chunks() | inner_records()))
    if draw(st.booleans()):
        start = draw(st.sampled_from([0, out.tell(), 8, 2**63]))
        out.write(draw(inner_records()) + record(2, struct.pack("<QQI", start, 0, 0)) + b"\x89MCAP0\r\n")
    content = bytearray(out.getvalue())
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.integers(0, 3)) == 0 else bytes(content)


def read_all(path: Path) -> None:
    """A bag, as convert and inspect go through it."""
    found, broken = find_bags([path])
    assert len(found) + len(broken) == 1
    for bag in found:
        json.dumps(read_metadata(bag))
        try:
            assert sum(1 for _ in read_messages(bag)) < 10_000
        except BagError as error:
            assert str(bag) in str(error)


@given(data=mcap_files())
def test_any_mcap_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mcap"
    path.write_bytes(data)
    read_all(path)


METADATA = {
    "version": 9,
    "storage_identifier": "mcap",
    "relative_file_paths": ["bag_0.mcap"],
    "duration": {"nanoseconds": 1},
    "starting_time": {"nanoseconds_since_epoch": 1},
    "message_count": 1,
    "topics_with_message_count": [{"topic_metadata": {"name": "a", "type": "std_msgs/msg/Empty"}, "message_count": 1}],
    "custom_data": {"task": "pnp_milk", "success": "true", "contract": "{}", "seed": "[" * 2_000},
}


@given(data=st.data())
def test_any_metadata(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    bag = tmp_path_factory.getbasetemp() / "bag"
    bag.mkdir(exist_ok=True)
    (bag / "bag_0.mcap").write_bytes(b"\x89MCAP0\r\n" + record(1, text("ros2") + text("fuzz")) + record(5, bytes(30)))
    good = tmp_path_factory.getbasetemp() / "metadata.yaml"
    good.write_text(yaml.safe_dump({"rosbag2_bagfile_information": METADATA}))
    (bag / bags.METADATA_FILE).write_bytes(data.draw(changed(good)))
    read_all(bag)


# ---- bombs: small files that would take gigabytes or for ever


def mcap(*bodies: bytes) -> bytes:
    begin = b"\x89MCAP0\r\n" + record(1, text("ros2") + text("x"))
    begin += record(3, struct.pack("<H", 1) + text("std_msgs/msg/String") + text("ros2msg") + text(""))
    begin += record(4, struct.pack("<HH", 1, 1) + text("a") + text("cdr") + struct.pack("<I", 0))
    return begin + b"".join(bodies) + record(2, bytes(20)) + b"\x89MCAP0\r\n"


def chunk(inner: bytes, size: int, name: str = "zstd") -> bytes:
    return record(6, struct.pack("<QQQI", 0, 2**60, size, 0) + text(name) + struct.pack("<Q", len(inner)) + inner)


def message(data: bytes, stamp: int) -> bytes:
    return record(5, struct.pack("<HIQQ", 1, 0, stamp, stamp) + data)


def mcap_bombs() -> dict[str, bytes]:
    zeros = zstd.compress(bytes(2**26))
    large = zstd.compress(message(bytes(2**26), 2**60))
    size = 2**26 + 31
    return {
        "says more than it holds": mcap(chunk(zeros, 2**62)),
        "holds more than it says": mcap(chunk(zeros * 80, 1000)),
        "holds more than it says, lz4": mcap(chunk(lz4.frame.compress(bytes(2**27)), 1000, "lz4")),
        "chunks that overlap": mcap(*[chunk(large, size)] * 70),
        "messages that are packed": mcap(chunk(zstd.compress(message(zeros, 1) * 500), 500 * (31 + len(zeros)))),
    }


@pytest.mark.parametrize("name", ["says more than it holds", "holds more than it says", "holds more than it says, lz4"])
def test_a_chunk_is_not_unpacked_beyond_its_size(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mcap").write_bytes(mcap_bombs()[name])
    refusals = bags.Refusals()
    assert not list(bags.read_serialized(tmp_path / "a.mcap", refusals=refusals))
    assert "unpacks to" in str(refusals.damage)


def test_chunks_that_are_open_at_once_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(mcap_bombs()["chunks that overlap"])
    with pytest.raises(BagError, match="bytes of its chunks overlap in time; sort it with 'mcap sort'"):
        list(bags.read_serialized(tmp_path / "a.mcap"))


def test_messages_are_unpacked_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(mcap_bombs()["messages that are packed"])
    tracemalloc.start()
    refusals = bags.Refusals()
    assert [len(message.data) for message in bags.read_serialized(tmp_path / "a.mcap", refusals=refusals)] == [2**26] * 3
    assert "it unpacks to more than 1000 times its size" in str(refusals.damage)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW topics AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id FROM n",
        "CREATE TABLE more (id INTEGER, data BLOB GENERATED ALWAYS AS (zeroblob(1000000000)) VIRTUAL)",
        "CREATE TABLE more (id INTEGER, data BLOB as\n (zeroblob(1000000000)))",
        "CREATE TABLE more (id INTEGER, data BLOB generated always as /* */ (zeroblob(1000000000)))",
    ],
)
def test_a_database_that_computes_is_refused(tmp_path: Path, made: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db3")) as database:
        database.execute(made)
    with pytest.raises(BagError, match="is computed, rosbag2 has plain tables only"):
        list(bags.read_serialized(tmp_path / "a.db3"))


def test_a_journal_that_names_another_deletes_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db3")) as database:
        database.execute("CREATE TABLE topics (id INTEGER)")
    name, magic = str(victim).encode(), bytes.fromhex("d9d505f920a163d7")
    parts = [2, name, len(name), sum(name), magic]
    record = b"".join(part if isinstance(part, bytes) else part.to_bytes(4, "big") for part in parts)
    header = magic + b"".join(n.to_bytes(4, "big") for n in (0, 0, 2, 512, 4096))
    (tmp_path / "a.db3-journal").write_bytes(header.ljust(512, b"\0") + record)
    with pytest.raises(BagError, match="its journal belongs to several databases"):
        list(bags.read_serialized(tmp_path / "a.db3"))
    assert victim.read_text() == "kept"


def test_a_packed_file_is_not_unpacked_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.mcap.zstd").write_bytes(zstd.compress(bytes(2**28)))
    with pytest.raises(BagError, match="unpacks to more than"):
        list(bags.read_serialized(tmp_path / "a.mcap.zstd"))


def test_aliases_in_metadata_are_bounded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40))]
    (tmp_path / "metadata.yaml").write_text("\n".join(lines))
    (tmp_path / "a_0.mcap").write_bytes(mcap(message(b"", 1)))
    assert "more than 100000 values" in str(read_metadata(tmp_path)["problems"])
