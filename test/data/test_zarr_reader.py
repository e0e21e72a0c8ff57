"""Zarr stores: the same values as zarr reads, nothing run that a store names, nothing unpacked that does not fit."""

import json
import os
import pickle
import re
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.contract import Contract
from onedp_ros.data.convert import ConvertError, convert
from onedp_ros.data.episodes import SourceError
from onedp_ros.data.formats import replay_buffer
from onedp_ros.data.formats.zarr_reader import ZarrError, ZarrStore
from onedp_ros.evaluation.inspect import InspectError, inspect_dataset
from onedp_ros.learning.dataset import DatasetError, WindowDataset

V2: dict[str, Any] = {"zarr_format": 2} if zarr.__version__ >= "3" else {}
STEPS = 24


@pytest.fixture
def store(contract: Contract, tmp_path: Path) -> Path:
    """A replay buffer as 'onedp convert' writes it, small."""
    path = tmp_path / "data.zarr"
    root = zarr.open_group(str(path), mode="w", **V2)
    arrays = {
        "data/state": np.tile(np.float32([0.4, 0, 0.3, 1, 0, 0, 0, 0.04, 0.04]), (STEPS, 1)),
        "data/action": np.tile(np.float32([0.4, 0, 0.3, 1, 0, 0, 0, -1, 0, 0.08]), (STEPS, 1)),
        "meta/episode_ends": np.array([STEPS]),
        **{f"data/{name}": np.full((STEPS, c.height, c.width, 3), 7, np.uint8) for name, c in contract.cameras.items()},
    }
    for name, values in arrays.items():
        zarr.create(shape=values.shape, dtype=values.dtype, chunks=values.shape, store=str(path), path=name, **V2)[:] = values
    root.attrs.update({"contract": contract.to_dict(), "episodes": [{"seed": 1}]})
    return path


def change(store: Path, array: str, **fields: object) -> None:
    file = store / array / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refused(store: Path, contract: Contract) -> list[str]:
    """What convert, train and inspect say of a store."""
    said = []
    with pytest.raises(SourceError) as error:
        for source in replay_buffer.sources(store):
            source.read(contract)
    said.append(str(error.value))
    with pytest.raises(DatasetError) as error:
        WindowDataset(store)
    said.append(str(error.value))
    with pytest.raises(InspectError) as error:
        inspect_dataset(store)
    return [*said, str(error.value)]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"compressor": {"id": "pickle"}}, "'data/state' is compressed by 'pickle', expected blosc, gzip, lz4, zlib, zstd"),
        ({"filters": [{"id": "pickle"}], "dtype": "|O"}, r"'data/state' is of type '\|O', expected booleans"),
        ({"filters": [{"id": "pickle"}]}, r"'data/state' has the filters \['pickle'\], expected none"),
        ({"filters": [{"id": "vlen-utf8"}], "dtype": "<U9"}, "'data/state' is of type '<U9'"),
        (
            {"compressor": {"id": "imagecodecs_jpeg2k", "level": 50}},
            "compressed by 'imagecodecs_jpeg2k'.*rewrite it .*, compressed by zstd",
        ),
        ({"compressor": "pickle"}, "is compressed by 'pickle'"),
        ({"filters": True}, r"has the filters \['True'\]"),
        ({"shape": [10**9, 9], "chunks": [4096, 9]}, r"\(1000000000, 9\) has 36000000000 bytes, but only \d+ are on the disk"),
        ({"shape": [10**30, 9]}, "too large a number"),
        ({"shape": [10**6, 9], "chunks": [1, 1]}, "'data/state' has 9000000 chunks, but only 3 exist"),
        ({"shape": [10**7, 9], "chunks": [10**7, 9]}, "has chunks of 360000000 bytes, expected at most"),
        ({"shape": [-1, 9]}, r"has the shape \[-1, 9\], expected"),
        ({"shape": "24"}, "has '24' where a list of whole numbers is expected"),
        ({"chunks": [24]}, r"has the shape \(24, 9\), but chunks of \(24,\)"),
        ({"fill_value": "x"}, "is filled with 'x', expected a number"),
        ({"order": "K"}, "an invalid order or separator"),
        ({"chunks": [23, 9]}, r"the chunk data/state/0\.0 cannot be read"),
    ],
)
def test_a_store_with_anything_but_numbers_is_refused_and_runs_nothing(
    store: Path, tmp_path: Path, contract: Contract, fields: dict[str, object], named: str
) -> None:
    (store / "data/state/0.0").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    change(store, "data/state", **fields)
    begin = time.monotonic()
    for said in refused(store, contract):
        assert re.search(named, said), said
    assert time.monotonic() - begin < 5.0
    assert not (tmp_path / "ran").exists()


def test_a_command_in_a_store_is_not_run_by_convert(store: Path, tmp_path: Path) -> None:
    (store / "data/state/0.0").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    change(store, "data/state", compressor={"id": "pickle"})
    with pytest.raises(ConvertError, match="'data/state' is compressed by 'pickle'"):
        convert([store], tmp_path / "out.zarr", workers=1, progress=False)
    assert not (tmp_path / "ran").exists()


