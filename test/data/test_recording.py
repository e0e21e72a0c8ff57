"""A recording that ends before its time: killed, cut, damaged, or on a disk that is full."""

import errno
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mcap.writer as mcap_writer
import numpy as np
import pytest
from backports import zstd
from mcap.exceptions import EndOfFile
from mcap.reader import make_reader
from mcap.records import Message as McapMessage
from mcap.stream_reader import StreamReader
from recordings import ARM, START, Record, frame
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from onedp_ros.contract import NANOSECONDS, Contract
from onedp_ros.data.bags import writer as bag_writer
from onedp_ros.data.bags.reader import (
    BagError,
    Kept,
    Refusals,
    find_bags,
    kept,
    read_bag,
    read_messages,
    read_metadata,
    read_serialized,
)
from onedp_ros.data.bags.writer import BagWriter, EpisodeWriter

TYPES = get_typestore(Stores.ROS2_JAZZY)
JOINT_STATE = "sensor_msgs/msg/JointState"

# Writes messages that tell their number, and says how many are in chunks that were closed.
PROGRAM = """
import itertools, os, sys
from recordings import ARM, START, frame
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.contract import task_contract
writer = EpisodeWriter(sys.argv[1], task_contract("pnp_milk"), {"operator": "me"})
size = 0
for k in itertools.count():
    if k % 3 == 0:
        writer.add_image("wrist", START + k, frame("wrist", k))
    else:
        writer.add_joint_state(START + k, ARM, [k] * 7)
    if writer.size > size:
        size = writer.size
        os.write(1, b"%d\\n" % (k + 1))
"""


def written(k: int) -> tuple[str, int]:
    """Topic and stamp of the program's message ``k``."""
    return "joint_states" if k % 3 else "wrist_camera/color/image_raw", START + k


