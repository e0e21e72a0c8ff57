"""rosbag2's other storage: SQLite databases, and files compressed as a whole."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator
from pathlib import Path

from backports import zstd
from rosbags.rosbag2 import Reader

from onedp_ros.config import shown
from onedp_ros.data.bags.mcap_reader import RawMessage, unpack

_MAX_RATIO = 1000  # largest ratio of decompressed to stored bytes; rendered images compress to a hundredth
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # at the end of a rollback journal that names another one


def _check_sqlite(file: Path) -> None:
    """ValueError for a database with views or generated columns, which rosbag2 does not use and which may be endless."""
    with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(str(file.resolve()))}?immutable=1", uri=True)) as database:
        for kind, name, made in database.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            computed = kind not in ("table", "index") or re.search(r"\bvirtual\b", made or "", re.IGNORECASE)
            if computed or database.execute("SELECT 1 FROM pragma_table_xinfo(?) WHERE hidden", (name,)).fetchone():
                raise ValueError(
                    f"its {kind} {shown(name)} is computed, rosbag2 has plain tables only; record or copy the bag again"
                )


def read_sqlite(file: Path, topics: Collection[str] | None) -> Iterator[RawMessage]:
    """The messages of a database, or those of ``topics``, in log order. ValueError if it has views or generated columns."""
    _check_sqlite(file)
    with Reader(file) as reader:
        wanted = [c for c in reader.connections if topics is None or c.topic.lstrip("/") in topics]
        for connection, logged, data in reader.messages(wanted) if wanted else ():
            content = bytes(data)
            if content.startswith(b"\x28\xb5\x2f\xfd"):  # zstd: rosbag2's compression of single messages
                content = unpack(content, "zstd", None)
            yield RawMessage(logged, connection.topic, connection.msgtype, "cdr", content)


@contextlib.contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """A storage file, decompressed if rosbag2 compressed it as a whole, with SQLite's logs next to it applied."""
    with file.open("rb") as stream:
        packed = stream.read(4) == b"\x28\xb5\x2f\xfd"
    beside = [Path(f"{file}{end}") for end in ("-wal", "-journal")] if file.suffix == ".db3" else []
    beside = [path for path in beside if path.exists() and path.stat().st_size]
    if not packed and not beside:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="onedp_bag_") as folder:
        plain = Path(folder, file.name.removesuffix(".zstd"))
        if packed:
            with zstd.open(file, "rb") as source, plain.open("wb") as out, contextlib.suppress(EOFError):  # if truncated
                while block := source.read(2**20):
                    out.write(block)
                    if out.tell() > _MAX_RATIO * file.stat().st_size:
                        raise ValueError(f"it unpacks to more than {_MAX_RATIO} times its size, as no recording does")
        else:  # SQLite's log of a killed recording; the original is not modified
            for path in (file, *beside):
                copied = Path(shutil.copy(path, folder))
                # For a journal that names a super-journal, as of several databases, SQLite would delete the file of that name.
                if copied.suffix == ".db3-journal" and copied.read_bytes().endswith(_JOURNAL_MAGIC):
                    raise ValueError("its journal belongs to several databases, as no recording's does; copy the bag again")
            with contextlib.closing(sqlite3.connect(plain)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield plain
