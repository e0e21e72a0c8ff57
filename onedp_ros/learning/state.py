"""The state from which an interrupted training run resumes: one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from onedp_ros.files import write_atomically
from onedp_ros.policy.checkpoint import CheckpointError

STATE = "state.safetensors"
_MAY_CHANGE = ("save_every", "steps")


def save_state(
    path: Path,
    step: int,
    seconds: float,
    networks: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    ema: EMAModel,
    made_of: Mapping[str, Any],
) -> None:
    """Write networks, optimisers and EMA weights. The header holds the step, the wall-clock time (s) and ``made_of``: settings,
    data and whatever else must not change when the run is resumed."""
    tensors = {f"model.{name}": value for name, value in networks.state_dict().items()}
    tensors |= {f"ema.{i}": value for i, value in enumerate(ema.shadow_params)}
    for name, optimizer in optimizers.items():
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{slot}": value for slot, value in slots.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    run = json.dumps({"step": step, "seconds": seconds, "ema_step": ema.optimization_step, "made_of": dict(made_of)})
    write_atomically(path, save(tensors, metadata={"run": run, "sha256": _digest(run, tensors)}))


def _digest(run: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(run.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(
    path: Path,
    networks: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    ema: EMAModel,
    made_of: Mapping[str, Any],
    device: torch.device,
) -> tuple[int, float]:
    """Restore what :func:`save_state` wrote. Returns the step and the wall-clock time (s) reached.

    Raises:
        CheckpointError: the file is damaged, or of a run with other settings, network or data; names the difference.
    """
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(metadata["run"], tensors):
            raise ValueError("its digest does not match")
        header = json.loads(metadata["run"])
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or of an earlier version ({error}); start again with another --out") from error
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    for name, value in json.loads(json.dumps(dict(made_of))).items():
        if header["made_of"].get(name) != value and name not in _MAY_CHANGE:
            raise CheckpointError(f"{path}: {name} was {header['made_of'].get(name)}, now {value}; resume with the same options")
    networks.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    ema.shadow_params = [tensors[f"ema.{i}"] for i in range(len(ema.shadow_params))]
    ema.optimization_step = header["ema_step"]
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, i, slot = key.split(".")
                like = parameters[int(i)]
                # A fused optimiser walks through memory: moments need the memory layout of their (channels-last) parameter.
                state.setdefault(int(i), {})[slot] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return header["step"], header["seconds"]
