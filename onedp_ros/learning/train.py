"""Training of a policy on demonstrations: ``onedp train``, alone or under ``accelerate launch``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onedp_ros.config import read_yaml
from onedp_ros.contract import Contract
from onedp_ros.learning.loop import Loop, Trainee
from onedp_ros.policy.checkpoint import IncompatibleCheckpointError, load_policy, read_config
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.base import TrainedMethod
from onedp_ros.policy.methods.settings import PretrainingSettings, learning_rate_factor
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Batch, Policy
from onedp_ros.resources import resource, task_folder

METHOD = "dp_ddpm100"
log = logging.getLogger(__name__)


class Pretraining(Trainee):
    """Trains a policy with its method's loss: AdamW, learning rate with linear warm-up and cosine decay.

    Args:
        policy: to train.
        settings: learning rate and so on.
        loop: provides data, device, precision and processes.
        earlier: what the checkpoint that the policy began as tells of its training.
    """

    def __init__(self, policy: Policy, settings: PretrainingSettings, loop: Loop, earlier: Mapping[str, Any]) -> None:
        self.policy = policy.to(loop.device)
        self.policy.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks: nn.Module = policy
        optimizer = torch.optim.AdamW(
            policy.parameters(), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.optimizers = {"adam": optimizer}
        self.accumulation = settings.accumulation
        self.settings, self.loop, self.earlier = settings, loop, earlier

    def update(self, step: int, batches: Iterator[Batch], random: torch.Generator) -> dict[str, float | Tensor]:
        optimizer, parameters = self.optimizers["adam"], list(self.policy.parameters())
        rate = optimizer.param_groups[0]["lr"] = self.settings.learning_rate * learning_rate_factor(
            step, self.settings.warmup_steps, self.settings.steps
        )
        total = torch.zeros((), device=self.loop.device)
        optimizer.zero_grad()
        for batch in batches:
            with self.loop.accelerator.autocast():
                loss = self.policy.compute_loss(batch, random, self.settings.noise_samples) / self.accumulation
            loss.backward()
            total += loss.detach()
        self.loop.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        return {"loss": total, "grad_norm": norm, "learning_rate": rate}

    def describe(self, step: int, seconds: float, figures: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
        dataset, windows = self.loop.dataset, step * self.accumulation * self.settings.batch_size
        return {
            "gradient_steps": step + self.earlier.get("gradient_steps", 0),
            "planned_steps": self.settings.steps,
            "wall_clock_s": round(seconds + self.earlier.get("wall_clock_s", 0.0), 1),
            "loss": figures["loss"],
            "windows": len(dataset),
            "episodes": len(dataset.episode_ends),
            "epochs": round(windows / len(dataset), 2),
            "processes": self.loop.processes,
            "data": self.loop.data.name,
            "train": dataclasses.asdict(self.settings),
        }


def trained_method(name: str) -> TrainedMethod:
    """The method ``name``. ValueError when there is none, or it is not trained on demonstrations."""
    method = find_method(name)
    if not isinstance(method, TrainedMethod):
        raise ValueError(f"method {name} is distilled from a teacher, not trained on demonstrations; see 'onedp distill'")
    return method


def train(
    data: str | Path,
    out: str | Path,
    network: NetworkConfig,
    settings: PretrainingSettings,
    resume: bool = False,
    contract: Contract | None = None,
    stop_at: int | None = None,
    method: str = METHOD,
) -> dict[str, Any]:
    """Train a policy and write its averaged weights as a checkpoint to ``out``.

    Args:
        data: replay buffer (see :mod:`onedp_ros.learning.dataset`).
        out: directory; also gets ``state.safetensors`` for ``resume``, TensorBoard logs and ``train.json``.
        network: its sizes.
        settings: an instance of the method's settings class.
        resume, stop_at: see :meth:`onedp_ros.learning.loop.Loop.run`.
        contract: when given, the data must have it.
        method: defines the loss.

    Returns:
        What train.json holds: gradient steps and wall-clock (s), those of the checkpoint begun with included, loss, and so on.

    Raises:
        CheckpointError, ContractError: ``settings.init`` is damaged, of another network, method or contract, or
            ``settings.encoders`` damaged or of other encoders.
        ValueError: ``method`` is not trained on demonstrations.
    """
    trained_method(method)
    loop = Loop(settings, data, out, contract)
    earlier: dict[str, Any] = {}
    if settings.init:
        earlier = read_config(settings.init)["training"]
        begun = load_policy(settings.init, method, network=network)
        loop.dataset.contract.require_same(begun.contract, "the data", settings.init, any_task=True)
        normalizer = begun.normalizer.including(loop.dataset.normalizer())
        if normalizer.to_dict() != begun.normalizer.to_dict():
            log.info("the data exceed the range of %s: the normaliser is widened", settings.init)
        policy = Policy(loop.dataset.contract, network, normalizer, method)
        policy.load_state_dict(begun.state_dict())
    else:
        policy = Policy(loop.dataset.contract, network, loop.dataset.normalizer(), method)
    if settings.encoders:
        take_encoders(policy, settings.encoders)
    made_of = {"network": network.to_dict(), "method": method}
    return loop.run(Pretraining(policy, settings, loop, earlier), made_of, "train.json", resume, stop_at)


def take_encoders(policy: Policy, checkpoint: str | Path) -> None:
    """Give the policy the image encoders of a checkpoint of any task, for the cameras of the same names.

    Raises:
        CheckpointError: it is damaged, or has no such camera, or its encoders are of another size.
    """
    given = load_policy(checkpoint)
    shared = [name for name in policy.encoders if name in given.encoders]
    if not shared:
        cameras = f"{checkpoint} sees {sorted(given.encoders)}, this task {sorted(policy.encoders)}"
        raise IncompatibleCheckpointError(f"{cameras}: no encoder to begin with; name the cameras alike in the task file")
    for field in ("encoder_width", "keypoints", "features"):
        ours, theirs = getattr(policy.config, field), getattr(given.config, field)
        if ours != theirs:
            raise IncompatibleCheckpointError(f"{checkpoint}: network {field} is {theirs}, expected {ours}; change the network")
    for name in shared:
        policy.encoders[name].load_state_dict(given.encoders[name].state_dict())
    log.info("the encoders of %s begin as those of %s", ", ".join(shared), checkpoint)


def read_section(path: str | Path, *names: str) -> dict[str, Any]:
    """The first of these sections that a ``config/train`` file has. ValueError when it has none."""
    data = read_yaml(path)
    for name in names:
        if isinstance(data.get(name), Mapping):
            return dict(data[name])
    raise ValueError(f"{path} has no section '{names[0]}'; see config/train/compact.yaml")


def prepare(args: argparse.Namespace, *sections: str) -> tuple[Path, Path, dict[str, Any]]:
    """From the common arguments: path of the data, configuration file, and the settings in the first of ``sections`` it has."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = args.config or resource("config", "train", "compact.yaml")
    settings = read_section(config, *sections)
    if args.steps:
        settings["steps"] = args.steps
    if args.color_jitter is not None:
        settings["color_jitter"] = args.color_jitter
    return args.data or task_folder(args.task) / "data.zarr", config, settings