def until(condition: Callable[[], Any], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"


@pytest.mark.parametrize("seed", range(3))
def test_of_a_killed_recording_all_chunks_are_read_and_nothing_else(tmp_path: Path, contract: Contract, seed: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "episode")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert process.stdout is not None
    for _ in range(int(np.random.default_rng(seed).integers(1, 60))):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    told = process.stdout.read().splitlines()
    process.wait()

    ((partial,), broken) = find_bags([tmp_path])
    assert (partial.name, broken) == ("episode.partial", {})
    messages = list(read_bag(partial))
    assert [(topic, stamp) for topic, stamp, _ in messages] == [written(k) for k in range(len(messages))]
    assert len(messages) >= max(map(int, told), default=1)
    for k, (_, _, message) in enumerate(messages):
        if k % 3:
            assert message.position.tolist() == [k] * 7
        else:
            assert message.data.tobytes() == frame("wrist", k).tobytes()
    rest = kept(partial)
    assert rest is not None
    assert (rest.messages, rest.seconds) == (len(messages), pytest.approx((len(messages) - 1) * 1e-9))
    metadata = read_metadata(partial)
    assert Contract.from_dict(metadata["contract"]) == contract
    assert (metadata["operator"], metadata["interrupted"]) == ("me", True)
    assert "success" not in metadata


@pytest.fixture
def cut(record: Record) -> Path:
    """An episode of 2 s, interrupted at the end of its last whole chunk."""
    bag = record()
    (file,) = bag.glob("*.mcap")
    os.truncate(file, chunks_of(file)[-1].stop)
    partial = bag.with_name("episode.partial")
    partial.mkdir()
    (bag / "metadata.yaml").unlink()
    bag.rename(partial / "episode")
    return partial


def chunks_of(file: Path) -> list[slice]:
    """Where the chunks of a closed file are, as another reader finds them."""
    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
        assert summary is not None
        return [slice(c.chunk_start_offset, c.chunk_start_offset + c.chunk_length) for c in summary.chunk_indexes]


def told(partial: Path) -> list[tuple[str, int]]:
    return [(topic, stamp) for topic, stamp, _ in read_bag(partial)]


def test_a_file_cut_anywhere_is_read_as_far_as_it_goes(cut: Path) -> None:
    (file,) = cut.glob("*/*.mcap")
    size, whole = file.stat().st_size, told(cut)
    assert kept(cut) == Kept(len(whole), pytest.approx(2.0, abs=0.1), 0)
    places = sorted({*np.random.default_rng(0).integers(0, size, 40).tolist(), *range(size - 12, size), *range(20)}, reverse=True)
    before = len(whole)
    for place in places:
        os.truncate(file, place)
        messages = told(cut)
        assert messages == whole[: len(messages)]
        rest = kept(cut)
        assert rest is not None
        assert rest.messages == len(messages) <= before
        assert 0 <= rest.cut_bytes <= place
        before = len(messages)
        found, broken = find_bags([cut])
        if messages:
            assert (found, broken) == ([cut], {})
        else:
            assert found == []
            assert "look for" in broken[cut]
    assert before == 0


def test_bytes_that_were_cut_are_told(cut: Path) -> None:
    (file,) = cut.glob("*/*.mcap")
    whole = told(cut)
    with file.open("ab") as stream:
        stream.write(bytes(5000))  # what a power cut can leave
    assert told(cut) == whole
    rest = kept(cut)
    assert rest is not None
    assert rest.cut_bytes == 5000


def test_a_bag_that_was_closed_lost_nothing(record: Record) -> None:
    assert kept(record(seconds=0.2)) is None


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("closed", [True, False])
def test_damaged_chunks_are_passed_over_and_named(record: Record, at: float, closed: bool) -> None:
    bag = record()
    (file,) = bag.glob("*.mcap")
    places, content = chunks_of(file), bytearray(file.read_bytes())
    if not closed:
        content = content[: places[-1].stop]
    whole = told(bag)
    assert len(places) >= 3

    def damage(place: slice) -> tuple[list[tuple[str, int]], Refusals]:
        changed = content.copy()
        changed[int(place.start + 60 + at * (place.stop - place.start - 60))] ^= 0x10
        file.write_bytes(changed)
        refusals = Refusals()
        return [(message.topic, message.stamp) for message in read_messages(bag, None, refusals)], refusals

    for place in (*places[:closed], places[1], places[-1]):  # the first chunk tells what the channels are, and so does the end
        messages, refusals = damage(place)
        assert list(refusals.damage) == [what for what in refusals.damage if f"chunk at byte {place.start + 9} cannot be" in what]
        gone = sorted(set(whole) - set(messages))
        assert len(refusals.damage) == 1 and 0 < len(gone) < len(whole) / 2
        assert [message for message in whole if message in set(messages)] == messages
        assert len(gone) == len(whole) - len(messages)


@pytest.mark.parametrize("byte", [3, 7, 8])
def test_a_length_that_cannot_be_costs_one_chunk_of_a_closed_bag_and_the_rest_of_another(record: Record, byte: int) -> None:
    bag = record()
    (file,) = bag.glob("*.mcap")
    places, content, whole = chunks_of(file), bytearray(file.read_bytes()), told(bag)
    content[places[1].start + byte] = 0x7F
    file.write_bytes(content)
    refusals = Refusals()
    messages = [(message.topic, message.stamp) for message in read_messages(bag, None, refusals)]
    assert "are damaged" in next(iter(refusals.damage))
    assert messages[-1] == whole[-1] and len(whole) / 2 < len(messages) < len(whole)
    file.write_bytes(content[: places[-1].stop])
    messages = told(bag)
    assert 0 < len(messages) < len(whole) / 2 and messages == whole[: len(messages)]


def test_files_without_chunks_are_read_where_another_reader_reads_them(record: Record, tmp_path: Path) -> None:
    """As 'ros2 bag record' with the preset fastwrite, cut anywhere."""
    bag = tmp_path / "fast"
    bag.mkdir()
    file = bag / "fast_0.mcap"
    messages = list(read_serialized(record(seconds=0.3)))
    with file.open("wb") as stream:
        writer = mcap_writer.Writer(stream, use_chunking=False)
        writer.start("ros2")
        channels: dict[str, int] = {}
        for message in messages:
            if message.topic not in channels:
                schema = writer.register_schema(message.msgtype, "ros2msg", b"")
                channels[message.topic] = writer.register_channel(message.topic, "cdr", schema)
            writer.add_message(channels[message.topic], message.logged, message.data, message.logged)
        writer.finish()
    whole = file.read_bytes()
    compared = 0
    for place in [len(whole), len(whole) - 4, *np.random.default_rng(0).integers(0, len(whole), 25).tolist()]:
        file.write_bytes(whole[:place])
        theirs = []
        with suppress(EndOfFile, struct.error), file.open("rb") as stream:
            for record_ in StreamReader(stream).records:
                if isinstance(record_, McapMessage):
                    theirs.append((record_.log_time, bytes(record_.data)))
        if theirs:
            assert find_bags([tmp_path])[0][-1] == bag
            assert [(message.logged, message.data) for message in read_serialized(bag)] == theirs
            compared += 1
    assert compared > 10


def test_a_small_file_that_unpacks_to_much_is_refused_in_little_memory(tmp_path: Path) -> None:
    def record_(opcode: int, body: bytes) -> bytes:
        return struct.pack("<BQ", opcode, len(body)) + body

    bomb = zstd.compress(bytes(2**28 + 2**20))
    for told_size in (2**28 + 2**20, 2**27, 10):
        chunk = struct.pack("<QQQII", 0, 1, told_size, 0, 4) + b"zstd" + struct.pack("<Q", len(bomb)) + bomb
        (tmp_path / "bomb.mcap").write_bytes(b"\x89MCAP0\r\n" + record_(1, bytes(8)) + record_(6, chunk))
        tracemalloc.start()
        refusals = Refusals()
        assert list(read_messages(tmp_path / "bomb.mcap", None, refusals)) == []
        assert "cannot be read: it unpacks to" in next(iter(refusals.damage))
        assert tracemalloc.get_traced_memory()[1] < 2**29
        tracemalloc.stop()


def test_what_is_no_recording_is_named(tmp_path: Path, cut: Path) -> None:
    (tmp_path / "empty.partial").mkdir()
    other = tmp_path / "other.partial" / "other"
    other.mkdir(parents=True)
    (other / "other.mcap").write_bytes(b"something else")
    found, broken = find_bags([tmp_path])
    assert found == [cut]
    assert "nothing of it was written to disk; look for" in broken[tmp_path / "empty.partial"]
    assert "is not an MCAP file" in broken[tmp_path / "other.partial"]
    with pytest.raises(BagError, match="nothing of it was written to disk"):
        list(read_bag(tmp_path / "empty.partial"))


def test_the_shell_of_an_episode_that_was_closed_is_no_bag(record: Record, tmp_path: Path) -> None:
    bag = record(seconds=0.2)
    (tmp_path / "episode.partial").mkdir()
    assert find_bags([tmp_path]) == ([bag], {})


def test_a_start_that_was_damaged_is_named(cut: Path) -> None:
    (cut / "episode.json").write_text('{"task": ')
    notes = read_metadata(cut)
    assert "episode.json is damaged" in notes["problems"][0] and notes["interrupted"] is True


def joint_state(stamp: int) -> Any:
    kinds = TYPES.types
    header = kinds["std_msgs/msg/Header"](kinds["builtin_interfaces/msg/Time"](*divmod(stamp, NANOSECONDS)), "")
    message = kinds[JOINT_STATE](header, ARM, np.zeros(7), np.zeros(0), np.zeros(0))
    return TYPES.serialize_cdr(message, JOINT_STATE)


def test_an_interrupted_recording_of_rosbag2_is_read(tmp_path: Path) -> None:
    bag = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP)  # without compression, as ros2 bag record
    with bag:
        connection = bag.add_connection("/joint_states", JOINT_STATE, typestore=TYPES)
        for k in range(20_000):
            bag.write(connection, START + k, joint_state(START + k))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    (file,) = (tmp_path / "bag").glob("*.mcap")
    os.truncate(file, file.stat().st_size // 2)
    assert find_bags([tmp_path]) == ([tmp_path / "bag"], {})
    stamps = [stamp for _, stamp, _ in read_bag(tmp_path / "bag")]
    assert 5_000 < len(stamps) < 11_000
    assert stamps == list(range(START, START + len(stamps)))
    assert read_metadata(tmp_path / "bag") == {"interrupted": True}


def raw_writer(folder: Path, contract: Contract) -> BagWriter:
    return BagWriter(folder / "episode", contract, {"joint_states": JOINT_STATE})


def test_messages_come_in_log_order_when_chunks_overlap(tmp_path: Path, contract: Contract) -> None:
    writer = raw_writer(tmp_path, contract)
    for k in (2, 1, 4, None, 3, 6, 5, None, 8, 7, None):
        if k is None:
            writer.flush()
        else:
            writer.write("joint_states", START + k, joint_state(START + k))
    assert [stamp - START for _, stamp, _ in read_bag(writer.partial)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [stamp - START for _, stamp, _ in read_bag(writer.close())] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_quiet_recording_is_on_disk_after_half_a_second(tmp_path: Path, contract: Contract) -> None:
    writer = raw_writer(tmp_path, contract)
    numbers = itertools.count()

    def write() -> bool:
        writer.write("joint_states", k := START + next(numbers), joint_state(k))
        time.sleep(0.01)
        return writer.size > 0

    until(write, "a chunk to be closed")
    assert len(told(writer.partial)) == next(numbers)
    size = writer.size
    writer.write("joint_states", START + 10**6, joint_state(START + 10**6))
    writer.flush()  # the stream stopped
    assert writer.size > size
    assert told(writer.partial)[-1] == ("joint_states", START + 10**6)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_type_of_no_standard_package_is_refused_before_anything_is_written(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(BagError, match=r"own has the type my_msgs/msg/Own.*leave this topic out"):
        BagWriter(tmp_path / "episode", contract, {"own": "my_msgs/msg/Own"})
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """A file that takes so many bytes and no more, as on a disk that is full; of the last write, what still fits."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._room -= self._file.write(bytes(data)[: max(self._room, 0)])
        if self._room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@pytest.fixture(params=["tmpfs", "file object"])
def full(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A folder on a disk with room for 4 MB, and where that disk is mounted."""
    if request.param == "file object":
        init = bag_writer._Storage.__init__

        def limited(self: Any, path: Path, compression: CompressionMode) -> None:
            init(self, path, compression)
            self.bio = FullDisk(self.bio, 4_000_000)

        monkeypatch.setattr(bag_writer._Storage, "__init__", limited)
        mount = tmp_path
        while not mount.is_mount():
            mount = mount.parent
        yield tmp_path, mount
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3900k", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    yield tmp_path, tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def noise(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 255, (120, 160, 3), dtype=np.uint8)


def test_a_full_disk_is_named_and_what_is_there_is_readable(full: tuple[Path, Path], contract: Contract) -> None:
    folder, disk = full
    writer = EpisodeWriter(folder / "episode", contract)
    safe = size = 0
    with pytest.raises(BagError, match=rf"the disk at {disk} is full: {writer.partial} ends here.*free space"):
        for k in range(1000):
            writer.add_image("wrist", START + k, noise(k))
            if writer.size > size:
                safe, size = k + 1, writer.size
    messages = list(read_bag(writer.partial))
    assert len(messages) >= safe > 30
    assert [stamp for _, stamp, _ in messages] == list(range(START, START + len(messages)))
    assert messages[-1][2].data.tobytes() == noise(len(messages) - 1).tobytes()
    assert find_bags([folder]) == ([writer.partial], {})
    assert read_metadata(writer.partial)["interrupted"] is True


def test_a_disk_that_fills_up_at_the_very_end_costs_only_the_end(
    full: tuple[Path, Path], contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_writer, "CHUNK_TIME", 60.0)
    writer = EpisodeWriter(full[0] / "episode", contract)
    for k in range(71):  # three full chunks of 19, and the beginning of a fourth
        writer.add_image("wrist", START + k, noise(k))
    with pytest.raises(BagError, match="is full"):
        writer.close(success=True)
    assert [stamp for _, stamp, _ in read_bag(writer.partial)] == list(range(START, START + 3 * 19))


def test_a_disk_that_fails_ends_the_recording(tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(bag_writer, "SYNC_PERIOD", 0.01)
    monkeypatch.setattr(os, "fdatasync", fail)
    writer = raw_writer(tmp_path, contract)
    with pytest.raises(BagError, match="reports 'Input/output error'"):
        until(lambda: writer.write("joint_states", START, joint_state(START)), "an error")


def test_chunks_are_compressed_and_carry_a_checksum(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "episode", contract) as writer:
        for k in range(40):
            writer.add_image("wrist", START + k, frame("wrist", k))
    (file,) = (tmp_path / "episode").glob("*.mcap")
    assert file.stat().st_size < 40 * 57_600 / 4
    content = file.read_bytes()
    chunks = chunks_of(file)
    assert chunks
    for place in chunks:
        zstd_frame = content.index(b"\x28\xb5\x2f\xfd", place.start)
        assert content[zstd_frame + 4] & 0b100, "the frame's header says that a checksum follows"


def test_a_recording_that_is_still_written_is_left_alone(tmp_path: Path, contract: Contract) -> None:
    with EpisodeWriter(tmp_path / "episode", contract) as writer:
        writer.add_pose(1, [0.5, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0])
        writer.flush()
        found, left = find_bags([tmp_path])
        assert not found and "being recorded" in left[tmp_path / "episode.partial"]
        writer.abort()
    assert find_bags([tmp_path])[0] == [tmp_path / "episode.partial"]
