"""A safe reader for untrusted zarr stores: arrays of numbers, in a folder or a zip file, format 2 or 3.

zarr itself runs any codec that a store names: ``pickle`` executes code in a chunk, and decompression can exhaust the memory. This
reader supports only a few codecs and types, and never decompresses a chunk to more than its array's chunk size. Format:
https://zarr-specs.readthedocs.io
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numcodecs.lz4
import numpy as np
from numpy.typing import NDArray

from onedp_ros.config import ConfigError, parse_json, read_bytes, shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")
MAX_CHUNK = 2**28  # bytes, decompressed; 32 full HD images have 200 MB
MAX_METADATA = 2**26  # bytes of a metadata file; enough for notes on 100,000 episodes
MAX_RATIO, MAX_RATIO_IMAGES, FREE = 100, 1000, 2**26
"""Largest ratio of an array's size to its stored chunks, and the bytes from which it is checked. Recorded numbers compress less
than tenfold, rendered images a hundredfold, and constant data tens of thousands of times."""
FREE_CHUNKS = 2**15
"""How many chunks of an array may be missing: zarr omits only chunks of zeros, and each missing one still takes time."""
_MAX_FILES = 2**26  # bytes of a zip file's table of contents
_TYPES = {"bool": "b1", **{f"{kind}int{8 * n}": f"{kind or 'i'}{n}" for kind in ("", "u") for n in (1, 2, 4, 8)}}
_TYPES |= {f"float{8 * n}": f"f{n}" for n in (2, 4, 8)}
_FILLS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, None: 0}
_V2, _V3 = ".zarray", "zarr.json"


class ZarrError(ValueError):
    """A store that cannot be read; the message names the store, the array and the remedy."""


class ZarrStore:
    """A store, read only.

    Attributes:
        attributes: the root group's.

    Raises:
        ZarrError: it does not exist, or its metadata are damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._files: _Folder | _Zip = _Zip(self.path) if self.path.is_file() else _Folder(self.path)
            group = self._metadata(".zgroup")
            if group is not None:
                self.attributes: dict[str, Any] = self._metadata(".zattrs") or {}
            else:
                group = self._metadata(_V3) or {}
                attributes = group.get("attributes", {})
                self.attributes = attributes if isinstance(attributes, dict) else {}
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise ZarrError(f"{self.path} cannot be opened ({error}); copy or download it again") from error
        if group.get("zarr_format") not in (2, 3) or group.get("node_type", "group") != "group":
            raise ZarrError(f"{self.path} is not a zarr group, it has neither .zgroup nor a group's {_V3}; make it again")

    def __contains__(self, name: str) -> bool:
        return any(self._files.size(f"{name}/{file}") is not None for file in (_V2, _V3))

    def names(self, group: str) -> list[str]:
        """The arrays in a group, sorted."""
        return sorted(name for name in self._files.names(group) if f"{group}/{name}" in self)

    def __getitem__(self, name: str) -> ZarrArray:
        """The array ``name``, such as ``data/state``.

        Raises:
            ZarrError: it is missing, not an array of numbers, compressed by other than :data:`COMPRESSORS`, or far larger than its
                chunks on disk.
        """
        try:
            if (metadata := self._metadata(f"{name}/{_V2}")) is not None:
                layout = _layout_2(metadata)
            elif (metadata := self._metadata(f"{name}/{_V3}")) is not None:
                layout = _layout_3(metadata)
            else:
                raise _Refused("is missing")
            stored, files = self._files.stored(name)
        except _Refused as error:
            raise ZarrError(f"{self.path}: '{name}' {error}") from error
        except OSError as error:
            raise ZarrError(f"{self.path}: '{name}' cannot be read ({error}); copy or download it again") from error
        array = ZarrArray(self.path, name, self._files, layout)
        if array.nbytes > FREE + (MAX_RATIO if array.ndim < 3 else MAX_RATIO_IMAGES) * stored:
            raise ZarrError(
                f"{self.path}: '{name}' {array.dtype} {array.shape} has {array.nbytes} bytes, but only {stored} are on the disk, "
                f"too few for a recording; copy it again if it is truncated, and check whether its values are constant"
            )
        if layout.count > FREE_CHUNKS + 2 * files:
            raise ZarrError(f"{self.path}: '{name}' has {layout.count} chunks, but only {files} exist; copy or download it again")
        return array

    def _metadata(self, key: str) -> dict[str, Any] | None:
        if (data := self._files.read(key, MAX_METADATA)) is None:
            return None
        try:
            return parse_json(data.decode(), f"{self.path}/{key}")
        except ConfigError as error:
            raise ZarrError(f"{error}; copy or download the store again") from error
        except UnicodeDecodeError as error:
            raise ZarrError(f"{self.path}/{key} is damaged ({error}); copy or download the store again") from error


