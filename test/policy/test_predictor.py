import dataclasses

import numpy as np
import pytest
import torch
from windows import SMALL, observations

from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.engines import ENGINES
from onedp_ros.policy.policies import Batch, Policy
from onedp_ros.policy.predictor import load_predictor, noise_seed


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
    assert sum(frames) == 4 * len(small_contract.cameras) and predictor.encode_ms > 0.0
    predictor.predict([[o[2], o[3]]] * 5)
    assert sum(frames) == 4 * len(small_contract.cameras)


def test_the_cache_of_frames_stays_small_and_right(checkpoint, small_contract):
    predictor = load_predictor(checkpoint, engine="torch")
    o = observations(small_contract, 60)
    first = predictor.predict([[o[0], o[1]]])
    for i in range(1, 59):
        predictor.predict([[o[i], o[i + 1]]])
    assert all(len(known) <= 20 for known in predictor._frames.values())
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


def test_features_are_used_again_only_for_the_same_image_of_the_same_stamp(checkpoint, small_contract):
    """After a jump of the clock, or in another episode, a stamp comes again with another image, maybe in the same memory."""
    predictor, o = load_predictor(checkpoint, engine="torch"), observations(small_contract, 4)
    first = predictor.predict([[o[0], o[1]]])
    other = dataclasses.replace(o[1], images=o[3].images)
    expected = load_predictor(checkpoint, engine="torch").predict([[o[0], other]])
    assert not np.array_equal(expected, first)
    assert np.array_equal(predictor.predict([[o[0], other]]), expected)
    assert np.array_equal(predictor.predict([[o[0], o[1]], [o[0], other]]), np.concatenate([first, expected]))
    for name, image in o[1].images.items():
        image[:] = o[3].images[name]
    assert np.array_equal(predictor.predict([[o[0], o[1]]]), expected)


def test_a_frame_is_encoded_once_though_it_is_of_two_observations(checkpoint, small_contract):
    predictor, (first, second) = load_predictor(checkpoint, engine="torch"), observations(small_contract, 2)
    frames = []
    for encoder in predictor.policy.encoders.values():
        encoder.register_forward_hook(lambda _, inputs, __: frames.append(len(inputs[0])))
    # as live: the slower camera's frame again, under the stamp of the set
    stamps = dict.fromkeys(second.images, second.stamp)
    slow = {"images": {**second.images, "wrist": first.images["wrist"]}, "image_stamps": stamps}
    predictor.predict([[first, dataclasses.replace(second, **slow)]])
    assert sum(frames) == 3


def test_without_cameras_the_state_decides(tmp_path, small_contract, normalizer):
    blind = dataclasses.replace(small_contract, cameras={}, crop=())
    torch.manual_seed(0)
    save_policy(tmp_path, Policy(blind, SMALL, normalizer, "onedp_s"), {})
    for engine in ("torch", "openvino"):
        if engine not in ENGINES or not ENGINES.get(engine).is_available():
            continue
        predictor, o = load_predictor(tmp_path, engine=engine, threads=1, contract=blind), observations(blind, 3)
        chunks = predictor.predict([[o[0], o[1]], [o[0], o[2]]])
        assert chunks.shape == (2, blind.horizon, blind.action_dim)
        assert not np.array_equal(chunks[0], chunks[1])
