import dataclasses
import logging

import numpy as np
import pytest
import torch

from onedp_ros.contract import Observation
from onedp_ros.policy import inference
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.inference import PARITY_BOUND, EngineError, TorchEngine, load_predictor, noise_seed, parity
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Batch, Policy

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)


@pytest.fixture
def checkpoint(tmp_path, small_contract, normalizer):
    torch.manual_seed(0)
    policy = Policy(small_contract, SMALL, normalizer, "onedp_s")
    policy.unet.final[1].weight.data *= 0.2  # an untrained network's output is rougher than that of a trained one
    save_policy(tmp_path, policy, {}, torch.float32)
    return tmp_path


def observations(contract, count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Observation(
            i,
            {n: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()},
            dict.fromkeys(contract.cameras, i),
            rng.random(contract.state_dim, dtype=np.float32),
        )
        for i in range(count)
    ]


def batch_of(windows, contract):
    images = {n: torch.from_numpy(np.array([[o.images[n] for o in w] for w in windows])) for n in contract.cameras}
    return Batch(images, torch.from_numpy(np.array([[o.state for o in w] for w in windows])))


def test_a_prediction_is_that_of_the_policy(checkpoint, small_contract):
    predictor = load_predictor(checkpoint, engine="torch", seed=5)
    o = observations(small_contract, 3)
    windows = [[o[0], o[1]], [o[1], o[2]], [o[2], o[2]]]
    for window, chunk in zip(windows, predictor.predict(windows), strict=True):
        noise = torch.Generator().manual_seed(noise_seed(5, window[-1].stamp))
        expected = predictor.policy.predict_action(batch_of([window], small_contract), noise)[0]
        np.testing.assert_allclose(chunk, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert (predictor.engine, predictor.method, predictor.nfe, predictor.parity) == ("torch", "onedp_s", 1, 0.0)
    assert predictor.contract == small_contract


def test_every_frame_is_encoded_once(checkpoint, small_contract):
    predictor = load_predictor(checkpoint, engine="torch")
    frames = []
    for encoder in predictor.policy.encoders.values():
        encoder.register_forward_hook(lambda _, inputs, __: frames.append(len(inputs[0])))
    o = observations(small_contract, 4)
    for i in range(3):
        predictor.predict([[o[i], o[i + 1]]])
    assert sum(frames) == 4 * len(small_contract.cameras)
    predictor.predict([[o[2], o[3]]] * 5)
    assert sum(frames) == 4 * len(small_contract.cameras)


def test_the_cache_of_frames_stays_small_and_right(checkpoint, small_contract):
    predictor = load_predictor(checkpoint, engine="torch")
    o = observations(small_contract, 60)
    first = predictor.predict([[o[0], o[1]]])
    for i in range(1, 59):
        predictor.predict([[o[i], o[i + 1]]])
    assert all(len(known) <= 20 for known in predictor._features.values())
    predictor.reset(0)
    np.testing.assert_allclose(predictor.predict([[o[0], o[1]]]), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["onedp_s", "dp_ddpm100"])
def test_a_chunk_depends_on_its_window_and_seed_and_on_nothing_before_or_beside_it(tmp_path, small_contract, normalizer, method):
    torch.manual_seed(0)
    save_policy(tmp_path, Policy(small_contract, SMALL, normalizer, method), {})
    predictor, o = load_predictor(tmp_path, engine="torch", seed=1), observations(small_contract, 3)
    windows = [[o[0], o[1]], [o[1], o[2]]]
    first = predictor.predict([windows[1]])
    predictor.predict([windows[0]])
    assert np.array_equal(predictor.predict([windows[1]]), first)
    assert np.array_equal(predictor.predict(windows)[1:], first)
    assert np.array_equal(load_predictor(tmp_path, engine="torch", seed=1).predict(windows)[1:], first)
    later = [o[1], dataclasses.replace(o[2], stamp=o[2].stamp + 1)]
    assert not np.array_equal(predictor.predict([later]), first), "noise of its own at each stamp"
    predictor.reset(2)
    assert not np.array_equal(predictor.predict([windows[1]]), first)
    predictor.reset(1)
    assert np.array_equal(predictor.predict([windows[1]]), first)


def test_noise_of_neighbouring_seeds_and_stamps_has_nothing_in_common():
    seeds = [noise_seed(seed, stamp) for seed in (-1, 0, 1, 2**31 - 1) for stamp in (-1, 0, 1, 50_000_000, 2**62)]
    assert len({s % 2**32 for s in seeds}) == len(seeds), "a generator may use the lower half alone"
    noise = torch.stack([torch.randn(160, generator=torch.Generator().manual_seed(s)) for s in seeds])
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.4


def test_a_window_of_the_wrong_length_is_refused(checkpoint, small_contract):
    with pytest.raises(ValueError, match="n_obs_steps = 2"):
        load_predictor(checkpoint, engine="torch").predict([observations(small_contract, 1)])


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
    assert predictor.engine in inference.ENGINES
    assert predictor.parity <= PARITY_BOUND


class WrongEngine(TorchEngine):
    """An engine whose encoder is off, as a bad quantisation makes it."""

    def encode(self, camera, images):
        return super().encode(camera, images) + 30.0


class NanEngine(TorchEngine):
    def denoise(self, sample, step, condition):
        return torch.full_like(sample, float("nan"))


@pytest.mark.parametrize("wrong", [WrongEngine, NanEngine])
def test_an_engine_that_disagrees_is_refused_when_asked_for_and_passed_over_by_auto(checkpoint, monkeypatch, wrong):
    real = inference.start_engine
    monkeypatch.setattr(
        inference, "start_engine", lambda name, policy, threads: real(name, policy, threads) if name == "torch" else wrong(policy)
    )
    with pytest.raises(EngineError, match="differs from eager"):
        load_predictor(checkpoint, engine="openvino")
    if not torch.cuda.is_available():
        assert load_predictor(checkpoint).engine == "torch"


def test_an_engine_that_does_not_start_is_passed_over_by_auto(checkpoint, monkeypatch, caplog):
    real = inference.start_engine

    def start(name, policy, threads):
        if name == "torch":
            return real(name, policy, threads)
        raise EngineError("driver missing")

    monkeypatch.setattr(inference, "start_engine", start)
    with caplog.at_level(logging.WARNING):
        assert load_predictor(checkpoint).engine == "torch"
    assert "driver missing" in caplog.text


def test_unknown_and_missing_engines_are_named(checkpoint):
    with pytest.raises(EngineError, match="'tpu'"):
        load_predictor(checkpoint, engine="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="NVIDIA"):
            load_predictor(checkpoint, engine="cuda")


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
