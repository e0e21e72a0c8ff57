"""Reads MCAP files, complete, truncated or damaged: every message in them, in log order, with little memory.

It does not rely on the index at the end of a file, since an interrupted recording has none: the file is scanned record by record,
and each chunk is decompressed only when its time is reached. Truncated or damaged parts are skipped and reported, as ``mcap
recover`` does; the index only helps to resume after damage. Format: https://mcap.dev/spec.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import lz4.frame
from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
MAX_CHUNK = 2**27  # bytes, decompressed; rosbag2's chunks have 1 to 4 MiB
MAX_OPEN = 2**28  # bytes of decompressed chunks that overlap in time
MAX_MESSAGES = 2**19  # in a chunk
MAX_RATIO, FREE = 1000, 2**28
"""Largest ratio of decompressed to stored bytes, and the bytes allowed in any case; rendered images compress to a hundredth."""
_MESSAGE_SIZE = 250  # bytes that a message takes in memory besides its content

_RECORD = struct.Struct("<BQ")  # opcode, length
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _METADATA = 2, 3, 4, 5, 6, 8, 12
_FOOTER_SIZE = _RECORD.size + 20 + len(MAGIC)
_MAX_METADATA = 2**22  # bytes
_LOOSE = 2**20  # bytes of messages outside chunks that are read as one block
_ZSTD = b"\x28\xb5\x2f\xfd"  # first bytes of a compressed message; a serialized one starts with 0


class McapError(ValueError):
    """Nothing, or nothing more, can be read from a file; the message gives the reason."""


class _DamageError(ValueError):
    """A block of a file that cannot be read."""


class RawMessage(NamedTuple):
    """A message as stored in a file: log time (ns), topic, type such as ``sensor_msgs/msg/Image``, encoding, serialized data."""

    logged: int
    topic: str
    msgtype: str
    encoding: str
    data: bytes


class _Channel(NamedTuple):
    topic: str
    msgtype: str
    encoding: str


@dataclasses.dataclass(frozen=True)
class _Block:
    """A chunk, or a run of messages outside chunks: first log time (ns), byte range of its records in the file."""

    logged: int
    begin: int
    end: int
    chunk: bool


class McapFile:
    """An MCAP file.

    Attributes:
        closed: whether it has a footer, unlike an interrupted recording.
        read_to: byte up to which it could be scanned; the rest is truncated.
        metadata: the copy of metadata.yaml that rosbag2 stores in the file; empty if there is none.
        damage: descriptions of what was skipped, and how often; complete once :meth:`messages` is exhausted.

    Raises:
        McapError: it does not start like an MCAP file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.damage: Counter[str] = Counter()
        self.metadata = ""
        self.read_to = 0
        self._opened = 0  # bytes of the blocks currently decompressed
        self._unpacked = 0  # bytes of all blocks decompressed so far
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, _Channel] = {}
        with path.open("rb") as stream:
            if not MAGIC.startswith(stream.read(len(MAGIC))):
                raise McapError("it is not an MCAP file, despite its name; rename it to what it is")
            self.closed, indexed = self._read_summary(stream)
            self._blocks = self._find_blocks(stream, indexed)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read."""
        return not self._blocks

    def _read_summary(self, stream: IO[bytes]) -> tuple[bool, list[int]]:
        """Whether the file has a footer, and the chunks' offsets according to its index. Also reads schemas and channels there."""
        stream.seek(max(self.size - _FOOTER_SIZE, 0))
        end = stream.read()
        if len(end) != _FOOTER_SIZE or not end.endswith(MAGIC) or _RECORD.unpack_from(end) != (_FOOTER, 20):
            return False, []
        (start,) = struct.unpack_from("<Q", end, _RECORD.size)
        if not 0 < start < self.size or self.size - start > MAX_CHUNK:
            return True, []
        stream.seek(start)
        summary, chunks = stream.read(), []
        with suppress(struct.error, UnicodeDecodeError):  # a damaged summary: the file itself has all that matters
            for opcode, at, last in _records(summary, 0):
                if opcode in (_SCHEMA, _CHANNEL):
                    self._define(opcode, summary[at:last])
                elif opcode == _CHUNK_INDEX:
                    chunks.append(struct.unpack_from("<16xQ", summary, at)[0])
        return True, sorted(place for place in chunks if place < self.size)

    def _find_blocks(self, stream: IO[bytes], indexed: list[int]) -> list[_Block]:
        blocks: list[_Block] = []
        at = len(MAGIC)
        while at < self.size:
            stream.seek(at)
            head = stream.read(_RECORD.size + 22)
            opcode, length = _RECORD.unpack_from(head) if len(head) >= _RECORD.size else (0, 0)
            end = at + _RECORD.size + length
            behind = bisect.bisect_right(indexed, at)
            following = indexed[behind] if behind < len(indexed) else self.size
            if opcode == 0 or end > following:  # cut short, empty, or an impossible length
                at = following
                if at < self.size:
                    self.damage[f"the bytes {self.read_to} to {at} are damaged"] += 1
                continue
            if opcode == _FOOTER:
                self.read_to = self.size
                break
            if opcode in (_SCHEMA, _CHANNEL):
                if length <= MAX_CHUNK:
                    try:
                        self._define(opcode, (head[_RECORD.size :] + stream.read(max(length - 22, 0)))[:length])
                    except (struct.error, UnicodeDecodeError):
                        self.damage[f"the record at byte {at} is damaged"] += 1
            elif opcode == _CHUNK and length >= 40:
                blocks.append(_Block(struct.unpack_from("<Q", head, _RECORD.size)[0], at + _RECORD.size, end, True))
            elif opcode == _MESSAGE and length >= 22:
                (logged,) = struct.unpack_from("<Q", head, _RECORD.size + 6)
                last = blocks[-1] if blocks else None
                if last is not None and not last.chunk and last.end == at and end - last.begin <= _LOOSE:
                    blocks[-1] = _Block(min(last.logged, logged), last.begin, end, False)
                else:
                    blocks.append(_Block(logged, at, end, False))
            elif opcode == _METADATA and length <= _MAX_METADATA:
                with suppress(struct.error, UnicodeDecodeError):
                    self._read_metadata(head[_RECORD.size :] + stream.read(max(length - 22, 0)))
            self.read_to = at = end
        return blocks

    def _read_metadata(self, body: bytes) -> None:
        texts = []
        at = 0
        for skipped in (0, 4, 0):  # the record's name, then a map with its size in bytes: key, value
            (size,) = struct.unpack_from("<I", body, at + skipped)
            at += skipped + 4
            texts.append(body[at : at + size].decode())
            at += size
        if texts[:2] == ["rosbag2", "serialized_metadata"]:
            self.metadata = texts[2]

    def _define(self, opcode: int, body: bytes) -> None:
        if opcode == _SCHEMA:
            key, size = struct.unpack_from("<HI", body)
            self._schemas[key] = body[6 : 6 + size].decode()
            return
        key, schema, size = struct.unpack_from("<HHI", body)
        topic, at = body[8 : 8 + size].decode(), 8 + size
        (size,) = struct.unpack_from("<I", body, at)
        self._channels[key] = _Channel(topic, self._schemas.get(schema, ""), body[at + 4 : at + 4 + size].decode())

    def messages(self, topics: Collection[str] | None = None) -> Iterator[RawMessage]:
        """All messages in log order, those with equal log times in file order; only of ``topics`` (without "/"), if given.

        Raises:
            McapError: more than :data:`MAX_OPEN` bytes of chunks overlap in time.
        """
        self._unpacked = 0
        with self.path.open("rb") as stream:
            blocks = [self._in_order(block, stream, topics) for block in self._blocks]
            for _, _, message in heapq.merge(*blocks):  # never compares messages: every block has a different offset
                if message is not None:
                    yield message

    def _in_order(
        self, block: _Block, stream: IO[bytes], topics: Collection[str] | None
    ) -> Iterator[tuple[int, int, RawMessage | None]]:
        yield block.logged, 0, None  # the block is decompressed when the merge reaches this time
        found: list[RawMessage] = []
        size = 0
        try:
            stream.seek(block.begin)
            records = self._unpack(stream, block)
            size = len(records)
            self._count(size)
            self._parse(records, topics, found)
        except _DamageError as error:
            self.damage[f"the {'chunk' if block.chunk else 'run of messages'} at byte {block.begin} cannot be read: {error}"] += 1
        records = b""
        size += _MESSAGE_SIZE * len(found)
        self._opened += size
        if self._opened > MAX_OPEN:
            raise McapError(f"more than {MAX_OPEN} bytes of its chunks overlap in time; sort it with 'mcap sort'")
        for message in sorted(found, key=lambda message: message.logged):
            if message.data.startswith(_ZSTD):  # rosbag2's compression of single messages
                try:
                    message = message._replace(data=unpack(message.data, "zstd", None))
                    self._count(len(message.data))
                except McapError:
                    raise
                except Exception as error:
                    self.damage[f"a message of {message.topic} cannot be unpacked: {error}"] += 1
                    continue
            yield message.logged, block.begin, message
        self._opened -= size

    def _count(self, size: int) -> None:
        """McapError if ``size`` more decompressed bytes are implausible for the file."""
        self._unpacked += size
        if self._unpacked > FREE + MAX_RATIO * self.size:
            raise McapError(f"it unpacks to more than {MAX_RATIO} times its size, as no recording does; copy it again")

    def _unpack(self, stream: IO[bytes], block: _Block) -> bytes:
        """The records of a block. _DamageError if they do not match the chunk's header."""
        if not block.chunk:
            return stream.read(block.end - block.begin)
        try:
            size, crc, name = struct.unpack("<16xQII", stream.read(32))
            compression = stream.read(min(name, 16)).decode()
            (packed,) = struct.unpack("<Q", stream.read(8))
            if packed != block.end - stream.tell():
                raise _DamageError("its header is damaged")
            records = unpack(stream.read(packed), compression, size)
        except Exception as error:  # each decompression library raises its own
            raise _DamageError(str(error)) from error
        if crc and zlib.crc32(records) != crc:
            raise _DamageError("its checksum does not match")
        return records

    def _parse(self, records: bytes, topics: Collection[str] | None, found: list[RawMessage]) -> None:
        """Add the messages in ``records`` to ``found``. _DamageError at the first damaged one; those before have been added."""
        try:
            for opcode, at, end in _records(records, 0):
                if opcode == _MESSAGE:
                    key, logged = struct.unpack_from("<H4xQ", records, at)
                    channel = self._channels.get(key)
                    if channel is None:
                        self.damage[f"messages of channel {key}, whose topic is unknown"] += 1
                    elif topics is None or channel.topic.lstrip("/") in topics:
                        if len(found) == MAX_MESSAGES:
                            raise _DamageError(f"it holds more than {MAX_MESSAGES} messages; write it with smaller chunks")
                        found.append(RawMessage(logged, *channel, records[at + 22 : end]))
                elif opcode in (_SCHEMA, _CHANNEL):
                    self._define(opcode, records[at:end])
        except Exception as error:
            raise _DamageError(str(error)) from error