def test_metadata_that_were_consolidated_count_for_nothing(store: Path) -> None:
    """Readers that believe them open arrays by other codecs than the array's own."""
    file = store / "data/state/.zarray"
    entry = {**json.loads(file.read_text()), "filters": [{"id": "pickle"}], "dtype": "|O"}
    (store / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": {"data/state/.zarray": entry}}))
    assert len(WindowDataset(store)) and inspect_dataset(store)["steps"] == STEPS


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"codecs": [{"name": "numcodecs.pickle"}]}, r"has the codecs \['numcodecs.pickle'\], expected bytes and one of"),
        ({"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}, "is compressed by 'numcodecs.pickle'"),
        ({"codecs": [{"name": "sharding_indexed"}]}, "has the codecs"),
        ({"codecs": None}, "has the codecs"),
        ({"data_type": "string"}, "is of type 'string'"),
        ({"data_type": {"name": "struct"}}, "is of type {'name': 'struct'}"),
        ({"chunk_grid": {"name": "regular"}}, "where a list of whole numbers is expected"),
        ({"chunk_key_encoding": {"name": "other"}}, "has the chunks"),
        ({"storage_transformers": [{"name": "x"}]}, r"has the transformers \['x'\]"),
        ({"shape": [10**9]}, "are on the disk"),
    ],
)
def test_format_3_is_checked_too(tmp_path: Path, fields: dict[str, object], named: str) -> None:
    layout = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    (tmp_path / "data/x/c").mkdir(parents=True)
    (tmp_path / "data/x/c/0").write_bytes(np.arange(4, dtype="<i2").tobytes())
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    (tmp_path / "data/x/zarr.json").write_text(json.dumps(layout))
    assert ZarrStore(tmp_path)["data/x"][:].tolist() == [0, 1, 2, 3]
    (tmp_path / "data/x/zarr.json").write_text(json.dumps({**layout, **fields}))
    with pytest.raises(ZarrError, match=named):
        ZarrStore(tmp_path)["data/x"][:]


@pytest.mark.parametrize("codec", ["blosc", "gzip", "lz4", "zlib", "zstd"])
def test_a_chunk_is_never_unpacked_to_more_than_its_array_says(store: Path, codec: str) -> None:
    packer = numcodecs.get_codec({"id": codec})
    change(store, "data/state", compressor=packer.get_config())
    chunk = store / "data/state/0.0"
    values = np.arange(STEPS * 9, dtype=np.float32).reshape(STEPS, 9)
    chunk.write_bytes(packer.encode(values))
    np.testing.assert_array_equal(ZarrStore(store)["data/state"][:], values)
    whole = chunk.read_bytes()
    for damaged in (packer.encode(np.zeros(2**28, np.uint8)), whole[:-5], whole[:3], b"", b"\xff" * 64):
        chunk.write_bytes(damaged)
        with pytest.raises(ZarrError, match=r"the chunk data/state/0\.0 cannot be read .*; copy or download it again"):
            ZarrStore(store)["data/state"][:]


def test_what_is_no_file_is_not_waited_for(store: Path) -> None:
    chunk = store / "data/state/0.0"
    for make in (lambda: os.mkfifo(chunk), lambda: chunk.symlink_to("/dev/zero"), chunk.mkdir):
        chunk.unlink()
        make()
        with pytest.raises(ZarrError, match=r"the chunk data/state/0\.0 cannot be read .*not a regular file"):
            ZarrStore(store)["data/state"][:]
        if chunk.is_dir():
            chunk.rmdir()
            chunk.touch()
    (store / ".zattrs").unlink()
    (store / ".zattrs").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"\.zattrs is not a regular file"):
        ZarrStore(store)


def test_zip_files_are_read_within_bounds(store: Path, tmp_path: Path, contract: Contract) -> None:
    def write(name: str, change: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", method) as out:
            for file in (path for path in store.rglob("*") if path.is_file()):
                key = str(file.relative_to(store))
                out.writestr(key, change.pop(key, file.read_bytes()))
            for key, data in change.items():
                out.writestr(key, data)
        return tmp_path / name

    def read(path: Path) -> None:
        for source in replay_buffer.sources(path):
            source.read(contract)

    good = write("good.zarr.zip", {"../../evil": b"x", "/tmp/evil": b"x"})
    read(good)  # nothing is extracted
    assert not (tmp_path.parent / "evil").exists()
    with pytest.raises(SourceError, match=r"data/state/0\.0 cannot be read .* has more than \d+ bytes"):
        read(write("bomb.zarr.zip", {"data/state/0.0": b"\0" * 2**26}, zipfile.ZIP_DEFLATED))
    with pytest.raises(SourceError, match=r"\.zattrs has more than \d+ bytes"):
        read(write("settings.zarr.zip", {".zattrs": b" " * (2**26 + 1)}, zipfile.ZIP_DEFLATED))
    whole = good.read_bytes()
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"data/state/0.0"))  # its entry in the zip's own directory
    lie = tmp_path / "lie.zarr.zip"
    lie.write_bytes(whole[: at + 20] + (2**31).to_bytes(4, "little") + whole[at + 24 :])
    assert ZarrStore(lie)._files.stored("data/state")[0] <= len(whole)
    good.write_bytes(good.read_bytes()[:-30])
    with pytest.raises(SourceError, match="cannot be opened"):
        read(good)


