import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from replays import LENGTHS, write_replay
from safetensors.torch import load_file

from onedp_ros.contract import ContractError
from onedp_ros.learning.distill import DistillConfig, distill
from onedp_ros.learning.train import STATE, TrainConfig, make_config, read_section, train
from onedp_ros.policy.checkpoint import WEIGHTS, CheckpointError, IncompatibleCheckpointError, load_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.resources import resource

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)
CONFIG = TrainConfig(
    steps=6, batch_size=4, accumulation=2, noise_samples=2, warmup_steps=2, save_every=3, mixed_precision="no", max_grad_norm=1.0
)
DISTILL = DistillConfig(
    steps=6, batch_size=4, noise_samples=2, warmup_steps=2, warmup_learning_rate=1e-3, generator_learning_rate=1e-3, save_every=3
)


def weights(path):
    return load_file(path / WEIGHTS)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_contract):
    """A teacher and its data, for tests that copy them."""
    folder = tmp_path_factory.mktemp("trained")
    train(write_replay(folder / "data.zarr", small_contract, LENGTHS), folder / "teacher", SMALL, CONFIG)
    return folder / "teacher"


@pytest.fixture
def teacher(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "teacher")


def test_a_resumed_run_ends_in_the_same_bits(replay, tmp_path):
    whole = train(replay, tmp_path / "whole", SMALL, CONFIG)
    part = train(replay, tmp_path / "parts", SMALL, CONFIG, stop_at=4)
    assert part["gradient_steps"] == 4
    resumed = train(replay, tmp_path / "parts", SMALL, CONFIG, resume=True)
    assert whole["gradient_steps"] == resumed["gradient_steps"] == 6
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert equal(load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE))


def test_training_writes_the_averaged_weights_and_a_report(replay, teacher):
    state, averaged = load_file(teacher / STATE), weights(teacher)
    name = "unet.final.1.weight"
    assert not torch.equal(averaged[name], state[f"model.{name}"])
    report = json.loads((teacher / "train.json").read_text())
    assert (report["gradient_steps"], report["windows"], report["episodes"], report["processes"]) == (6, 18, 2, 1)
    assert report["wall_clock_s"] > 0
    assert list((teacher / "tensorboard").rglob("events*"))
    assert load_policy(teacher).method == "dp_ddpm100"


def test_resuming_with_other_settings_names_the_setting(replay, teacher):
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(replay, teacher, SMALL, dataclasses.replace(CONFIG, learning_rate=1e-3), resume=True)


def test_resuming_with_another_network_or_data_names_it(replay, teacher, tmp_path, small_contract):
    with pytest.raises(CheckpointError, match="network was"):
        train(replay, teacher, dataclasses.replace(SMALL, unet_channels=(8, 16, 16)), CONFIG, resume=True)
    other = write_replay(tmp_path / "other.zarr", small_contract, [13, 20])
    with pytest.raises(CheckpointError, match="data was"):
        train(other, teacher, SMALL, CONFIG, resume=True)


def test_two_processes_share_the_batch(replay, tmp_path, small_contract):
    """As ``accelerate launch`` starts them. Each takes half of the batch; the weights stay the same in both."""
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"network": SMALL.to_dict(), "train": {"steps": 3, "batch_size": 4, "warmup_steps": 1, "save_every": 3}})
    )
    program = (
        "import sys; from pathlib import Path; from onedp_ros.learning import train as t; "
        "t.train(sys.argv[1], sys.argv[2], t.NetworkConfig.from_dict(t.read_section(sys.argv[3], 'network')), "
        "t.make_config(t.TrainConfig, t.read_section(sys.argv[3], 'train')))"
    )
    (tmp_path / "run.py").write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "run.py")]
    arguments = [str(replay), str(tmp_path / "two"), str(tmp_path / "c.yaml")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, *arguments], check=True, env=environment, capture_output=True, timeout=300)
    report = json.loads((tmp_path / "two" / "train.json").read_text())
    assert (report["processes"], report["gradient_steps"]) == (2, 3)
    assert load_policy(tmp_path / "two").contract == small_contract


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:1000],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
        lambda whole: whole.replace(b'\\"ema_step\\": ', b'\\"ema_step\\":9', 1),
    ],
    ids=["cut", "tensor", "header"],
)
def test_a_damaged_state_is_named(replay, teacher, damage):
    whole = (teacher / STATE).read_bytes()
    assert damage(whole) != whole
    (teacher / STATE).write_bytes(damage(whole))
    with pytest.raises(CheckpointError, match=STATE):
        train(replay, teacher, SMALL, CONFIG, resume=True)


