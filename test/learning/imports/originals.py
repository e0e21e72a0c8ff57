"""Checkpoints in the layout of real-stanford/diffusion_policy, and what its policy computes from their weights.

Written after the original and robomimic 0.2: names of the weights, order of the observations, pickles of OmegaConf and dill.
"""

import collections
import copy
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.nn import functional

WIDTH, KEYPOINTS, FEATURES = 16, 4, 6  # of the image encoders
CONFIG: dict[str, Any] = {
    "_target_": "diffusion_policy.workspace.train_diffusion_unet_hybrid_workspace.TrainDiffusionUnetHybridWorkspace",
    "n_latency_steps": 0,
    "policy": {
        "_target_": "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        "shape_meta": {
            "obs": {  # images and vectors take turns
                "eef_pos": {"shape": [3]},
                "agentview_image": {"shape": [3, 40, 48], "type": "rgb"},
                "eef_quat": {"shape": [4]},
                "hand_image": {"shape": [3, 42, 46], "type": "rgb"},
                "gripper_qpos": {"shape": [2], "type": "low_dim"},
            },
            "action": {"shape": [10]},
        },
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
            "num_train_timesteps": 100,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "fixed_small",
            "clip_sample": True,
            "prediction_type": "epsilon",
        },
        "horizon": 8,
        "n_action_steps": 4,
        "n_obs_steps": 2,
        "num_inference_steps": 100,
        "obs_as_global_cond": True,
        "crop_shape": [36, 40],
        "diffusion_step_embed_dim": 8,
        "down_dims": [8, 16],
        "kernel_size": 3,
        "n_groups": 8,
        "cond_predict_scale": True,
        "obs_encoder_group_norm": True,
        "eval_fixed_crop": True,
    },
    "training": {"use_ema": True, "seed": 42, "max_train_steps": None},
}


