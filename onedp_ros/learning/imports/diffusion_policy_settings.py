"""The settings of a checkpoint of real-stanford/diffusion_policy: checked against what this program's networks and samplers do, and
against a task's contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from onedp_ros.config import shown
from onedp_ros.contract import Contract
from onedp_ros.learning.imports.base import PolicyImportError
from onedp_ros.policy.diffusion import STEPS

POLICY = "DiffusionUnetHybridImagePolicy"
_RETRAIN = "train a policy with Diffusion Policy's config train_diffusion_unet_hybrid_workspace"

# Name: (default in Diffusion Policy or diffusers, value that can be imported, what another one means).
_NEEDED: Mapping[str, tuple[Any, Any, str]] = {
    "obs_as_global_cond": (True, True, "observations would be inpainted into the chunk"),
    "n_groups": (8, 8, "the U-Net here normalises in 8 groups"),
    "cond_predict_scale": (True, True, "FiLM layers here predict a scale and a bias"),
    "obs_encoder_group_norm": (False, True, "the image encoders would have BatchNorm, those here have GroupNorm"),
}
_NEEDED_OF_SCHEDULER: Mapping[str, tuple[Any, Any, str]] = {
    "num_train_timesteps": (1000, STEPS, "the process here has 100 steps"),
    "beta_schedule": ("linear", "squaredcos_cap_v2", "another noise schedule"),
    "prediction_type": ("epsilon", "epsilon", "the network would not predict the noise"),
    "clip_sample": (True, True, "samples would not be clipped"),
    "clip_sample_range": (1.0, 1.0, "samples would be clipped to another range"),
    "variance_type": ("fixed_small", "fixed_small", "another variance of DDPM's steps"),
    "set_alpha_to_one": (True, True, "another last step of DDIM"),
    "steps_offset": (0, 0, "other steps of DDIM"),
    "timestep_spacing": ("leading", "leading", "other steps of the sampler"),
    "thresholding": (False, False, "samples would be clipped dynamically"),
    "trained_betas": (None, None, "another noise schedule"),
    "rescale_betas_zero_snr": (False, False, "another noise schedule"),
}
_SAMPLERS = {"DDPMScheduler": "dp_ddpm100", "DDIMScheduler": "dp_ddim"}
_SIZES = ("down_dims", "kernel_size", "diffusion_step_embed_dim")
_READ = frozenset(
    (*_SIZES, "shape_meta", "noise_scheduler", "horizon", "n_obs_steps", "n_action_steps", "num_inference_steps", "crop_shape")
)


@dataclasses.dataclass(frozen=True)
class Observation:
    """An entry of shape_meta's ``obs``: its name, its counterpart's in the contract, its shape, and whether it is an image."""

    key: str
    name: str
    shape: tuple[int, ...]
    camera: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a checkpoint's settings say.

    Attributes:
        observations: in the order in which robomimic's ObservationEncoder concatenates them, that of shape_meta.
        down_dims, kernel_size, step_dim: sizes of the U-Net.
        method: by which the original is sampled, or ``dp_ddpm100`` when it is by another number of DDPM's steps.
        notes: in what the policy behaves differently here.
    """

    observations: tuple[Observation, ...]
    down_dims: tuple[int, ...]
    kernel_size: int
    step_dim: int
    method: str
    notes: tuple[str, ...]


