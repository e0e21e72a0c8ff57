import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from replays import LENGTHS, write_replay
from safetensors.torch import load_file

from onedp_ros.contract import ContractError, Observation
from onedp_ros.learning.distill import distill
from onedp_ros.learning.state import STATE
from onedp_ros.learning.train import read_section, train
from onedp_ros.policy.checkpoint import WEIGHTS, CheckpointError, IncompatibleCheckpointError, load_policy
from onedp_ros.policy.methods import METHODS, describe_methods, find_method
from onedp_ros.policy.methods.base import Distillation, DistilledMethod, TrainedMethod, distilled_methods
from onedp_ros.policy.methods.one_step_generator import CosineOneDPSettings
from onedp_ros.policy.methods.settings import PretrainingSettings, TrainingSettings
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.predictor import load_predictor
from onedp_ros.registry import UnknownNameError
from onedp_ros.resources import resource
from onedp_ros.settings import from_mapping

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)
CONFIG = PretrainingSettings(
    steps=6, batch_size=4, accumulation=2, noise_samples=2, warmup_steps=2, save_every=3, mixed_precision="no", max_grad_norm=1.0
)
DISTILL = CosineOneDPSettings(
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
    assert load_policy(teacher).method.name == "dp_ddpm100"


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
    """As ``torchrun`` starts them. Each takes half of the batch; the weights stay the same in both."""
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"network": SMALL.to_dict(), "train": {"steps": 3, "batch_size": 4, "warmup_steps": 1, "save_every": 3}})
    )
    program = (
        "import sys; from onedp_ros.learning import train as t; from onedp_ros.settings import from_mapping; "
        "t.train(sys.argv[1], sys.argv[2], t.NetworkConfig.from_dict(t.read_section(sys.argv[3], 'network')), "
        "from_mapping(t.PretrainingSettings, 'train', t.read_section(sys.argv[3], 'train')))"
    )
    (tmp_path / "run.py").write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "run.py")]
    arguments = [str(replay), str(tmp_path / "two"), str(tmp_path / "c.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
        patch.setattr("onedp_ros.learning.loop.save_state", die)
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


def test_the_normaliser_of_a_checkpoint_is_widened_to_the_new_data(replay, teacher, tmp_path, small_contract, caplog):
    caplog.set_level("INFO")
    begun = load_policy(teacher).normalizer
    action = np.random.default_rng(0).random((40, small_contract.action_dim), dtype=np.float32)
    action[:, 1] += 5.0
    other_task = dataclasses.replace(small_contract, task="another")
    wide = write_replay(tmp_path / "wide.zarr", other_task, [40], **{"data/action": action})
    train(wide, tmp_path / "tuned", SMALL, dataclasses.replace(CONFIG, steps=2, init=str(teacher)))
    assert load_policy(tmp_path / "tuned").contract == other_task and "the normaliser is widened" in caplog.text
    found = load_policy(tmp_path / "tuned").normalizer
    low, high = found.action_offset - found.action_scale, found.action_offset + found.action_scale
    assert high[1] == pytest.approx(action[:, 1].max(), abs=1e-4)
    assert low[1] == pytest.approx((begun.action_offset - begun.action_scale)[1], abs=1e-4)
    for others in ([0], [3, 4, 5, 6, 7, 8, 9]):  # ranges that hold the new data's already
        assert np.array_equal(found.action_scale[others], begun.action_scale[others])


def test_a_task_of_another_contract_begins_with_the_image_encoders_alone(replay, teacher, tmp_path, small_contract):
    cameras = {"front": small_contract.cameras["front"], "side": small_contract.cameras["wrist"]}
    other = dataclasses.replace(small_contract, cameras=cameras, control_hz=10.0)
    data = write_replay(tmp_path / "other.zarr", other, [20])
    config = dataclasses.replace(CONFIG, steps=2, learning_rate=1e-12, encoders=str(teacher))
    assert train(data, tmp_path / "t", SMALL, config)["gradient_steps"] == 2
    before, after = weights(teacher), weights(tmp_path / "t")
    same = {n: torch.allclose(t, before[n], rtol=0, atol=1e-6) for n, t in after.items() if n in before and t.ndim > 1}
    assert all(same[n] for n in same if n.startswith("encoders.front")) and any(n.startswith("encoders.front") for n in same)
    assert not any(same[n] for n in same if n.startswith("unet"))
    foreign = write_replay(tmp_path / "foreign.zarr", dataclasses.replace(other, cameras={"side": cameras["side"]}), [20])
    with pytest.raises(IncompatibleCheckpointError, match=r"sees \['front', 'wrist'\], this task \['side'\]"):
        train(foreign, tmp_path / "t2", SMALL, config)
    with pytest.raises(IncompatibleCheckpointError, match="features is 64, expected 32"):
        train(data, tmp_path / "t3", dataclasses.replace(SMALL, features=32), config)
    with pytest.raises(ValueError, match="both init"):
        dataclasses.replace(config, init=str(teacher))


@pytest.mark.parametrize("method", ["onedp_s", "onedp_d"])
def test_distillation_resumes_to_the_same_bits_and_reports_its_cost(replay, teacher, tmp_path, method):
    whole = distill(teacher, replay, method, tmp_path / "whole", DISTILL)
    distill(teacher, replay, method, tmp_path / "parts", DISTILL, stop_at=4)
    distill(teacher, replay, method, tmp_path / "parts", DISTILL, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert (whole["gradient_steps"], whole["pretraining_steps"], whole["fraction_of_pretraining"]) == (6, 6, 1.0)
    assert whole["teacher_error"] > 0 and whole["trained"]["error"] > 0
    policy = load_policy(tmp_path / "whole")
    assert (policy.method.name, policy.nfe) == (method, 1)


@pytest.mark.parametrize("method", ["onedp_s_edm", "onedp_d_edm", "cp1", "cp3"])
def test_a_policy_on_edms_process_is_trained_and_distilled_and_every_engine_runs_it(
    replay, teacher, tmp_path, small_contract, method
):
    report = train(replay, tmp_path / "teacher_edm", SMALL, CONFIG, method="dp_edm10")
    assert np.isfinite(report["loss"])
    section = find_method(method).settings
    settings = section(**{f.name: getattr(DISTILL, f.name) for f in dataclasses.fields(section) if hasattr(DISTILL, f.name)})
    distill(tmp_path / "teacher_edm", replay, method, tmp_path / "generator", settings)
    images = {n: np.full((c.height, c.width, 3), 90, np.uint8) for n, c in small_contract.cameras.items()}
    observation = Observation(0, images, dict.fromkeys(images, 0), np.zeros(small_contract.state_dim, np.float32))
    window = [observation] * small_contract.n_obs_steps
    for checkpoint, nfe in ((tmp_path / "teacher_edm", 19), (tmp_path / "generator", find_method(method).nfe)):
        chunks = []
        for engine in ("torch", "openvino"):
            predictor = load_predictor(checkpoint, engine=engine, threads=1)
            assert predictor.nfe == nfe
            chunks.append(predictor.predict([window]))
        np.testing.assert_allclose(chunks[0], chunks[1], atol=1e-3)
    with pytest.raises(IncompatibleCheckpointError, match="dp_edm10 policy, expected a teacher checkpoint"):
        distill(tmp_path / "teacher_edm", replay, "onedp_s", tmp_path / "wrong", DISTILL)
    with pytest.raises(IncompatibleCheckpointError, match="teacher_edm"):
        distill(teacher, replay, method, tmp_path / "wrong", settings)


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
    from_mapping(PretrainingSettings, "train", read_section(path, "train"))
    for method in distilled_methods():
        config = from_mapping(METHODS.get(method).settings, method, read_section(path, method))
        assert config.betas == ((0.95, 0.999) if method == "cp" else (0.0, 0.999))
        if isinstance(config, CosineOneDPSettings):
            assert (config.first_timestep, config.last_timestep) == (2, 95)
    network = NetworkConfig.from_dict(read_section(path, "network"))
    assert (name == "paper") == (network == NetworkConfig())


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        (PretrainingSettings, {"steps": 0}, "steps is 0"),
        (PretrainingSettings, {"steps": 1, "learning_rate": -1}, "learning_rate is -1"),
        (PretrainingSettings, {"steps": 1, "mixed_precision": "fp8"}, "fp8"),
        (CosineOneDPSettings, {"steps": 1, "first_timestep": 96}, "96"),
    ],
)
def test_a_bad_setting_is_named(section, values, named):
    with pytest.raises(ValueError, match=named):
        section(**values)


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="lerning_rate"):
        from_mapping(PretrainingSettings, "train", {"steps": 1, "lerning_rate": 1e-3})


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": {}}))
    with pytest.raises(ValueError, match="network"):
        read_section(tmp_path / "c.yaml", "network")


