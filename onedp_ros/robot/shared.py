"""Lock-free shared memory between processes: one writes, others read the newest record, and nobody ever waits.

The memory has no name and no file: it is passed to a child as a file descriptor and ends with the last process that holds it,
however that ends. Reads and writes rely on x86-64's order of stores, the only processors this package runs on.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 4
HEAD = 64  # bytes before the slots: the count of writes


class Latest:
    """The newest record of one writer. A writer killed in the middle of a write leaves the record before it.

    A record is described by a NumPy type of numbers and fixed strings without gaps. The 1 kHz loop uses :meth:`pack` and
    :meth:`unpack`, plain numbers in the order of the fields, which cost a fraction of NumPy's records.
    """

    def __init__(self, buffer: Any, offset: int, kind: np.dtype[Any]) -> None:
        view = memoryview(buffer)
        self._count = view[offset : offset + 8].cast("q")
        first = offset + HEAD
        self._slots = [view[first + i * kind.itemsize : first + (i + 1) * kind.itemsize] for i in range(SLOTS)]
        self._struct = struct.Struct("<" + "".join(_format(kind[name]) for name in kind.names or ()))

    @staticmethod
    def size(kind: np.dtype[Any]) -> int:
        """Bytes that it takes, a multiple of 64."""
        return HEAD + -(-SLOTS * kind.itemsize // 64) * 64

    @property
    def count(self) -> int:
        """How many records were written."""
        return self._count[0]

    def pack(self, *values: Any) -> None:
        """Make these numbers the newest record."""
        following = self._count[0] + 1
        self._struct.pack_into(self._slots[following % SLOTS], 0, *values)
        self._count[0] = following

    def unpack(self) -> tuple[Any, ...]:
        """The numbers of the newest record; zeros before the first one."""
        while True:
            count = self._count[0]
            taken = self._struct.unpack_from(self._slots[count % SLOTS])
            if self._count[0] - count < SLOTS - 1:  # else the writer has come round and may have been writing here
                return taken

    def write(self, record: NDArray[Any]) -> None:
        """Make ``record`` () the newest."""
        self.pack(*self._struct.unpack(record.tobytes()))

    def read(self, into: NDArray[Any]) -> bool:
        """Copy the newest record to ``into`` (). False, with ``into`` as it was, before the first one."""
        if not self.count:
            return False
        into[...] = np.frombuffer(self._struct.pack(*self.unpack()), into.dtype)[0]
        return True


def _format(kind: np.dtype[Any]) -> str:
    """Of one field: its letter of ``struct``, with the count before it."""
    base, shape = kind.subdtype or (kind, (1,))
    if base.kind == "S":
        return f"{base.itemsize}s"
    return f"{int(np.prod(shape))}{base.char.replace('l', 'q')}"


class SharedMemory:
    """Named records (each a :class:`Latest`) and arrays, in one piece of memory.

    Args:
        records: kinds of record by name.
        arrays: kind and length by name.
        descriptor: of a parent's memory with the same records and arrays; None makes new memory.
    """

    def __init__(
        self, records: dict[str, np.dtype[Any]], arrays: dict[str, tuple[type, int]], descriptor: int | None = None
    ) -> None:
        sizes = [Latest.size(kind) for kind in records.values()]
        lengths = [-(-np.dtype(kind).itemsize * count // 64) * 64 for kind, count in arrays.values()]
        total = sum(sizes) + sum(lengths)
        self.descriptor = os.memfd_create("onedp") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, total)
        self._memory = mmap.mmap(self.descriptor, total)
        offset = 0
        self.latest: dict[str, Latest] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        for (name, kind), size in zip(records.items(), sizes, strict=True):
            self.latest[name] = Latest(self._memory, offset, kind)
            offset += size
        for (name, (number, count)), size in zip(arrays.items(), lengths, strict=True):
            self.arrays[name] = np.ndarray(count, number, self._memory, offset)
            offset += size

    def close(self) -> None:
        """Give the memory back; children keep theirs."""
        os.close(self.descriptor)
