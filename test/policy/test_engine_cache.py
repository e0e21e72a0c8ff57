"""Engines kept between starts: what is read back, what is not, and that predictions are the same with and without."""

import itertools
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from onedp_ros.contract import Observation
from onedp_ros.policy import engine_cache
from onedp_ros.policy import predictor as predictor_module
from onedp_ros.policy.checkpoint import WEIGHTS, CheckpointError, load_sampler, save_policy
from onedp_ros.policy.engine_cache import cache_folder, read, write
from onedp_ros.policy.engines import openvino
from onedp_ros.policy.engines.openvino import OpenVinoEngine
from onedp_ros.policy.kept_engines import KeptEngines
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy
from onedp_ros.policy.predictor import load_predictor

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)
KEY = {"checkpoint": "abc", "engine": "openvino"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of each test's own for the engines that are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path, small_contract, normalizer):
    torch.manual_seed(0)
    save_policy(tmp_path / "policy", Policy(small_contract, SMALL, normalizer, "onedp_s"), {})
    return tmp_path / "policy"


def entries():
    return sorted(cache_folder().glob("*.engine"))


def test_what_was_kept_comes_back_and_nothing_else():
    folder = cache_folder()
    assert read(folder, KEY) is None
    write(folder, KEY, b"compiled")
    assert read(folder, KEY) == b"compiled"
    assert read(folder, KEY | {"engine": "openvino_bf16"}) is None
    assert [p.suffix for p in folder.iterdir()] == [".engine"], "no partial files"


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: d[:10], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])])
def test_a_damaged_entry_reads_as_missing(spoil):
    write(cache_folder(), KEY, b"compiled engine")
    (entry,) = entries()
    entry.write_bytes(spoil(entry.read_bytes()))
    assert read(cache_folder(), KEY) is None


def test_an_entry_under_anothers_name_reads_as_missing():
    folder = cache_folder()
    write(folder, KEY, b"one")
    (one,) = entries()
    write(folder, KEY | {"engine": "other"}, b"other")
    (other,) = set(entries()) - {one}
    os.replace(other, one)
    assert read(folder, KEY) is None


def test_the_longest_unused_go_when_the_limit_is_exceeded(monkeypatch):
    monkeypatch.setattr(engine_cache, "LIMIT", 1000)
    folder = cache_folder()
    for i in range(3):
        write(folder, {"n": i}, bytes(250))
    for i, entry in enumerate(engine_cache._file(folder, {"n": n}) for n in range(3)):
        os.utime(entry, (1000 + i, 1000 + i))
    assert read(folder, {"n": 0}) is not None, "used now"
    crashed = folder / "x.partial"
    crashed.write_bytes(bytes(10))
    os.utime(crashed, (1, 1))
    write(folder, {"n": 3}, bytes(250))
    assert [read(folder, {"n": n}) is not None for n in range(4)] == [True, False, True, True]
    assert not crashed.exists()
    write(folder, {"n": 4}, bytes(2000))
    assert read(folder, {"n": 4}) is None, "one larger than the limit is not kept at all"