def config_with(**changes: Any) -> dict[str, Any]:
    """CONFIG with other values in ``policy``, or, for names such as ``noise_scheduler__clip_sample``, in a part of it."""
    made = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *parts, name = path.split("__")
        place = made["policy"]
        for part in parts:
            place = place[part]
        place[name] = value
    return made


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state dictionary of the policy that ``config`` describes."""
    random = torch.Generator().manual_seed(seed)
    policy = config["policy"]
    found: dict[str, Tensor] = collections.OrderedDict()
    found["_dummy_variable"] = torch.zeros(0)

    def layer(name: str, *shape: int, bias: bool = True, norm: bool = False) -> None:
        fan_in = int(np.prod(shape[1:]))
        weight = torch.randn(shape, generator=random)
        found[f"{name}.weight"] = 1 + 0.2 * weight if norm else weight * (0.5 / fan_in) ** 0.5
        if bias or norm:
            found[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)

    observations = policy["shape_meta"]["obs"]
    cameras = [key for key, entry in observations.items() if entry.get("type") == "rgb"]
    for key in cameras:
        net = f"obs_encoder.obs_nets.{key}"
        layer(f"{net}.backbone.nets.0", WIDTH, 3, 7, 7, bias=False)
        layer(f"{net}.backbone.nets.1", WIDTH, norm=True)
        inputs = WIDTH
        for stage, outputs in enumerate((WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH)):
            for block in range(2):
                here = f"{net}.backbone.nets.{4 + stage}.{block}"
                layer(f"{here}.conv1", outputs, inputs, 3, 3, bias=False)
                layer(f"{here}.bn1", outputs, norm=True)
                layer(f"{here}.conv2", outputs, outputs, 3, 3, bias=False)
                layer(f"{here}.bn2", outputs, norm=True)
                if inputs != outputs:
                    layer(f"{here}.downsample.0", outputs, inputs, 1, 1, bias=False)
                    layer(f"{here}.downsample.1", outputs, norm=True)
                inputs = outputs
        layer(f"{net}.pool.nets", KEYPOINTS, inputs, 1, 1)
        found[f"{net}.pool.nets.weight"] *= 10  # keypoints away from the middle
        found |= {
            f"{net}.pool.temperature": torch.ones(1),
            f"{net}.pool.pos_x": torch.zeros(1, 4),
            f"{net}.pool.pos_y": torch.zeros(1, 4),
        }
        for name in [name for name in found if name.startswith(net)]:  # the parts are registered twice
            found[name.replace(f"{net}.backbone.", f"{net}.nets.0.").replace(f"{net}.pool.", f"{net}.nets.1.")] = found[name]
        layer(f"{net}.nets.3", FEATURES, 2 * KEYPOINTS)
    width = sum(FEATURES if key in cameras else entry["shape"][0] for key, entry in observations.items())
    step, kernel, channels = policy["diffusion_step_embed_dim"], policy["kernel_size"], policy["down_dims"]
    action = policy["shape_meta"]["action"]["shape"][0]

    def residual(name: str, inputs: int, outputs: int) -> None:
        for i, size in enumerate((inputs, outputs)):
            layer(f"{name}.blocks.{i}.block.0", outputs, size, kernel)
            layer(f"{name}.blocks.{i}.block.1", outputs, norm=True)
        layer(f"{name}.cond_encoder.1", 2 * outputs, step + policy["n_obs_steps"] * width)
        if inputs != outputs:
            layer(f"{name}.residual_conv", outputs, inputs, 1)

    layer("model.diffusion_step_encoder.1", 4 * step, step)
    layer("model.diffusion_step_encoder.3", step, 4 * step)
    for i in range(2):
        residual(f"model.mid_modules.{i}", channels[-1], channels[-1])
    pairs = list(zip([action, *channels[:-1]], channels, strict=True))
    for i, (inputs, outputs) in enumerate(reversed(pairs[1:])):
        residual(f"model.up_modules.{i}.0", 2 * outputs, inputs)
        residual(f"model.up_modules.{i}.1", inputs, inputs)
        layer(f"model.up_modules.{i}.2.conv", inputs, inputs, 4)
    for i, (inputs, outputs) in enumerate(pairs):
        residual(f"model.down_modules.{i}.0", inputs, outputs)
        residual(f"model.down_modules.{i}.1", outputs, outputs)
        if i < len(pairs) - 1:
            layer(f"model.down_modules.{i}.2.conv", outputs, outputs, 3)
    layer("model.final_conv.0.block.0", channels[0], channels[0], kernel)
    layer("model.final_conv.0.block.1", channels[0], norm=True)
    layer("model.final_conv.1", action, channels[0], 1)
    found["mask_generator._dummy_variable"] = torch.zeros(0)
    for key, size in {"action": action, **{k: entry["shape"][0] for k, entry in observations.items()}}.items():
        here = f"normalizer.params_dict.{key}"
        count = 1 if key in cameras else size
        found[f"{here}.scale"] = torch.full((1,), 2.0) if key in cameras else 0.5 + torch.rand(count, generator=random)
        found[f"{here}.offset"] = torch.full((1,), -1.0) if key in cameras else torch.randn(count, generator=random)
        found |= {f"{here}.input_stats.{name}": torch.zeros(count) for name in ("min", "max", "mean", "std")}
    return found


def write(path: Path, config: Mapping[str, Any], states: Mapping[str, Any], epoch: bytes | None = None, **more: Any) -> Path:
    """Save a checkpoint as the original's workspace does, without the packages whose classes its pickle names."""
    fakes = {name: types.ModuleType(name) for name in ("omegaconf", "dill")}
    kinds = {}
    for module, name in (("dictconfig", "DictConfig"), ("listconfig", "ListConfig"), ("nodes", "AnyNode"), ("base", "Metadata")):
        kinds[name] = type(name, (), {"__module__": f"omegaconf.{module}"})
        fakes[f"omegaconf.{module}"] = types.ModuleType(f"omegaconf.{module}")
        setattr(fakes[f"omegaconf.{module}"], name, kinds[name])
    fakes["dill._dill"] = types.ModuleType("dill._dill")
    exec("def _load_type(name): raise AssertionError('called')", fakes["dill._dill"].__dict__)
    load_type = fakes["dill._dill"]._load_type

    class DictType:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return load_type, ("dict",)

    def node(kind: str, key: Any, parent: Any, **state: Any) -> Any:
        metadata, made = kinds["Metadata"](), kinds[kind]()
        metadata.__dict__.update(ref_type=Any, object_type=DictType(), key=key, resolver_cache=collections.defaultdict(dict))
        made.__dict__.update(_metadata=metadata, _parent=parent, **state)
        return made

    def wrapped(value: Any, key: Any = None, parent: Any = None) -> Any:
        if isinstance(value, dict):
            made = node("DictConfig", key, parent)
            made._content = {name: wrapped(inner, name, made) for name, inner in value.items()}
        elif isinstance(value, list):
            made = node("ListConfig", key, parent)
            made._content = [wrapped(inner, i, made) for i, inner in enumerate(value)]
        else:
            made = node("AnyNode", key, parent, _val=value)
        return made

    pickles = {"_output_dir": pickle.dumps("out"), "global_step": pickle.dumps(1234), "epoch": epoch or pickle.dumps(56)}
    content = {"cfg": wrapped(dict(config)), "state_dicts": dict(states), "pickles": pickles, **more}
    with mock.patch.dict(sys.modules, fakes):
        torch.save(content, path)
    return path