def read_settings(config: Any, contract: Contract, names: Mapping[str, str]) -> Settings:
    """Check a checkpoint's ``cfg`` (plain data).

    Args:
        config: the settings of the whole training run.
        contract: that the policy must fit.
        names: of cameras and state features in the contract, by their names in the checkpoint where these differ.

    Raises:
        PolicyImportError: names every setting that cannot be imported, or every difference from the contract, with the values.
    """
    policy = config.get("policy") if isinstance(config, dict) else None
    if not isinstance(policy, dict):
        raise PolicyImportError("it holds no cfg.policy; give a .ckpt of real-stanford/diffusion_policy")
    kind = str(policy.get("_target_")).rpartition(".")[2]
    if kind != POLICY:
        raise PolicyImportError(f"its policy is {shown(kind)}, only {POLICY} can be imported; {_RETRAIN}")
    scheduler = policy.get("noise_scheduler")
    scheduler = scheduler if isinstance(scheduler, dict) else {}
    sampler = str(scheduler.get("_target_")).rpartition(".")[2]
    problems = _unsupported(policy, _NEEDED, "") + _unsupported(scheduler, _NEEDED_OF_SCHEDULER, "noise_scheduler.")
    problems += [
        f"{n} is {shown(v)}: unknown" for n, v in policy.items() if n not in {*_READ, *_NEEDED, "eval_fixed_crop"} and n[:1] != "_"
    ]
    known = _NEEDED_OF_SCHEDULER.keys() | {"beta_start", "beta_end"}  # these two do not matter to the schedule needed
    problems += [f"noise_scheduler.{n} is {shown(v)}: unknown" for n, v in scheduler.items() if n not in known and n[:1] != "_"]
    if sampler not in _SAMPLERS:
        problems.append(f"noise_scheduler is {shown(sampler)}, expected {' or '.join(_SAMPLERS)}")
    if (latency := config.get("n_latency_steps", 0)) != 0:
        problems.append(f"n_latency_steps is {shown(latency)}, expected 0: its actions would be shifted in time")
    steps = policy.get("num_inference_steps") or STEPS
    if not _are_sizes([steps]) or steps > STEPS:
        problems.append(f"num_inference_steps is {shown(steps)}, expected 1 to {STEPS}")
    down_dims = policy.get("down_dims", [256, 512, 1024])
    kernel_size, step_dim = policy.get("kernel_size", 5), policy.get("diffusion_step_embed_dim", 256)
    if not isinstance(down_dims, list) or not _are_sizes([*down_dims, kernel_size, step_dim]):
        found = shown([down_dims, kernel_size, step_dim])
        problems.append(f"down_dims, kernel_size and diffusion_step_embed_dim are {found}, expected whole numbers")
    if problems:
        raise PolicyImportError(f"it cannot be imported: {'; '.join(problems)}. Remedy: {_RETRAIN} and settings as expected")
    shape_meta = policy.get("shape_meta", config.get("shape_meta"))
    observations = _observations(shape_meta, names)
    _check_contract(policy, shape_meta, observations, contract)
    method = _SAMPLERS[sampler] + (str(steps) if sampler == "DDIMScheduler" else "")
    notes = _notes(policy, observations, contract)
    if method == "dp_ddpm100" and steps != STEPS:
        notes.append(f"the original takes {steps} of DDPM's steps; here they are {STEPS}, or give --method dp_ddim{steps}")
    return Settings(observations, tuple(down_dims), kernel_size, step_dim, method, tuple(notes))


def _unsupported(settings: Mapping[str, Any], needed: Mapping[str, tuple[Any, Any, str]], prefix: str) -> list[str]:
    """Of each setting that has another value than the one needed, its name, both values and what that means."""
    found = []
    for name, (default, value, meaning) in needed.items():
        if (actual := settings.get(name, default)) != value:
            found.append(f"{prefix}{name} is {shown(actual)}, expected {shown(value)}: {meaning}")
    return found


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value > 0 for value in values)