def test_the_folder_is_the_users_alone(tmp_path, monkeypatch):
    folder = cache_folder()
    assert folder == tmp_path / "cache" / "onedp_ros" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(OSError, match=f"chmod 700 {folder}"):
        cache_folder()
    folder.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "linked"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "onedp_ros").symlink_to(folder)
    with pytest.raises(OSError, match="not a folder of this user's own"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "onedp_ros", "as the specification says of relative paths"


def predictions(predictor):
    rng, contract = np.random.default_rng(0), predictor.contract
    observations = [
        Observation(
            stamp,
            {n: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()},
            dict.fromkeys(contract.cameras, stamp),
            rng.random(contract.state_dim, dtype=np.float32),
        )
        for stamp in range(4)
    ]
    return np.concatenate([predictor.predict([list(pair)]) for pair in itertools.pairwise(observations)])


@pytest.mark.parametrize("engine", ["openvino", "auto"])
def test_the_second_start_restores_the_engine_and_predicts_the_same_bit_for_bit(checkpoint, monkeypatch, engine):
    pytest.importorskip("openvino")
    if engine == "auto":  # the torch engine would be as fast as any at this size
        seconds = lambda policy, runner: 0.0 if isinstance(runner, OpenVinoEngine) else 1.0  # noqa: E731
        monkeypatch.setattr(predictor_module, "measure_seconds", seconds)
    said: list[str] = []
    first = load_predictor(checkpoint, engine=engine, threads=1, progress=said.append)
    assert not any("restoring" in text for text in said)
    expected = predictions(first)

    def never(*_):
        raise AssertionError("converted, or the networks were read, though the engine was kept")

    monkeypatch.setattr(predictor_module, "load_policy", never)
    monkeypatch.setattr(openvino, "convert", never)
    second = load_predictor(checkpoint, engine=engine, threads=1, progress=said.append)
    assert any("restoring" in text for text in said)
    assert (second.engine, second.parity) == (first.engine, first.parity)
    assert np.array_equal(predictions(second), expected)


@pytest.fixture
def kept(checkpoint):
    """An engine of the checkpoint that was kept: its predictor, and what asks for it as the next start does."""
    pytest.importorskip("openvino")
    predictor = load_predictor(checkpoint, engine="openvino", threads=1)

    def restored(threads=1):
        sampler, digests = load_sampler(checkpoint)
        return KeptEngines(digests, threads).restore("openvino", sampler, print)

    assert restored() is not None
    return predictor, restored


def test_what_cannot_be_used_is_not_restored_and_the_engine_made_again(
    checkpoint, kept, small_contract, normalizer, caplog, monkeypatch
):
    predictor, restored = kept
    expected = predictions(predictor)
    assert restored(threads=2) is None, "another number of threads"

    key = KeptEngines(load_sampler(checkpoint)[1], 1).key | {"engine": "openvino"}
    (entry,) = entries()
    whole = entry.read_bytes()
    with caplog.at_level(logging.WARNING):
        write(cache_folder(), key, b"whole by its digest, but of another program")
        assert restored() is None
    assert "compiled again" in caplog.text

    entry.write_bytes(whole)
    assert restored() is not None
    real = OpenVinoEngine.denoise
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEngine, "denoise", lambda *inputs: real(*inputs) + 1.0)
        assert restored() is None, "no longer agrees with eager PyTorch"

    entry.write_bytes(whole[:1000])
    assert np.array_equal(predictions(load_predictor(checkpoint, engine="openvino", threads=1)), expected)
    assert restored() is not None, "mended"

    torch.manual_seed(1)
    save_policy(checkpoint, Policy(small_contract, SMALL, normalizer, "onedp_s"), {})
    assert restored() is None, "other weights"
    weights = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        restored()


def test_without_a_folder_of_its_own_the_policy_loads_all_the_same(checkpoint, caplog):
    cache_folder().chmod(0o755)
    with caplog.at_level(logging.WARNING):
        load_predictor(checkpoint, engine="torch", threads=1)
    assert "not kept" in caplog.text and "chmod 700" in caplog.text


def test_starts_at_the_same_time_do_no_harm(tmp_path):
    program = (
        "import sys\nfrom onedp_ros.policy.engine_cache import cache_folder, read, write\n"
        "for i in range(40):\n    write(cache_folder(), {'n': i % 3}, bytes([i % 3]) * 100_000)\n"
        "    for n in range(3):\n        assert read(cache_folder(), {'n': n}) in (None, bytes([n]) * 100_000)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert all(read(cache_folder(), {"n": n}) == bytes([n]) * 100_000 for n in range(3))


def test_a_one_step_policy_starts_without_diffusers():
    """Importing it takes longer than all else."""
    program = "import sys, onedp_ros.policy.predictor; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
