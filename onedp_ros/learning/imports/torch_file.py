"""Reads files of ``torch.save`` (the zip format of PyTorch 1.6 and later) without executing anything.

The file is a zip archive of uncompressed entries: ``<name>/data.pkl``, a pickle, and ``<name>/data/<key>``, the storages of its
tensors (https://docs.pytorch.org/docs/stable/notes/serialization.html). Tensors are read one by one, when they are needed.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from onedp_ros.config import shown
from onedp_ros.learning.imports.base import PolicyImportError
from onedp_ros.learning.imports.inert_pickle import Global, InertPickleError, Record, read_pickle

MAX_PICKLE = 2**26  # bytes; a checkpoint's has a few hundred thousand
MAX_DIMENSIONS = 8  # of a tensor
MAX_VALUES, MAX_DEPTH = 100_000, 30  # of settings, counting a value as often as it is referred to
_DAMAGE = (zipfile.BadZipFile, EOFError, ValueError, OverflowError, RuntimeError, struct.error)  # what zipfile raises
_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """An entry ``data/<key>`` of the archive, with ``count`` values of a type."""

    key: str
    dtype: torch.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read: a view of a storage, with offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


class TorchFile:
    """An open file of ``torch.save``; a context manager.

    Args:
        path: of the file.

    Attributes:
        content: what was saved: dictionaries, lists, tuples, numbers and text; :class:`StoredTensor` for tensors; for any other
            object a :class:`~onedp_ros.learning.imports.inert_pickle.Record`.

    Raises:
        PolicyImportError: it is damaged, no such file, or calls something when it is loaded, which is named.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise PolicyImportError(
                f"{path} is no complete file of torch.save ({error}); fetch it again, or save it with PyTorch 1.6 or later"
            ) from error
        try:
            self.content = self._read_content()
        except (InertPickleError, PolicyImportError) as error:
            self._archive.close()
            raise PolicyImportError(f"{path}: {error}") from error
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def _read_content(self) -> Any:
        entries = self._archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise PolicyImportError("it has compressed entries, torch.save writes none; save it again with torch.save")
        if sum(entry.file_size for entry in entries) > self.size:
            raise PolicyImportError("it has entries larger than the file itself: it is damaged; fetch it again")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl") and entry.filename.count("/") == 1]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise PolicyImportError("it is no file of torch.save: it holds no data.pkl, or one too large")
        self._folder = pickles[0].filename.removesuffix("data.pkl")
        self._sizes = {entry.filename: entry.file_size for entry in entries}
        if (order := f"{self._folder}byteorder") in self._sizes and self._read(order) != b"little":
            raise PolicyImportError("it was saved on a big-endian machine; save it again on a little-endian one")
        calls: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._describe_tensor,
            "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
        }
        return read_pickle(self._read(pickles[0].filename), calls, self._describe_storage)

    def _read(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except _DAMAGE as error:
            raise PolicyImportError(f"its entry {name} is damaged ({error}); fetch the file again") from error

    def _describe_storage(self, reference: Any) -> Storage:
        kind, type_, key, _, count = reference
        if kind != "storage" or not isinstance(type_, Global) or not isinstance(key, str) or type(count) is not int:
            raise InertPickleError(f"it refers to {shown(reference)}, expected a tensor's storage; save it again with torch.save")
        if type_.name not in _TYPES:
            raise InertPickleError(f"it holds tensors of the type {shown(type_.name)}, expected one of {', '.join(_TYPES)}")
        storage = Storage(key, _TYPES[type_.name], count)
        found = self._sizes.get(f"{self._folder}data/{key}", -1)
        if count < 0 or count * storage.dtype.itemsize > found:
            raise InertPickleError(
                f"the storage {shown(key)} should hold {count} values, but has {max(found, 0)} bytes: damaged; fetch the file again"
            )
        return storage

    def _describe_tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        numbers = (offset, *shape, *stride)
        valid = isinstance(storage, Storage) and len(shape) == len(stride) <= MAX_DIMENSIONS
        if not valid or any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
            raise InertPickleError("it holds a tensor without a valid storage and shape: it is damaged; fetch it again")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # A stride of 0 could repeat a value without end.
        if math.prod(shape) and (last >= storage.count or math.prod(shape) > storage.count):
            raise InertPickleError(f"it holds a tensor {shown(shape)} that exceeds its storage: it is damaged; fetch it again")
        return StoredTensor(storage, offset, tuple(shape), tuple(stride))

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor of the file, as float32. PolicyImportError: it is damaged."""
        if not math.prod(stored.shape):
            return torch.zeros(stored.shape)
        data = bytearray(self._read(f"{self._folder}data/{stored.storage.key}"))
        values = torch.frombuffer(data, dtype=stored.storage.dtype, count=stored.storage.count)
        return values.as_strided(stored.shape, stored.stride, stored.offset).to(torch.float32).contiguous()


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists, numbers and text; those of OmegaConf too. Other objects stay records.

    Raises:
        PolicyImportError: more values, or deeper nested ones, than settings have.
    """
    count = 0

    def convert(item: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise PolicyImportError(f"the settings hold more than {MAX_VALUES} values, or are nested more than {MAX_DEPTH} deep")
        if isinstance(item, Record) and item.name.startswith("omegaconf.") and isinstance(item.state, dict):
            state = item.state
            return convert(state["_content"] if "_content" in state else state.get("_val"), depth + 1)
        if isinstance(item, dict):
            return {key: convert(inner, depth + 1) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [convert(inner, depth + 1) for inner in item]
        return item

    return convert(value, 0)