def _observations(shape_meta: Any, names: Mapping[str, str]) -> tuple[Observation, ...]:
    entries = shape_meta.get("obs") if isinstance(shape_meta, dict) else None
    if not isinstance(entries, dict) or not entries or not all(isinstance(entry, dict) for entry in entries.values()):
        raise PolicyImportError(f"its shape_meta.obs is {shown(entries)}, expected names with shapes; fetch the file again")
    if unknown := sorted(set(names) - set(entries)):
        raise PolicyImportError(f"--map names '{unknown[0]}', but the checkpoint observes {', '.join(entries)}; correct the name")
    found = []
    for key, entry in entries.items():
        shape, kind = entry.get("shape"), entry.get("type", "low_dim")
        camera = kind == "rgb"
        if kind not in ("rgb", "low_dim") or not isinstance(shape, list) or not _are_sizes(shape):
            raise PolicyImportError(
                f"its observation {key} is of the type {shown(kind)} and the shape {shown(shape)}, only rgb images "
                f"(3, height, width) and low_dim vectors can be imported; {_RETRAIN} and such observations"
            )
        if len(shape) != (3 if camera else 1) or (camera and shape[0] != 3):
            raise PolicyImportError(
                f"its observation {key} ({kind}) has the shape {shape}, expected {'(3, h, w)' if camera else '(n,)'}"
            )
        found.append(Observation(key, names.get(key, key), tuple(shape), camera))
    return tuple(found)


def _check_contract(policy: Mapping[str, Any], shape_meta: Any, observations: Sequence[Observation], contract: Contract) -> None:
    """PolicyImportError that lists every difference between checkpoint and contract."""
    wrong = []
    for name in ("horizon", "n_obs_steps"):
        if policy.get(name) != getattr(contract, name):
            wrong.append(f"{name} is {shown(policy.get(name))} in the checkpoint and {getattr(contract, name)} in the task file")
    action = shape_meta.get("action")
    dimension = action.get("shape") if isinstance(action, dict) else action
    if dimension != [contract.action_dim]:
        wrong.append(f"an action's shape is {shown(dimension)} in the checkpoint and [{contract.action_dim}] in the task file")
    ours: dict[bool, dict[str, tuple[int, ...]]] = {
        True: {name: (3, camera.height, camera.width) for name, camera in contract.cameras.items()},
        False: {feature.name: (feature.dim,) for feature in contract.state},
    }
    for camera, what in ((True, "camera"), (False, "state feature")):
        theirs = [o for o in observations if o.camera == camera]
        for o in theirs:
            if o.name not in ours[camera]:
                there = ", ".join(ours[camera]) or "none"
                wrong.append(f"{o.key} has no {what} in the task file, which has {there}: give --map {o.key}=NAME")
            elif o.shape != ours[camera][o.name]:
                wrong.append(
                    f"{o.key} has the shape {list(o.shape)} in the checkpoint and {list(ours[camera][o.name])} in the task file"
                )
        for name in ours[camera]:
            count = [o.name for o in theirs].count(name)
            if count > 1 or (count == 0 and all(o.name in ours[camera] for o in theirs)):  # else the lines above tell
                keys = ", ".join(o.key for o in theirs) or "none"
                wrong.append(f"the {what} {name} is fed by {count} of the checkpoint's {keys}, expected one: give --map KEY={name}")
    crop = policy.get("crop_shape", [76, 76])
    for o in observations:  # without a crop the encoders see the whole image
        if o.camera and (crop or list(o.shape[1:])) != list(contract.crop):
            wrong.append(f"crop_shape is {shown(crop)} in the checkpoint ({o.key}) and {list(contract.crop)} in the task file")
    if wrong:
        raise PolicyImportError(
            f"it does not fit the task {contract.task}: {'; '.join(wrong)}. Correct the task file where it is wrong"
        )


def _notes(policy: Mapping[str, Any], observations: Sequence[Observation], contract: Contract) -> list[str]:
    notes = []
    cameras = [o for o in observations if o.camera]
    if cameras and policy.get("crop_shape", True) and not policy.get("eval_fixed_crop", False):
        notes.append(
            "the original crops its images at random even when it predicts (eval_fixed_crop false); here the crop is central"
        )
    for o in cameras:
        for side, size, crop in zip(("down", "right"), o.shape[1:], contract.crop, strict=True):
            if round((size - crop) / 2) != (size - crop) // 2:  # torchvision rounds to even
                notes.append(f"the crop of {o.key} begins a pixel farther {side} in the original")
    return notes
