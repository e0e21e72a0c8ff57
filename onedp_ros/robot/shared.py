"""Lock-free shared memory between processes: one writes, others read the newest record, and none ever blocks.

The memory has no name and no file: it is passed to a child as a file descriptor and is freed with the last process that holds it,
however that ends. Reads and writes rely on the store order of x86-64, the only architecture this package supports.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 4
HEAD = 64  # bytes before the slots, with the number of writes


class Latest:
    """The newest record of one writer. A writer killed during a write leaves the previous record intact.

    A record is described by a packed NumPy dtype of numbers and fixed-size strings. The 1 kHz loop uses :meth:`pack` and
    :meth:`unpack`, plain numbers in the order of the fields, which are much faster than NumPy records.
    """

    def __init__(self, buffer: Any, offset: int, kind: np.dtype[Any]) -> None:
        view = memoryview(buffer)
        self._count = view[offset : offset + 8].cast("q")
        first = offset + HEAD
        self._slots = [view[first + i * kind.itemsize : first + (i + 1) * kind.itemsize] for i in range(SLOTS)]
        self._struct = struct.Struct("<" + "".join(_format(kind[name]) for name in kind.names or ()))

    @staticmethod
    def size(kind: np.dtype[Any]) -> int:
        """Size in bytes, a multiple of 64."""
        return HEAD + -(-SLOTS * kind.itemsize // 64) * 64

    @property
    def count(self) -> int:
        """Number of records written."""
        return self._count[0]

    def pack(self, *values: Any) -> None:
        """Write these numbers as the newest record."""
        following = self._count[0] + 1
        self._struct.pack_into(self._slots[following % SLOTS], 0, *values)
        self._count[0] = following

    def unpack(self) -> tuple[Any, ...]:
        """The numbers of the newest record; zeros before the first one."""
        while True:
            count = self._count[0]
            taken = self._struct.unpack_from(self._slots[count % SLOTS])
            if self._count[0] - count < SLOTS - 1:  # else the writer has wrapped around and may have overwritten this slot
                return taken

    def write(self, record: NDArray[Any]) -> None:
        """Write ``record`` () as the newest."""
        self.pack(*self._struct.unpack(record.tobytes()))

    def read(self, into: NDArray[Any]) -> bool:
        """Copy the newest record to ``into`` (). False, with ``into`` unchanged, before the first one."""
        if not self.count:
            return False
        into[...] = np.frombuffer(self._struct.pack(*self.unpack()), into.dtype)[0]
        return True


def _format(kind: np.dtype[Any]) -> str:
    """The ``struct`` format of a field: count and letter."""
    base, shape = kind.subdtype or (kind, (1,))
    if base.kind == "S":
        return f"{base.itemsize}s"
    return f"{int(np.prod(shape))}{base.char.replace('l', 'q')}"


class SharedMemory:
    """Named records (each a :class:`Latest`) and arrays, in one block of memory.

    Args:
        records: dtypes of the records by name.
        arrays: dtype and length by name.
        descriptor: of a parent's memory with the same records and arrays; None creates new memory.
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
        """Release the memory; children keep theirs."""
        os.close(self.descriptor)
