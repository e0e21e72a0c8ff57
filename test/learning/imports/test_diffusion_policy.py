"""Checkpoints of Diffusion Policy are imported: same predictions, and clear errors for what cannot be imported."""

import dataclasses
import json
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from originals import CONFIG, Original, config_with, random_weights, write
from replays import write_replay
from torch import Tensor

from onedp_ros.cli import main
from onedp_ros.contract import Camera, Contract, Feature
from onedp_ros.learning.distill import distill
from onedp_ros.learning.imports import IMPORTS
from onedp_ros.learning.imports.base import ImportedPolicy, PolicyImportError, import_policy
from onedp_ros.learning.imports.diffusion_policy import read_policy
from onedp_ros.policy.checkpoint import load_policy, read_config
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.policies import Batch

NAMES = {"agentview_image": "front", "hand_image": "wrist", "eef_pos": "position", "gripper_qpos": "finger"}
CONTRACT = Contract(
    task="square",
    base_frame="base",
    control_hz=20.0,
    n_obs_steps=2,
    horizon=8,
    n_action_steps=4,
    slop=0.03,
    cameras={"wrist": Camera("wrist/image", 42, 46), "front": Camera("front/image", 40, 48)},
    crop=(36, 40),
    state=(  # neither cameras nor features are in the checkpoint's order
        Feature("eef_quat", "quaternion", "current_pose"),
        Feature("position", "position", "current_pose"),
        Feature("finger", "opening", "joint_states", joints=("left", "right"), range=(0.0, 0.04)),
    ),
    action=(
        Feature("position", "position", "target_pose"),
        Feature("rotation", "rotation_6d", "target_pose"),
        Feature("opening", "opening", "gripper_target", range=(1.0, -1.0)),
    ),
)
DDIM = {
    "noise_scheduler": {
        **{k: v for k, v in CONFIG["policy"]["noise_scheduler"].items() if k != "variance_type"},
        "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
        "set_alpha_to_one": True,
        "steps_offset": 0,
    },
    "num_inference_steps": 8,
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    states = {
        "model": random_weights(CONFIG, seed=1),
        "ema_model": weights,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
    }
    return write(tmp_path_factory.mktemp("original") / "latest.ckpt", CONFIG, states)


@pytest.fixture(scope="module")
def observations() -> dict[str, Tensor]:
    """Two windows, by the checkpoint's keys."""
    random = torch.Generator().manual_seed(5)
    found = {}
    for key, entry in CONFIG["policy"]["shape_meta"]["obs"].items():
        if entry.get("type") == "rgb":
            size = (2, 2, *entry["shape"][1:], 3)
            coarse = torch.rand((4, 3, 3, 3), generator=random)  # smooth: noise alone would put all keypoints in the middle
            smooth = torch.nn.functional.interpolate(coarse, size[2:4], mode="bilinear").permute(0, 2, 3, 1)
            found[key] = (smooth * 255).to(torch.uint8).view(size)
        else:
            found[key] = torch.randn((2, 2, *entry["shape"]), generator=random)
    return found


def as_batch(observations: dict[str, Tensor]) -> Batch:
    state = torch.cat([observations[key] for key in ("eef_quat", "eef_pos", "gripper_qpos")], -1)
    return Batch({"wrist": observations["hand_image"], "front": observations["agentview_image"]}, state)


def test_networks_compute_what_the_original_does(file: Path, weights: dict[str, Tensor], observations: dict[str, Tensor]) -> None:
    policy, original = read_policy(file, CONTRACT, NAMES).policy, Original(CONFIG, weights)
    sample, step = torch.randn(2, 8, 10), torch.tensor([3, 90])
    with torch.no_grad():
        ours = policy.unet(sample, step, policy.encode(as_batch(observations)))
        theirs = original.predict_noise(sample, step, original.condition(observations))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        for key, value in observations.items():  # each observation matters, or a wrong order would not be seen
            changed = {**observations, key: value.flip(0)}
            assert (original.predict_noise(sample, step, original.condition(changed)) - theirs).abs().max() > 1e-3, key


@pytest.mark.parametrize(("changes", "method"), [({}, "dp_ddpm100"), (DDIM, "dp_ddim8")])
def test_predictions_are_those_of_the_original(
    tmp_path: Path, weights: dict[str, Tensor], observations: dict[str, Tensor], changes: dict[str, Any], method: str
) -> None:
    config = config_with(**changes)
    imported = read_policy(write(tmp_path / "a.ckpt", config, {"ema_model": weights}), CONTRACT, NAMES)
    assert imported.policy.method.name == method and imported.notes == ()
    expected = Original(config, weights).predict(observations, torch.Generator().manual_seed(7))
    found = imported.policy.predict_action(as_batch(observations), torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    middle = (imported.policy.normalize_action(expected).abs() < 0.99).float().mean()
    assert middle > 0.1, "samples at their bounds would hide differences"


def test_the_command_writes_a_checkpoint_that_names_its_origin(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, out = tmp_path / "square.yaml", tmp_path / "teacher"
    task.write_text(yaml.safe_dump(json.loads(json.dumps(CONTRACT.to_dict())), sort_keys=False))
    maps = [part for key, name in NAMES.items() for part in ("--map", f"{key}={name}")]
    assert main(["import", str(file), "--from", "diffusion_policy", "--task", str(task), "--out", str(out), *maps]) == 0
    assert f"written {out}: dp_ddpm100" in capsys.readouterr().out
    training = read_config(out)["training"]
    origin = training["imported"]
    assert training["gradient_steps"] == origin["global_step"] == 1234
    assert (origin["program"], origin["file"], origin["weights"], origin["epoch"]) == (
        "diffusion_policy",
        "latest.ckpt",
        "ema_model",
        56,
    )
    assert len(origin["sha256"]) == 64 and origin["observations"] == {**NAMES, "eef_quat": "eef_quat"}
    teacher = load_policy(out, "dp_ddim10", contract=CONTRACT)
    expected = read_policy(file, CONTRACT, NAMES).policy
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in teacher.state_dict().items())
    assert not {"dill", "omegaconf", "hydra"} & sys.modules.keys()


def test_a_run_without_ema_is_imported_with_its_weights(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    imported = read_policy(write(tmp_path / "a.ckpt", CONFIG, {"model": weights}), CONTRACT, NAMES)
    assert imported.origin["weights"] == "model"


def test_what_differs_from_the_original_is_told(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    config = config_with(
        eval_fixed_crop=False, num_inference_steps=16, crop_shape=[36, 39], shape_meta__obs__hand_image__shape=[3, 42, 46]
    )
    contract = dataclasses.replace(CONTRACT, crop=(36, 39))
    notes = read_policy(write(tmp_path / "a.ckpt", config, {"model": weights}), contract, NAMES).notes
    assert "at random" in notes[0] and "pixel farther right" in notes[1] and "dp_ddim16" in notes[-1]


@pytest.mark.parametrize(
    ("key", "least", "told"),
    [
        ("eef_quat", [-0.3, -1.0, -1.0, -1.0], "the quaternions of eef_quat have x from -0.30 in its training data"),
        ("eef_quat", [0.0, -1.0, -1.0, -1.0], None),
        ("gripper_qpos", [0.0, -0.04], "gripper_qpos spans -0.04 to 0 in its training data, finger in the task file 0 to 0.04"),
        ("action", [*[0.0] * 9, -1.0], None),
        ("action", [*[0.0] * 9, -2.0], "action spans -2 to 0 in its training data, opening in the task file -1 to 1"),
    ],
)
def test_training_data_in_other_units_or_signs_are_told(
    tmp_path: Path, weights: dict[str, Tensor], key: str, least: list[float], told: str | None
) -> None:
    state = {**weights, f"normalizer.params_dict.{key}.input_stats.min": torch.tensor(least)}
    notes = read_policy(write(tmp_path / "a.ckpt", CONFIG, {"model": state}), CONTRACT, NAMES).notes
    assert notes == () if told is None else len(notes) == 1 and told in notes[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_target_": "a.DiffusionTransformerHybridImagePolicy"}, "policy is 'DiffusionTransformerHybridImagePolicy', only"),
        ({"_target_": "a.DiffusionUnetLowdimPolicy"}, "policy is 'DiffusionUnetLowdimPolicy', only"),
        ({"obs_as_global_cond": False}, "obs_as_global_cond is False, expected True"),
        ({"n_groups": 4}, "n_groups is 4, expected 8"),
        ({"cond_predict_scale": False}, "cond_predict_scale is False, expected True"),
        ({"obs_encoder_group_norm": False}, "obs_encoder_group_norm is False, expected True"),
        ({"noise_scheduler__prediction_type": "sample"}, "noise_scheduler.prediction_type is 'sample', expected 'epsilon'"),
        ({"noise_scheduler__beta_schedule": "linear"}, "noise_scheduler.beta_schedule is 'linear', expected 'squaredcos_cap_v2'"),
        ({"noise_scheduler__num_train_timesteps": 50}, "noise_scheduler.num_train_timesteps is 50, expected 100"),
        ({"noise_scheduler__clip_sample": False}, "noise_scheduler.clip_sample is False, expected True"),
        ({"noise_scheduler__variance_type": "fixed_large"}, "noise_scheduler.variance_type is 'fixed_large'"),
        ({"noise_scheduler__eta": 1.0}, "noise_scheduler.eta is 1.0: unknown"),
        ({"noise_scheduler___target_": "a.PNDMScheduler"}, "noise_scheduler is 'PNDMScheduler', expected DDPMScheduler or"),
        ({"num_inference_steps": 200}, "num_inference_steps is 200, expected 1 to 100"),
        ({"down_dims": [8, "16"]}, "expected whole numbers"),
        ({"down_dims": [10, 20]}, "unet_channels is [10, 20], expected positive multiples of 8"),
        ({"eta": 0.5}, "eta is 0.5: unknown"),
        ({"shape_meta__obs__eef_pos": {"shape": [3], "type": "depth"}}, "eef_pos is of the type 'depth'"),
        ({"shape_meta__obs__hand_image__shape": [1, 42, 46]}, "hand_image (rgb) has the shape [1, 42, 46]"),
    ],
)
def test_a_setting_that_cannot_be_imported_is_named(
    tmp_path: Path, weights: dict[str, Tensor], changes: dict[str, Any], told: str
) -> None:
    file = write(tmp_path / "a.ckpt", config_with(**changes), {"model": weights})
    with pytest.raises(PolicyImportError) as error:
        read_policy(file, CONTRACT, NAMES)
    assert told in str(error.value) and str(error.value).startswith(str(file))


def test_actions_that_were_shifted_for_latency_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(PolicyImportError, match="n_latency_steps is 2, expected 0"):
        read_policy(write(tmp_path / "a.ckpt", {**CONFIG, "n_latency_steps": 2}, {"model": weights}), CONTRACT, NAMES)


@pytest.mark.parametrize(
    ("changes", "names", "told"),
    [
        ({"horizon": 16}, NAMES, ["horizon is 8 in the checkpoint and 16 in the task file"]),
        ({"n_obs_steps": 1}, NAMES, ["n_obs_steps is 2 in the checkpoint and 1 in the task file"]),
        ({"crop": (32, 40)}, NAMES, ["crop_shape is [36, 40] in the checkpoint (agentview_image) and [32, 40] in the task file"]),
        ({"action": CONTRACT.action[:2]}, NAMES, ["action's shape is [10] in the checkpoint and [9] in the task file"]),
        (
            {"state": CONTRACT.state[:2]},
            NAMES,
            ["gripper_qpos has no state feature in the task file, which has eef_quat, position"],
        ),
        (
            {"cameras": {**CONTRACT.cameras, "front": Camera("front/image", 60, 80)}, "horizon": 16},
            NAMES,
            ["agentview_image has the shape [3, 40, 48] in the checkpoint and [3, 60, 80] in the task file", "horizon is 8"],
        ),
        (
            {},
            {},
            [
                "agentview_image has no camera",
                "--map agentview_image=NAME",
                "eef_pos has no state feature",
            ],
        ),
        ({}, {**NAMES, "hand_image": "front"}, ["camera front is fed by 2", "camera wrist is fed by 0"]),
        ({}, {**NAMES, "side_image": "front"}, ["--map names 'side_image', but the checkpoint observes eef_pos, agentview_image"]),
    ],
)
def test_every_difference_from_the_task_is_named(
    file: Path, changes: dict[str, Any], names: dict[str, str], told: list[str]
) -> None:
    with pytest.raises(PolicyImportError) as error:
        read_policy(file, dataclasses.replace(CONTRACT, **changes), names)
    assert [text for text in told if text not in str(error.value)] == []


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("obs_encoder.obs_nets.hand_image.backbone.nets.0.weight", None, "image encoder lacks|do not fit"),
        ("obs_encoder.obs_nets.agentview_image.backbone.nets.1.running_mean", torch.zeros(16), "running_mean.*expected none"),
        ("obs_encoder.obs_nets.agentview_image.pool.temperature", torch.full((1,), 2.0), r"temperature \[2.0\], expected 1"),
        ("normalizer.params_dict.hand_image.scale", torch.ones(1), r"scale of the images of hand_image is \[1.0\], expected 2"),
        ("normalizer.params_dict.eef_pos.scale", torch.zeros(3), r"normaliser of eef_pos has the scale \[0.0, 0.0, 0.0\]"),
        ("normalizer.params_dict.eef_pos.scale", torch.full((3,), 1e7), "normalizer.state_scale holds"),
        ("model.final_conv.1.weight", torch.full((10, 8, 1), float("nan")), "final_conv.1.weight' hold NaN"),
        ("model.final_conv.1.weight", torch.zeros(10, 9, 1), r"shape \(10, 9, 1\), expected \(10, 8, 1\)"),
        ("model.local_cond_encoder.0.weight", torch.zeros(3), "local_cond_encoder.*expected none"),
    ],
)
def test_weights_of_another_network_are_named(
    tmp_path: Path, weights: dict[str, Tensor], name: str, tensor: Tensor | None, told: str
) -> None:
    other = {key: value for key, value in {**weights, name: tensor}.items() if value is not None}
    with pytest.raises(PolicyImportError, match=told):
        read_policy(write(tmp_path / "a.ckpt", CONFIG, {"model": other}), CONTRACT, NAMES)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_file_is_refused_and_executes_nothing(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    trace = tmp_path / "executed"
    for i, place in enumerate(
        ({"config": {**CONFIG, "x": Evil(trace)}}, {"weights": {**weights, "x": Evil(trace)}}, {"x": Evil(trace)})
    ):
        config, state = place.pop("config", CONFIG), place.pop("weights", weights)
        file = write(tmp_path / f"{i}.ckpt", config, {"model": state}, **place)
        with pytest.raises(PolicyImportError, match=r"calls (posix|nt)\.system when it is loaded"):
            read_policy(file, CONTRACT, NAMES)
    file = write(tmp_path / "epoch.ckpt", CONFIG, {"model": weights}, epoch=pickle.dumps(Evil(trace)))
    assert "epoch" not in read_policy(file, CONTRACT, NAMES).origin
    assert not trace.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.ckpt")
    with pytest.raises(PolicyImportError, match=r"neither state_dicts\.ema_model nor state_dicts\.model"):
        read_policy(tmp_path / "a.ckpt", CONTRACT, {})
    assert IMPORTS.names() == ["diffusion_policy"]


def test_an_imported_policy_is_distilled(file: Path, tmp_path: Path) -> None:
    import_policy(file, "diffusion_policy", CONTRACT, NAMES, tmp_path / "teacher")
    data = write_replay(tmp_path / "data.zarr", CONTRACT, [12, 12])
    settings = find_method("onedp_s").settings(steps=1, batch_size=2)
    result = distill(tmp_path / "teacher", data, "onedp_s", tmp_path / "generator", settings, contract=CONTRACT)
    assert result["pretraining_steps"] == 1234
    assert load_policy(tmp_path / "generator", "onedp_s", contract=CONTRACT).nfe == 1


def test_another_program_is_one_more_entry(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(path: Path, contract: Contract, names: Mapping[str, str]) -> ImportedPolicy:
        return dataclasses.replace(read_policy(path, contract, names), notes=("hello",), gradient_steps=None)

    task = tmp_path / "square.yaml"
    task.write_text(yaml.safe_dump(json.loads(json.dumps(CONTRACT.to_dict())), sort_keys=False))
    maps = [part for key, name in NAMES.items() for part in ("--map", f"{key}={name}")]
    IMPORTS.add("other", read)
    try:
        assert main(["import", str(file), "--from", "other", "--task", str(task), "--out", str(tmp_path / "out"), *maps]) == 0
    finally:
        IMPORTS.remove("other")
    assert "note: hello" in capsys.readouterr().out
    assert read_config(tmp_path / "out")["training"]["imported"]["program"] == "other"


@pytest.mark.parametrize(
    ("maps", "told"), [(["front"], "'front' is not of the form KEY=NAME"), (["a=b", "a=c"], "names a key twice")]
)
def test_wrong_maps_are_usage_errors(maps: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part for text in maps for part in ("--map", text)]
    with pytest.raises(SystemExit) as error:
        main(["import", "a.ckpt", "--from", "diffusion_policy", "--task", "pnp_milk", "--out", "out", *arguments])
    assert error.value.code == 2 and told in capsys.readouterr().err


def test_a_task_that_uses_policies_of_another_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyImportError, match="square uses policies of the task cube; give the task file of cube"):
        import_policy(file, "diffusion_policy", dataclasses.replace(CONTRACT, policy="cube"), NAMES, tmp_path / "out")
