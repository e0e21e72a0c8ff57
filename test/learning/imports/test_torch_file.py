"""Files of torch.save are read without executing anything, within the size of the file."""

import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from onedp_ros.learning.imports.base import PolicyImportError
from onedp_ros.learning.imports.inert_pickle import InertPickleError, Record, read_pickle
from onedp_ros.learning.imports.torch_file import TorchFile, plain


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_survive(protocol: int) -> None:
    value = {
        "a": [1, -70000, 2**70, 1.5, None, True, False],
        "b": ("x", b"\xff\x00", ()),
        3: {"c": {}},
        "d": collections.OrderedDict(e=1),
    }
    value["again"] = value["a"]
    assert read_pickle(pickle.dumps(value, protocol), {}) == value


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "opcode MARK|opcode STRING|opcode"),
        (b"(X\x04\x00\x00\x00trueiposix\nsystem\n.", "calls posix.system"),
        (b"(cposix\nsystem\nX\x04\x00\x00\x00trueo.", "calls posix.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "calls posix.system"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02]", "damaged"),
        (b"\x80\x02\x86.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02}X\x01\x00\x00\x00a\x85K\x01s.", "dictionary key of the type tuple"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.", "encoding 'rot'"),
    ],
)
def test_what_is_called_or_unknown_is_named(data: bytes, told: str) -> None:
    with pytest.raises(InertPickleError, match=told):
        read_pickle(data, {})


class Thing:
    pass


def test_objects_become_records() -> None:
    thing = Thing()
    thing.__dict__["value"] = [1, 2]
    record = read_pickle(pickle.dumps(thing, 2), {})
    assert isinstance(record, Record) and record.name == f"{__name__}.Thing" and record.state == {"value": [1, 2]}
    assert plain({"a": record})["a"] is record


def test_settings_have_bounds() -> None:
    many: Any = [0]
    for _ in range(20):
        many = [many] * 10
    with pytest.raises(PolicyImportError, match="more than 100000 values"):
        plain(many)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PolicyImportError, match="more than 30 deep"):
        plain(endless)


def test_tensors_are_read_with_type_and_strides(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    tensors = {"view": base[1:, ::2].T, "half": base.half(), "whole": torch.arange(3), "none": torch.zeros(0, 2), "one": base[2, 3]}
    torch.save({**tensors, "parameter": torch.nn.Parameter(base)}, tmp_path / "a.pt")
    with TorchFile(tmp_path / "a.pt") as file:
        for name, tensor in {**tensors, "parameter": base}.items():
            found = file.tensor(file.content[name])
            assert found.dtype == torch.float32 and torch.equal(found, tensor.float()), name


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a file of torch.save whose data.pkl is changed."""
    other = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)
    return other


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(200, 3)}, path)
    shape = pickle.dumps((200, 3), 2)[2:-3]  # BININT1 200, BININT1 3, TUPLE2
    assert path.read_bytes().count(shape) == 1
    with pytest.raises(PolicyImportError, match="exceeds its storage"):
        TorchFile(rewritten(path, lambda data: data.replace(shape, b"K\xffK\x03\x86")))
    count = b"M\x58\x02"  # BININT2 600
    with pytest.raises(PolicyImportError, match="should hold 65535 values, but has 2400 bytes"):
        TorchFile(rewritten(path, lambda data: data.replace(count, b"M\xff\xff")))
    with pytest.raises(PolicyImportError, match="compressed entries"):
        TorchFile(rewritten(path, lambda data: data, zipfile.ZIP_DEFLATED))


def test_a_tensor_that_repeats_its_storage_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1000, 1000)}, tmp_path / "a.pt")
    with pytest.raises(PolicyImportError, match="exceeds its storage"):
        TorchFile(tmp_path / "a.pt")


def test_incomplete_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(PolicyImportError, match=r"a\.pt is no complete file of torch\.save"):
        TorchFile(path)
    path.write_bytes(whole.replace(b"/data.pkl", b"/dat\xff.pkl"))
    with pytest.raises(PolicyImportError, match=r"a\.pt"):
        TorchFile(path)
    torch.save({"a": torch.ones(1000)}, path)
    spoiled = path.read_bytes()
    at = spoiled.index(torch.ones(4).numpy().tobytes())
    path.write_bytes(spoiled[:at] + os.urandom(16) + spoiled[at + 16 :])
    with TorchFile(path) as file, pytest.raises(PolicyImportError, match="data/0 is damaged"):
        file.tensor(file.content["a"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(PolicyImportError, match=r"holds no data\.pkl"):
        TorchFile(path)