def _records(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Opcode, start and end of each record. struct.error if one is truncated."""
    while at < len(data):
        opcode, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + length > len(data):
            raise struct.error(f"a record of {length} bytes starts {len(data) - at} before the end")
        yield opcode, at, at + length
        at += length


def unpack(data: bytes, compression: str, size: int | None) -> bytes:
    """Decompress ``data``, compressed by "", "lz4" or "zstd", to ``size`` bytes (None: the size in its header, one zstd frame).

    Never yields more than :data:`MAX_CHUNK` bytes, whatever the header claims.

    Raises:
        ValueError: unknown compression, wrong size, or too large. Damaged data raise the libraries' own errors.
    """
    if size is None:
        size = zstd.get_frame_info(data).decompressed_size
    if size is None or size > MAX_CHUNK:
        raise ValueError(f"it unpacks to {size} bytes, at most {MAX_CHUNK} are read")
    if compression == "zstd":
        records = b""
        while data and len(records) <= size:
            frame = zstd.ZstdDecompressor()
            records += frame.decompress(data, size + 1 - len(records))
            data = frame.unused_data if frame.eof else b""
    elif compression == "lz4":
        records = lz4.frame.LZ4FrameDecompressor().decompress(data, size + 1)
    elif compression == "":
        records = data
    else:
        raise ValueError(f"its compression is '{compression}', expected lz4 or zstd; recompress it with 'mcap compress'")
    if len(records) != size:
        raise ValueError(f"it unpacks to {len(records)} bytes, expected {size}")
    return records