class Straight(TrainedMethod):
    """A new way to train and sample: rectified flow (Liu et al. 2022), in ``number`` Euler steps."""

    numbers = range(1, 101)

    @property
    def weights(self):
        return "straight"

    @property
    def nfe(self):
        return self.number

    def compute_loss(self, diffusion, denoise, clean, condition, generator):
        noise = torch.randn(clean.shape, generator=generator)
        step = torch.randint(100, (len(clean),), generator=generator)
        time = (step / 100).view(-1, 1, 1)
        velocity = denoise((1 - time) * clean + time * noise, step, condition)
        return (velocity - (noise - clean)).pow(2).mean()

    def sample(self, diffusion, denoise, start, condition, generator):
        for i in reversed(range(self.number)):
            step = torch.full((len(start),), (i + 1) * 100 // self.number - 1)
            start = start - denoise(start, step, condition) / self.number
        return start


class Copied(DistilledMethod):
    """A new way to distil: the generator repeats the teacher's two-step samples, from the same noise."""

    teacher = "straight2"

    def sample(self, diffusion, denoise, start, condition, generator):
        return start - denoise(start, torch.full((len(start),), 99), condition)

    def begin_distillation(self, diffusion, teacher, generator, encoders, settings, average):
        return Regression(self, diffusion, teacher, generator, [*generator.parameters(), *encoders])


class Regression(Distillation):
    def __init__(self, method, diffusion, teacher, generator, parameters):
        self.method, self.diffusion, self.teacher, self.generator = method, diffusion, teacher, generator
        self.networks, self.optimizers = {}, {"adam": torch.optim.Adam(parameters, 1e-3)}

    def update(self, step, start, clean, condition, teacher_condition, random=None):
        with torch.no_grad():
            expected = find_method("straight2").sample(self.diffusion, self.teacher, start, teacher_condition, random)
        loss = (self.method.sample(self.diffusion, self.generator, start, condition, random) - expected).pow(2).mean()
        self.optimizers["adam"].zero_grad()
        loss.backward()
        self.optimizers["adam"].step()
        return {"loss": loss.detach()}


@pytest.fixture
def new_methods():
    METHODS.add("straight", Straight)
    METHODS.add("copied", Copied)
    yield
    METHODS.remove("straight")
    METHODS.remove("copied")


def test_a_new_method_is_one_class_that_is_trained_distilled_resumed_and_predicts(replay, tmp_path, small_contract, new_methods):
    assert "straight" in describe_methods() and "copied" in distilled_methods()
    settings = dataclasses.replace(CONFIG, steps=3, save_every=1)
    report = train(replay, tmp_path / "teacher", SMALL, settings, method="straight4")
    assert report["loss"] > 0
    config = TrainingSettings(steps=3, batch_size=4, save_every=1)
    whole = distill(tmp_path / "teacher", replay, "copied", tmp_path / "whole", config)
    assert set(whole["trained"]) == {"error", "from_teacher", "position_mm"}
    distill(tmp_path / "teacher", replay, "copied", tmp_path / "parts", config, stop_at=2)
    distill(tmp_path / "teacher", replay, "copied", tmp_path / "parts", config, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))

    for path, method, nfe in (("teacher", "straight2", 2), ("teacher", None, 4), ("whole", None, 1)):
        predictor = load_predictor(tmp_path / path, method, engine="torch", threads=1, contract=small_contract)
        assert predictor.nfe == nfe
        images = {n: np.zeros((c.height, c.width, 3), np.uint8) for n, c in small_contract.cameras.items()}
        observation = Observation(0, images, dict.fromkeys(images, 0), np.zeros(small_contract.state_dim, np.float32))
        chunk = predictor.predict([[observation] * small_contract.n_obs_steps])
        assert chunk.shape == (1, small_contract.horizon, small_contract.action_dim) and np.isfinite(chunk).all()
    with pytest.raises(IncompatibleCheckpointError, match="weights of straight4, which cannot be used as dp_ddim10"):
        load_policy(tmp_path / "teacher", "dp_ddim10")
    with pytest.raises(IncompatibleCheckpointError, match="straight4 policy"):
        distill(tmp_path / "teacher", replay, "onedp_d", tmp_path / "d", DISTILL)