def test_rows_without_values_take_no_memory(store: Path) -> None:
    change(store, "data/state", shape=[2**39, 0], chunks=[2**39, 1])
    with pytest.raises(ZarrError, match="has chunks of"):
        ZarrStore(store)["data/state"]
    change(store, "data/state", shape=[2**39, 0], chunks=[1, 1])
    assert ZarrStore(store)["data/state"][:].shape == (2**39, 0)


def test_episode_ends_are_checked(store: Path) -> None:
    chunk = store / "meta/episode_ends/0"
    change(store, "meta/episode_ends", compressor=None)
    for end in (-3, -(2**62)):
        chunk.write_bytes(np.array([end]).tobytes())
        with pytest.raises(SourceError, match="'meta/episode_ends' decreases"):
            replay_buffer.sources(store)
    change(store, "meta/episode_ends", dtype="<f8")
    with pytest.raises(SourceError, match=r"'meta/episode_ends' is float64 \(1,\), expected whole numbers"):
        replay_buffer.sources(store)


LAYOUTS = st.sampled_from([((37, 5, 7), (10, 2, 7)), ((20,), (20,)), ((5, 3), (1, 3)), ((0, 4), (3, 4)), ((6, 2), (7, 5))])
PACKERS = st.sampled_from([None, "blosc", "gzip", "lz4", "zlib", "zstd"])
STEP = st.one_of(st.none(), st.integers(-9, 40))


@given(
    layout=LAYOUTS,
    packer=PACKERS,
    dtype=st.sampled_from(["u1", ">f4", "<f8", "i8", "b1"]),
    order=st.sampled_from("CF"),
    separator=st.sampled_from("./"),
    rows=st.tuples(STEP, STEP, st.one_of(st.none(), st.integers(1, 5))),
)
@settings(max_examples=40)
def test_values_are_those_that_zarr_wrote(
    tmp_path_factory: pytest.TempPathFactory, layout: Any, packer: Any, dtype: str, order: str, separator: str, rows: Any
) -> None:
    path, (shape, chunks) = tmp_path_factory.mktemp("store"), layout
    values = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    values[: len(values) // 3] = 0  # a chunk without anything is not written
    zarr.open_group(str(path), mode="w", **V2)
    codec = numcodecs.get_codec({"id": packer}) if packer else None
    options = {"compressor": codec, "order": order, "dimension_separator": separator, **V2}
    zarr.create(shape=shape, chunks=chunks, dtype=dtype, store=str(path), path="data/x", **options)[:] = values
    np.testing.assert_array_equal(ZarrStore(path)["data/x"][slice(*rows)], values[slice(*rows)])


@pytest.fixture(scope="module")
def small_stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One packed by each."""
    paths = []
    for packer in (None, "blosc", "gzip", "lz4", "zlib", "zstd"):
        paths.append(tmp_path_factory.mktemp("store"))
        zarr.open_group(str(paths[-1]), mode="w", **V2)
        codec = numcodecs.get_codec({"id": packer}) if packer else None
        values = np.arange(60, dtype=np.int16).reshape(20, 3)
        zarr.create(shape=(20, 3), chunks=(8, 3), dtype="i2", compressor=codec, store=str(paths[-1]), path="data/x", **V2)[:] = (
            values
        )
    return paths


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANYTHING = st.recursive(LEAVES, lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=4), some, max_size=3))


@given(st.data())
@settings(max_examples=150)
def test_any_damage_is_refused_or_read(small_stores: list[Path], data: st.DataObject) -> None:
    """One field or a few bytes of a store, changed at random."""
    path = data.draw(st.sampled_from(small_stores))
    file = path / data.draw(st.sampled_from(["data/x/.zarray", "data/x/1.0", ".zgroup"]))
    whole = file.read_bytes()
    content = bytearray(whole)
    if file.name == ".zarray" and data.draw(st.booleans()):
        fields = json.loads(content)
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(ANYTHING)
        content = bytearray(json.dumps(fields).encode())
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        assert ZarrStore(path)["data/x"][:].nbytes < 2**27
    except ZarrError as error:
        assert str(path) in str(error)
    finally:
        file.write_bytes(whole)


def test_gzip_of_several_members_is_not_cut(store: Path) -> None:
    """Such a chunk is refused rather than read in part."""
    change(store, "data/state", compressor={"id": "gzip", "level": 1})
    half = np.zeros(STEPS * 9 // 2, np.float32).tobytes()
    packed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    member = packed.compress(half) + packed.flush()
    (store / "data/state/0.0").write_bytes(member + member)
    with pytest.raises(ZarrError, match=r"cannot be read \(ValueError: it has 432 bytes and is truncated, expected 864"):
        ZarrStore(store)["data/state"][:]
