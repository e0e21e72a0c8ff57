"""Colours changed at random in training."""

import dataclasses

import pytest
import torch
from replays import LENGTHS, write_replay
from test_train import CONFIG, DISTILL, SMALL, equal, weights

from onedp_ros.learning.color_jitter import HUE, NOISE, jitter_batch, jitter_colors
from onedp_ros.learning.distill import distill
from onedp_ros.learning.train import train
from onedp_ros.policy.checkpoint import CheckpointError
from onedp_ros.policy.methods.settings import TrainingSettings
from onedp_ros.policy.policies import Batch

CHANGED = dataclasses.replace(CONFIG, color_jitter=1.0)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def one_color(*rgb, windows=200):
    return torch.tensor(rgb, dtype=torch.uint8).expand(windows, 2, 12, 12, 3)


def means(images):
    return images.mean((2, 3))  # (windows, observations, 3)


def test_no_strength_is_no_change_and_draws_nothing():
    batch, generator = Batch({"front": one_color(10, 20, 30)}, torch.zeros(200, 2, 9)), random()
    assert jitter_batch(batch, 0.0, generator) is batch
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=random()))


def test_a_window_changes_as_a_whole_and_windows_differ():
    changed = jitter_colors(one_color(60, 120, 180), 1.0, random())
    assert changed.dtype == torch.float32 and changed.min() >= 0 and changed.max() <= 255
    average = means(changed)
    assert (average[:, 0] - average[:, 1]).abs().max() < 4, "noise apart, both observations change alike"
    assert average[:, 0].std(0).min() > 15, "windows do not"
    assert (changed - changed.mean((2, 3), keepdim=True)).std() > 1, "there is noise"


def test_grey_changes_in_brightness_and_white_balance_only():
    color = means(jitter_colors(one_color(100, 100, 100), 1.0, random()))[:, 0]
    ratio = color / color.mean(1, keepdim=True)
    assert ratio.max() < 1.4 and ratio.min() > 0.7
    assert color.mean(1).min() < 60 and color.mean(1).max() > 120, "darker than half, and brighter"


def test_a_colour_becomes_grey_in_some_windows_and_more_colourful_in_others():
    color = means(jitter_colors(one_color(160, 100, 100), 1.0, random()))[:, 0]
    redness = color[:, 0] / color.mean(1)
    assert redness.min() < 1.1 and redness.max() > 1.5
    assert 0 < HUE < 1.0, "red does not become green"
    assert (color.argmax(1) != 1).float().mean() > 0.9


def test_half_the_strength_changes_less():
    """In the logarithm of the brightness, half as much."""
    images = one_color(100, 100, 100)
    half, full = (means(jitter_colors(images, s, random()))[:, 0].mean(1).div(100).log().std() for s in (0.5, 1.0))
    assert 0.4 * full < half < 0.6 * full
    noise = (jitter_colors(images, 0.5, random()) - means(jitter_colors(images, 0.5, random()))[:, :, None, None]).std()
    assert noise < NOISE / 2


def test_training_with_changed_colours_resumes_in_the_same_bits(replay, tmp_path):
    train(replay, tmp_path / "whole", SMALL, CHANGED)
    train(replay, tmp_path / "parts", SMALL, CHANGED, stop_at=4)
    with pytest.raises(CheckpointError, match=r"color_jitter was 1\.0, now 0\.0"):
        train(replay, tmp_path / "parts", SMALL, CONFIG, resume=True)
    report = train(replay, tmp_path / "parts", SMALL, CHANGED, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert report["train"]["color_jitter"] == 1.0


def test_distillation_with_changed_colours_measures_on_images_as_they_are(tmp_path, small_contract):
    data = write_replay(tmp_path / "data.zarr", small_contract, LENGTHS)
    train(data, tmp_path / "teacher", SMALL, dataclasses.replace(CONFIG, steps=1))
    settings = dataclasses.replace(DISTILL, steps=2)
    plain = distill(tmp_path / "teacher", data, "onedp_s", tmp_path / "plain", settings)
    changed = distill(tmp_path / "teacher", data, "onedp_s", tmp_path / "changed", dataclasses.replace(settings, color_jitter=1.0))
    assert plain["untrained"] == changed["untrained"]
    assert not equal(weights(tmp_path / "plain"), weights(tmp_path / "changed"))
    assert changed["distill"]["color_jitter"] == 1.0


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_strength_out_of_range_is_named(value):
    with pytest.raises(ValueError, match=rf"color_jitter is {value}, expected 0"):
        TrainingSettings(steps=1, color_jitter=value)