def test_a_method_is_used_as_it_can_be(replay, teacher, tmp_path):
    with pytest.raises(ValueError, match="onedp_s is distilled from a teacher"):
        train(replay, tmp_path / "t", SMALL, CONFIG, method="onedp_s")
    with pytest.raises(ValueError, match="dp_ddim10 is not distilled, expected one of cp, onedp_d, onedp_d_edm, onedp_s"):
        distill(teacher, replay, "dp_ddim10", tmp_path / "d", DISTILL)
    with pytest.raises(UnknownNameError, match="'onedp_x'"):
        distill(teacher, replay, "onedp_x", tmp_path / "d", DISTILL)


def test_a_contract_without_cameras_is_trained_and_distilled(tmp_path, small_contract):
    blind = dataclasses.replace(small_contract, cameras={}, crop=())
    data = write_replay(tmp_path / "blind.zarr", blind, [12, 20])
    train(data, tmp_path / "teacher", SMALL, dataclasses.replace(CONFIG, steps=3), contract=blind)
    distill(tmp_path / "teacher", data, "onedp_s", tmp_path / "s", dataclasses.replace(DISTILL, steps=3), contract=blind)
    assert not load_policy(tmp_path / "s").encoders


def test_a_horizon_that_the_network_cannot_halve_is_named(tmp_path, small_contract):
    odd = dataclasses.replace(small_contract, horizon=18)
    data = write_replay(tmp_path / "odd.zarr", odd, [30])
    with pytest.raises(ValueError, match=r"horizon 18 is not a multiple of 4, as the U-Net's 3 levels need: change horizon"):
        train(data, tmp_path / "t", SMALL, CONFIG)