class Original:
    """The original policy, computed from a state dictionary."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.policy, self.weights = config["policy"], weights

    def normalize(self, key: str, value: Tensor, back: bool = False) -> Tensor:
        scale, offset = (self.weights[f"normalizer.params_dict.{key}.{name}"] for name in ("scale", "offset"))
        return (value - offset) / scale if back else value * scale + offset

    def _parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")

    def encode(self, key: str, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) from 0 to 1 -> features (B, 6)."""
        net = f"obs_encoder.obs_nets.{key}"
        (height, width), (h, w) = images.shape[2:], self.policy["crop_shape"]
        top, left = round((height - h) / 2), round((width - w) / 2)
        x = self.normalize(key, images)[:, :, top : top + h, left : left + w]

        def norm(name: str, x: Tensor) -> Tensor:
            return functional.group_norm(x, x.shape[1] // 16, *self._parameters(f"{net}.{name}"))

        def conv(name: str, x: Tensor, stride: int, padding: int) -> Tensor:
            return functional.conv2d(x, *self._parameters(f"{net}.{name}"), stride=stride, padding=padding)

        x = functional.max_pool2d(norm("backbone.nets.1", conv("backbone.nets.0", x, 2, 3)).relu(), 3, 2, 1)
        for layer in range(4, 8):
            for block in range(2):
                here, stride = f"backbone.nets.{layer}.{block}", 2 if layer > 4 and block == 0 else 1
                y = norm(f"{here}.bn1", conv(f"{here}.conv1", x, stride, 1)).relu()
                y = norm(f"{here}.bn2", conv(f"{here}.conv2", y, 1, 1))
                if f"{net}.{here}.downsample.0.weight" in self.weights:
                    x = norm(f"{here}.downsample.1", conv(f"{here}.downsample.0", x, stride, 0))
                x = (x + y).relu()
        attention = conv("pool.nets", x, 1, 0).flatten(2).softmax(-1)
        xs, ys = np.meshgrid(np.linspace(-1, 1, x.shape[3]), np.linspace(-1, 1, x.shape[2]))
        grid = torch.from_numpy(np.stack([xs.ravel(), ys.ravel()], -1)).float()
        keypoints = attention @ grid  # (B, keypoints, 2)
        return functional.linear(keypoints.flatten(1), *self._parameters(f"{net}.nets.3")).relu()

    def condition(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Images (B, n_obs, H, W, 3) uint8 and vectors (B, n_obs, n) by key -> (B, condition)."""
        parts = []
        for key in self.policy["shape_meta"]["obs"]:
            value = observations[key]
            if value.dtype == torch.uint8:
                images = value.flatten(0, 1).permute(0, 3, 1, 2) / 255
                parts.append(self.encode(key, images).unflatten(0, value.shape[:2]))
            else:
                parts.append(self.normalize(key, value))
        return torch.cat(parts, -1).flatten(1)

    def predict_noise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """(B, horizon, action), (B,), (B, condition) -> (B, horizon, action)."""

        def block(name: str, x: Tensor) -> Tensor:
            x = functional.conv1d(x, *self._parameters(f"{name}.0"), padding=self.policy["kernel_size"] // 2)
            return functional.mish(functional.group_norm(x, 8, *self._parameters(f"{name}.1")))

        def residual(name: str, x: Tensor) -> Tensor:
            film = functional.linear(functional.mish(c), *self._parameters(f"{name}.cond_encoder.1"))
            film = film.reshape(len(x), 2, -1, 1)
            y = block(f"{name}.blocks.1.block", film[:, 0] * block(f"{name}.blocks.0.block", x) + film[:, 1])
            if f"{name}.residual_conv.weight" in self.weights:
                x = functional.conv1d(x, *self._parameters(f"{name}.residual_conv"))
            return y + x

        half = self.policy["diffusion_step_embed_dim"] // 2
        phase = step[:, None] * torch.exp(torch.arange(half) * -(np.log(10000) / (half - 1)))
        c = functional.linear(
            torch.cat([phase.sin(), phase.cos()], -1).float(), *self._parameters("model.diffusion_step_encoder.1")
        )
        c = functional.linear(functional.mish(c), *self._parameters("model.diffusion_step_encoder.3"))
        c = torch.cat([c, condition], -1)
        x, skips, levels = sample.transpose(1, 2), [], len(self.policy["down_dims"])
        for i in range(levels):
            x = residual(f"model.down_modules.{i}.1", residual(f"model.down_modules.{i}.0", x))
            skips.append(x)
            if i < levels - 1:
                x = functional.conv1d(x, *self._parameters(f"model.down_modules.{i}.2.conv"), stride=2, padding=1)
        for i in range(2):
            x = residual(f"model.mid_modules.{i}", x)
        for i in range(levels - 1):
            x = residual(f"model.up_modules.{i}.0", torch.cat([x, skips.pop()], 1))
            x = residual(f"model.up_modules.{i}.1", x)
            x = functional.conv_transpose1d(x, *self._parameters(f"model.up_modules.{i}.2.conv"), stride=2, padding=1)
        return functional.conv1d(block("model.final_conv.0.block", x), *self._parameters("model.final_conv.1")).transpose(1, 2)

    def predict(self, observations: Mapping[str, Tensor], random: torch.Generator) -> Tensor:
        """Observations -> action chunks (B, horizon, action)."""
        settings = {name: value for name, value in self.policy["noise_scheduler"].items() if name != "_target_"}
        kind = DDIMScheduler if "ddim" in self.policy["noise_scheduler"]["_target_"] else DDPMScheduler
        scheduler = kind(**settings)
        scheduler.set_timesteps(self.policy["num_inference_steps"])
        condition = self.condition(observations)
        shape = (len(condition), self.policy["horizon"], self.policy["shape_meta"]["action"]["shape"][0])
        sample = torch.randn(shape, generator=random)
        for step in scheduler.timesteps:
            noise = self.predict_noise(sample, step.expand(len(sample)), condition)
            sample = scheduler.step(noise, step, sample, generator=random).prev_sample
        return self.normalize("action", sample, back=True)
