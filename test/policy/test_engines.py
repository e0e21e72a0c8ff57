"""Every engine agrees with eager PyTorch or is not used; a new one is one class."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from windows import SMALL, observations

from onedp_ros.policy import predictor as predictor_module
from onedp_ros.policy.engine_parity import PARITY_BOUND, parity
from onedp_ros.policy.engines import ENGINES, describe_engines
from onedp_ros.policy.engines.base import EngineError
from onedp_ros.policy.engines.openvino import OpenVinoEngine
from onedp_ros.policy.engines.torch import TorchEngine
from onedp_ros.policy.policies import Policy
from onedp_ros.policy.predictor import load_predictor
from onedp_ros.registry import UnknownNameError


@pytest.mark.parametrize("engine", ["openvino", "openvino_bf16"])
def test_openvino_agrees_with_eager(checkpoint, small_contract, engine):
    pytest.importorskip("openvino")
    predictor = load_predictor(checkpoint, engine=engine, threads=1)
    assert predictor.engine == engine
    assert predictor.parity <= (1e-3 if engine == "openvino" else PARITY_BOUND)
    o = observations(small_contract, 3)
    windows = [[o[0], o[1]], [o[1], o[2]]]
    eager = load_predictor(checkpoint, engine="torch", threads=1).predict(windows)
    scale = predictor.policy.normalizer.action_scale
    np.testing.assert_array_less(np.abs(predictor.predict(windows) - eager) / scale, 2 * PARITY_BOUND)


def test_auto_takes_an_engine_that_agrees(checkpoint):
    predictor = load_predictor(checkpoint, threads=1)
    assert predictor.engine in ENGINES
    assert predictor.parity <= PARITY_BOUND


class WrongEngine(TorchEngine):
    """An engine whose encoder is off, as a bad quantisation makes it."""

    priority = 99

    def encode(self, camera, images):
        return super().encode(camera, images) + 30.0


class NanEngine(TorchEngine):
    def denoise(self, sample, step, condition):
        return torch.full_like(sample, float("nan"))


class BrokenEngine(TorchEngine):
    @classmethod
    def start(cls, policy, threads):
        raise EngineError("driver missing")


@pytest.fixture
def add_engine(tmp_path, monkeypatch):
    """Registers an engine for a test, in which ``auto`` leaves out OpenVINO: it takes longer to start than all else."""
    added = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(OpenVinoEngine, "is_available", classmethod(lambda cls: False))

    def add(name, engine):
        ENGINES.add(name, engine)
        added.append(name)

    yield add
    for name in added:
        ENGINES.remove(name)


@pytest.mark.parametrize("wrong", [WrongEngine, NanEngine])
def test_an_engine_that_disagrees_is_refused_when_asked_for_and_passed_over_by_auto(checkpoint, add_engine, wrong):
    add_engine("wrong", wrong)
    with pytest.raises(EngineError, match="'wrong' differs from eager"):
        load_predictor(checkpoint, engine="wrong")
    assert load_predictor(checkpoint, threads=1).engine != "wrong"


def test_an_engine_that_does_not_start_is_passed_over_by_auto(checkpoint, add_engine, caplog):
    add_engine("broken", BrokenEngine)
    with caplog.at_level(logging.WARNING):
        assert load_predictor(checkpoint, threads=1).engine in ENGINES
    assert "driver missing" in caplog.text


def test_unknown_and_missing_engines_are_named(checkpoint):
    with pytest.raises(UnknownNameError, match=r"'tpu', expected one of cuda, openvino, .*write the file \S+/engines/tpu\.py"):
        load_predictor(checkpoint, engine="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="NVIDIA"):
            load_predictor(checkpoint, engine="cuda")


class CountingEngine(TorchEngine):
    """A new engine that is kept between starts."""

    started = 0
    priority = 99

    @classmethod
    def start(cls, policy, threads):
        CountingEngine.started += 1
        return cls(policy)

    def export(self):
        return {"policy": save(self.policy.state_dict())}

    @classmethod
    def restore(cls, networks, threads):
        policy = Policy(*cls.made_of)
        policy.load_state_dict(load(networks["policy"]))
        return cls(policy.eval())


def test_a_new_engine_is_one_class_chosen_by_auto_and_kept_for_the_next_start(
    checkpoint, small_contract, normalizer, add_engine, monkeypatch
):
    CountingEngine.made_of = (small_contract, SMALL, normalizer, "onedp_s")
    add_engine("counting", CountingEngine)
    assert "counting" in describe_engines()
    fastest = lambda policy, engine: 0.0 if isinstance(engine, CountingEngine) else 1.0  # noqa: E731
    monkeypatch.setattr(predictor_module, "measure_seconds", fastest)
    window = observations(small_contract, 2)
    eager = load_predictor(checkpoint, engine="torch").predict([window])
    for engine in ("auto", "auto", "counting"):
        predictor = load_predictor(checkpoint, engine=engine)
        assert (predictor.engine, predictor.parity) == ("counting", 0.0)
        assert np.array_equal(predictor.predict([window]), eager)
    if not torch.cuda.is_available():
        assert CountingEngine.started == 1, "then restored"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_agree_with_eager(checkpoint, small_contract):
    predictor, window = load_predictor(checkpoint, engine="cuda"), observations(small_contract, 2)
    assert predictor.parity <= PARITY_BOUND
    one = predictor.predict([window])
    predictor.predict([window] * 3)
    predictor.reset(0)
    np.testing.assert_allclose(predictor.predict([window]), one, atol=1e-4)


def test_parity_is_in_normalised_units(small_contract, normalizer):
    torch.manual_seed(0)
    policy = Policy(small_contract, SMALL, normalizer, "onedp_s").eval()

    class Shifted(TorchEngine):
        def denoise(self, sample, step, condition):
            return super().denoise(sample, step, condition) + 0.001

    # 0.001 of noise is sigma / alpha times as much of the action
    assert parity(policy, Shifted(policy)) == pytest.approx(0.001 * 0.8629 / 0.5054, rel=0.05)