class _Refused(ValueError):
    """Why an array cannot be read, without its name."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How an array is stored in chunks; ``key``: prefix of the chunks' names and separator of their indices."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    compressor: str
    fill: Any
    key: tuple[str, str]

    def __post_init__(self) -> None:
        for name in ("shape", "chunks"):
            numbers = getattr(self, name)
            if not numbers or len(numbers) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
                raise _Refused(f"has the {name} {shown(list(numbers))}, expected one to eight whole numbers; it is damaged")
        if len(self.shape) != len(self.chunks) or (0 in self.chunks and 0 not in self.shape):
            raise _Refused(f"has the shape {self.shape}, but chunks of {self.chunks}; it is damaged")
        if self.compressor not in ("", *COMPRESSORS):
            raise _Refused(f"is compressed by {shown(self.compressor)}, expected {', '.join(COMPRESSORS)}; {_REPACK}")
        if self.chunk_bytes > MAX_CHUNK:
            raise _Refused(f"has chunks of {self.chunk_bytes} bytes, expected at most {MAX_CHUNK}; {_REPACK}")

    @property
    def count(self) -> int:
        """Number of chunks."""
        return math.prod(-(-n // step) for n, step in zip(self.shape, self.chunks, strict=True) if step)

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize


_REPACK = "rewrite it with the program that created it, compressed by zstd"


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _Refused(f"has {shown(value)} where a list of whole numbers is expected; it is damaged")
    return tuple(value)


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    try:
        value = _FILLS[value] if value is None or isinstance(value, str) else value
        if not isinstance(value, (bool, int, float)):
            raise _Refused(f"is filled with {shown(value)}, expected a number; {_REPACK}")
        return np.array([value]).astype(dtype)[0]
    except (KeyError, ValueError, OverflowError) as error:
        raise _Refused(f"is filled with {shown(value)}, expected a number; {_REPACK}") from error


def _layout_2(data: Mapping[str, Any]) -> _Layout:
    """The layout that ``.zarray`` describes."""
    dtype = data.get("dtype")
    if not isinstance(dtype, str) or not re.fullmatch(r"[|<>](b1|[iu][1248]|f[248])", dtype):
        raise _Refused(f"is of type {shown(dtype)}, expected booleans, integers or floats; {_REPACK}")
    if data.get("filters"):
        raise _Refused(f"has the filters {shown(_names(data['filters']))}, expected none; {_REPACK}")
    compressor = data.get("compressor")
    separator = data.get("dimension_separator", ".")
    if separator not in (".", "/") or data.get("order", "C") not in ("C", "F"):
        raise _Refused("has an invalid order or separator; it is damaged")
    return _Layout(
        shape=_integers(data.get("shape")),
        chunks=_integers(data.get("chunks")),
        dtype=np.dtype(dtype),
        order=data.get("order", "C"),
        compressor="" if compressor is None else _names([compressor])[0],
        fill=_fill(data.get("fill_value"), np.dtype(dtype)),
        key=("", separator),
    )


def _layout_3(data: Mapping[str, Any]) -> _Layout:
    """The layout that ``zarr.json`` describes."""
    if data.get("node_type") != "array":
        raise _Refused("is a group, expected an array")
    kind = data.get("data_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _Refused(f"is of type {shown(kind)}, expected booleans, integers or floats; {_REPACK}")
    codecs = data.get("codecs")
    names = _names(codecs) if isinstance(codecs, list) else []
    if names[:1] != ["bytes"] or len(names) > 2:
        raise _Refused(f"has the codecs {shown(names)}, expected bytes and one of {', '.join(COMPRESSORS)}; {_REPACK}")
    if data.get("storage_transformers"):
        raise _Refused(f"has the transformers {shown(_names(data['storage_transformers']))}, expected none; {_REPACK}")
    grid, keys = (_section(data, name) for name in ("chunk_grid", "chunk_key_encoding"))
    separator = keys[1].get("separator", "/" if keys[0] == "default" else ".")
    if grid[0] != "regular" or keys[0] not in ("default", "v2") or separator not in (".", "/"):
        raise _Refused(f"has the chunks {shown(grid[0])}, {shown(keys[0])}, expected regular ones; {_REPACK}")
    endian = _section({"codec": codecs[0]}, "codec")[1].get("endian", "little")  # type: ignore[index]
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if endian == "big" else "<")
    return _Layout(
        shape=_integers(data.get("shape")),
        chunks=_integers(grid[1].get("chunk_shape")),
        dtype=dtype,
        order="C",
        compressor=names[1] if len(names) > 1 else "",
        fill=_fill(data.get("fill_value"), dtype),
        key=(f"c{separator}" if keys[0] == "default" else "", separator),
    )


def _names(codecs: Any) -> list[str]:
    listed = codecs if isinstance(codecs, list) else [codecs]
    found = [codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec for codec in listed]
    return [name if isinstance(name, str) else shown(name) for name in found]


def _section(data: Mapping[str, Any], name: str) -> tuple[Any, Mapping[str, Any]]:
    value = data.get(name)
    settings = value.get("configuration", {}) if isinstance(value, dict) else {}
    return (value.get("name") if isinstance(value, dict) else value), settings if isinstance(settings, dict) else {}


class ZarrArray:
    """An array of a store. ``array[first:last:step]`` reads rows."""

    def __init__(self, path: Path, name: str, files: _Folder | _Zip, layout: _Layout) -> None:
        self.name, self.shape, self.dtype = name, layout.shape, layout.dtype.newbyteorder("=")
        self._path, self._files, self._layout = path, files, layout

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Rows, as from a NumPy array. ZarrError for a damaged chunk."""
        wanted = range(*rows.indices(self.shape[0]))
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        if not out.size:
            return out
        length, *lengths = self._layout.chunks
        done = 0
        while done < len(wanted):
            number, first = divmod(wanted[done], length)
            left = (length - 1 - first if wanted.step > 0 else first) // abs(wanted.step) + 1  # of the chunk's rows
            last = min(done + left, len(wanted))
            end = first + wanted.step * (last - done)
            inside = slice(first, end if end >= 0 else None, wanted.step)
            for numbers in itertools.product(*(range(-(-n // step)) for n, step in zip(self.shape[1:], lengths, strict=True))):
                place = tuple(slice(i * step, (i + 1) * step) for i, step in zip(numbers, lengths, strict=True))
                part = out[(slice(done, last), *place)]
                part[...] = self._chunk((number, *numbers))[(inside, *(slice(n) for n in part.shape[1:]))]
            done = last
        return out

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        layout = self._layout
        key = f"{self.name}/{layout.key[0]}{layout.key[1].join(map(str, place))}"
        try:
            data = self._files.read(key, 2 * layout.chunk_bytes + 2**16)
            if data is None:
                return np.broadcast_to(layout.fill, layout.chunks)
            unpacked = _unpack(data, layout.compressor, layout.chunk_bytes)
        except Exception as error:  # each library raises its own
            raise ZarrError(
                f"{self._path}: the chunk {key} cannot be read ({type(error).__name__}: {error}); copy or download it again"
            ) from error
        return np.frombuffer(unpacked, layout.dtype).reshape(layout.chunks, order=layout.order)  # type: ignore[call-overload,no-any-return]


def _unpack(data: bytes, compressor: str, size: int) -> Any:
    """Decompress to exactly ``size`` bytes, never more. ValueError for another size; damaged data raise the libraries' errors."""
    if compressor == "blosc":
        if len(data) < 16 or struct.unpack_from("<I4xI", data, 4) != (size, len(data)):
            raise ValueError("its head does not fit the array")
        return numcodecs.blosc.decompress(data, np.empty(size, np.uint8))
    if compressor == "lz4":
        if len(data) < 4 or struct.unpack_from("<I", data)[0] != size:
            raise ValueError("its head does not fit the array")
        return numcodecs.lz4.decompress(data, np.empty(size, np.uint8))
    if compressor:
        unpacker = zstd.ZstdDecompressor() if compressor == "zstd" else zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
        unpacked = unpacker.decompress(data, size + 1)
        whole = unpacker.eof and not unpacker.unused_data
    else:
        unpacked, whole = data, True
    if len(unpacked) != size or not whole:
        raise ValueError(f"it has {len(unpacked)} bytes{'' if whole else ' and is truncated'}, expected {size}")
    return unpacked


class _Folder:
    """The files of a store in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self, key: str) -> int | None:
        try:
            return (self._path / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, limit: int) -> bytes | None:
        try:
            return read_bytes(self._path / key, limit)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, group: str) -> list[str]:
        folder = self._path / group
        return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []

    def stored(self, name: str) -> tuple[int, int]:
        """Total bytes and number of the files of an array."""
        sizes = [path.stat().st_size for path in (self._path / name).rglob("*") if path.is_file()]
        return sum(sizes), len(sizes)


class _Zip:
    """The files of a store in a zip file. Nothing is extracted; a pickled instance opens the file again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open  # noqa: B018 (fail now, not later)

    @functools.cached_property
    def _open(self) -> zipfile.ZipFile:
        with self._path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2**16 - 22))
            end = file.read()
        place = end.rfind(b"PK\5\6")
        if place < 0 or len(end) < place + 22 or struct.unpack_from("<I", end, place + 12)[0] > _MAX_FILES:
            raise zipfile.BadZipFile(f"not a zip file with a directory of at most {_MAX_FILES} bytes")
        return zipfile.ZipFile(self._path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def size(self, key: str) -> int | None:
        try:
            return self._open.getinfo(key).file_size
        except KeyError:
            return None

    def read(self, key: str, limit: int) -> bytes | None:
        if self.size(key) is None:
            return None
        with self._open.open(key) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(f"{key} has more than {limit} bytes")
        return data

    def names(self, group: str) -> list[str]:
        return list({name.removeprefix(f"{group}/").split("/")[0] for name in self._below(group)})

    def stored(self, name: str) -> tuple[int, int]:
        sizes = [self._open.getinfo(key).compress_size for key in self._below(name)]
        return min(sum(sizes), self._path.stat().st_size), len(sizes)  # the zip file's directory may be wrong

    def _below(self, group: str) -> Iterator[str]:
        return (name for name in self._open.namelist() if name.startswith(f"{group}/") and not name.endswith("/"))