def test_a_run_that_died_before_its_state_was_written_ends_in_the_same_bits(replay, teacher, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    out = tmp_path / "died"
    train(replay, out, SMALL, CONFIG, stop_at=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("onedp_ros.learning.train.save_state", die)
        train(replay, out, SMALL, CONFIG, resume=True)
    train(replay, out, SMALL, CONFIG, resume=True)
    assert equal(weights(out), weights(teacher))


def test_training_goes_on_from_a_checkpoint_and_counts_its_steps(replay, teacher, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2, learning_rate=1e-12, init=str(teacher))
    report = train(replay, tmp_path / "tuned", SMALL, config)
    assert report["gradient_steps"] == 8
    before, after = weights(teacher), weights(tmp_path / "tuned")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=1e-6)
    assert load_policy(tmp_path / "tuned").normalizer.to_dict() == load_policy(teacher).normalizer.to_dict()
    with pytest.raises(IncompatibleCheckpointError, match="unet_channels"):
        train(replay, tmp_path / "other", dataclasses.replace(SMALL, unet_channels=(8, 16, 16)), config)


@pytest.mark.parametrize("method", ["onedp_s", "onedp_d"])
def test_distillation_resumes_to_the_same_bits_and_reports_its_cost(replay, teacher, tmp_path, method):
    whole = distill(teacher, replay, method, tmp_path / "whole", DISTILL)
    distill(teacher, replay, method, tmp_path / "parts", DISTILL, stop_at=4)
    distill(teacher, replay, method, tmp_path / "parts", DISTILL, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert (whole["gradient_steps"], whole["pretraining_steps"], whole["share_of_pretraining"]) == (6, 6, 1.0)
    assert whole["teacher_error"] > 0 and whole["trained"]["error"] > 0
    policy = load_policy(tmp_path / "whole")
    assert (policy.method, policy.nfe) == (method, 1)


def test_distillation_trains_encoders_and_generator_and_leaves_the_teacher(replay, teacher, tmp_path):
    before = weights(teacher)
    distill(teacher, replay, "onedp_s", tmp_path / "s", DISTILL)
    after = weights(tmp_path / "s")
    for part in ("encoders.wrist", "encoders.front", "unet"):
        assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith(part))
    assert equal(before, weights(teacher))


def test_data_or_an_initial_checkpoint_of_another_contract_is_refused(replay, teacher, tmp_path, small_contract):
    other = write_replay(tmp_path / "other.zarr", dataclasses.replace(small_contract, control_hz=10.0), [12, 20])
    with pytest.raises(ContractError, match="control_hz"):
        distill(teacher, other, "onedp_s", tmp_path / "s", DISTILL)
    with pytest.raises(ContractError, match="control_hz"):
        train(other, tmp_path / "t", SMALL, dataclasses.replace(CONFIG, init=str(teacher)))


def test_a_generator_cannot_be_distilled(replay, teacher, tmp_path):
    distill(teacher, replay, "onedp_d", tmp_path / "d", dataclasses.replace(DISTILL, steps=1))
    with pytest.raises(IncompatibleCheckpointError, match="onedp_d"):
        distill(tmp_path / "d", replay, "onedp_d", tmp_path / "e", DISTILL)


@pytest.mark.parametrize("name", ["paper", "compact"])
def test_shipped_settings_are_valid(name):
    path = resource("config", "train", f"{name}.yaml")
    make_config(TrainConfig, read_section(path, "train"))
    for method in ("onedp_s", "onedp_d"):
        config = make_config(DistillConfig, read_section(path, method))
        assert (config.betas, config.first_timestep, config.last_timestep) == ((0.0, 0.999), 2, 95)
    network = NetworkConfig.from_dict(read_section(path, "network"))
    assert (name == "paper") == (network == NetworkConfig())


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        (TrainConfig, {"steps": 0}, "steps is 0"),
        (TrainConfig, {"steps": 1, "learning_rate": -1}, "learning_rate is -1"),
        (TrainConfig, {"steps": 1, "mixed_precision": "fp8"}, "fp8"),
        (DistillConfig, {"steps": 1, "first_timestep": 96}, "96"),
    ],
)
def test_a_bad_setting_is_named(section, values, named):
    with pytest.raises(ValueError, match=named):
        section(**values)


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="lerning_rate"):
        make_config(TrainConfig, {"steps": 1, "lerning_rate": 1e-3})


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": {}}))
    with pytest.raises(ValueError, match="network"):
        read_section(tmp_path / "c.yaml", "network")
