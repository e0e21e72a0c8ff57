"""Distillation of a policy into a one-step generator: ``onedp distill``, alone or under ``accelerate launch``. The method defines
how the generator is updated; see :mod:`onedp_ros.policy.methods.one_step_generator`.

The released weights are an EMA of the generator's. Each window is used with several starts, since encoding its images costs most.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onedp_ros.contract import Contract
from onedp_ros.contract.features import slices
from onedp_ros.learning.loop import Loop, Trainee
from onedp_ros.policy.checkpoint import IncompatibleCheckpointError, load_policy, read_config
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.base import DistilledMethod, Method, distilled_methods
from onedp_ros.policy.methods.settings import TrainingSettings
from onedp_ros.policy.policies import Batch, Policy

log = logging.getLogger(__name__)


class Distilling(Trainee):
    """Trains a generator that is initialised as a copy of its teacher.

    Args:
        teacher: frozen, on the loop's device.
        method: the generator's.
        settings: an instance of the method's settings class.
        loop: provides data, device, precision and processes.
        pretraining: ``training`` in the teacher's config.json.
    """

    def __init__(
        self, teacher: Policy, method: DistilledMethod, settings: TrainingSettings, loop: Loop, pretraining: Mapping[str, Any]
    ) -> None:
        self.teacher, self.method, self.settings, self.loop, self.pretraining = teacher, method, settings, loop, pretraining
        self.policy = Policy(teacher.contract, teacher.config, teacher.normalizer, method.name).to(loop.device)
        self.policy.load_state_dict(teacher.state_dict(), strict=False)  # the method's network may have more inputs
        for network in (teacher, self.policy):
            network.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoders = list(self.policy.encoders.parameters())
        self.distillation = method.begin_distillation(
            self.policy.diffusion, teacher.unet, self.policy.unet, encoders, settings, loop.average_gradients
        )
        self.networks = nn.ModuleDict({"generator": self.policy, **self.distillation.networks})
        self.optimizers = self.distillation.optimizers
        count = len(loop.dataset)
        windows = np.random.default_rng(settings.seed).choice(count, min(128, count), replace=False)
        self.watch = ErrorWatch(teacher, method, loop.dataset.batch(windows).to(loop.device))
        self.untrained = self.watch(self.policy)
        if loop.accelerator.is_main_process:
            log.info(
                "median action error (normalised): teacher (%s) %.4f; generator before training: %s",
                method.teacher,
                self.watch.teacher_error,
                self.untrained,
            )

    def update(self, step: int, batches: Iterator[Batch], random: torch.Generator) -> Mapping[str, Tensor]:
        batch = next(batches)
        # The U-Nets run in float32: the small differences of their outputs are the signal.
        with self.loop.accelerator.autocast():
            condition = self.policy.encode(batch).float().repeat_interleave(self.settings.noise_samples, 0)
            with torch.no_grad():
                teacher_condition = self.teacher.encode(batch).float().repeat_interleave(self.settings.noise_samples, 0)
        assert batch.action is not None
        clean = self.policy.normalize_action(batch.action).repeat_interleave(self.settings.noise_samples, 0)
        start = self.policy.start(len(condition), random)
        return self.distillation.update(step, start, clean, condition, teacher_condition, random)

    def measure(self) -> dict[str, float]:
        return self.watch(self.policy)

    def describe(self, step: int, seconds: float, figures: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
        pretraining = self.pretraining.get("gradient_steps")
        return {
            "method": self.method.name,
            "gradient_steps": step,
            "planned_steps": self.settings.steps,
            "pretraining_steps": pretraining,
            "fraction_of_pretraining": round(step / pretraining, 4) if pretraining else None,
            "wall_clock_s": round(seconds, 1),
            "pretraining_wall_clock_s": self.pretraining.get("wall_clock_s"),
            "teacher_error": self.watch.teacher_error,
            "untrained": self.untrained,
            "trained": dict(measured),
            "processes": self.loop.processes,
            "data": self.loop.data.name,
            "distill": dataclasses.asdict(self.settings),
        }


def distill(
    teacher_path: str | Path,
    data: str | Path,
    method: str,
    out: str | Path,
    settings: TrainingSettings,
    resume: bool = False,
    contract: Contract | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Distil the teacher checkpoint into a one-step generator and write it as a checkpoint to ``out``.

    Args:
        teacher_path: checkpoint directory of a policy from which the method can be distilled.
        data: the replay buffer that the teacher was trained on.
        method: name of a distilled method.
        out: directory; also gets ``state.safetensors`` for ``resume``, TensorBoard logs and ``distill.json``.
        settings: an instance of the method's settings class.
        resume, stop_at: see :meth:`onedp_ros.learning.loop.Loop.run`.
        contract: when given, teacher and data must have it.

    Returns:
        The contents of distill.json: gradient steps, also as a fraction of pre-training, wall-clock time (s), errors.

    Raises:
        CheckpointError, ContractError: the teacher is damaged, has the wrong weights for this method, or another contract.
        ValueError: ``method`` is not distilled from a teacher.
    """
    generator = distilled_method(method)
    teacher = load_policy(teacher_path, contract=contract).requires_grad_(False)
    if teacher.method.weights != (expected := find_method(generator.teacher).weights):
        raise IncompatibleCheckpointError(f"{teacher_path} is a {teacher.method.name} policy, expected a {expected} checkpoint")
    loop = Loop(settings, data, out, teacher.contract)
    config = read_config(teacher_path)
    trainee = Distilling(teacher.to(loop.device), generator, settings, loop, config["training"])
    made_of = {"method": method, "teacher": config["weights_sha256"]}
    return loop.run(trainee, made_of, "distill.json", resume, stop_at)


def distilled_method(name: str) -> DistilledMethod:
    """The method ``name``. ValueError when there is none, or it is not distilled."""
    method = find_method(name)
    if not isinstance(method, DistilledMethod):
        raise ValueError(f"method {name} is not distilled, expected one of {', '.join(distilled_methods())}")
    return method


class ErrorWatch:
    """Metrics of a distillation: median absolute action errors on some training windows, in normalised units.

    ``error`` is taken against the recorded actions, as ``teacher_error`` is for the teacher; ``from_teacher`` against the teacher's
    samples. ``position_mm`` is the mean distance from the teacher's positions, for the arm that is farthest off.
    """

    def __init__(self, teacher: Policy, method: DistilledMethod, batch: Batch) -> None:
        assert batch.action is not None
        self.batch, self.method, self.recorded = batch, method, teacher.normalize_action(batch.action)
        self.features = teacher.contract.action
        self.target = self._sample(teacher, find_method(method.teacher))
        self.teacher_error = round(float((self.target - self.recorded).abs().median()), 5)

    @torch.no_grad()
    def _sample(self, policy: Policy, method: Method) -> Tensor:
        random, condition = torch.Generator(policy.device).manual_seed(0), policy.encode(self.batch)
        return method.sample(policy.diffusion, policy.unet, policy.start(len(condition), random, method), condition, random)

    def __call__(self, policy: Policy) -> dict[str, float]:
        action = self._sample(policy, self.method)
        away = (action - self.target) * policy.action_scale
        positions = [at for f, at in zip(self.features, slices(self.features).values(), strict=True) if f.kind == "position"]
        distances = [float(away[..., at].norm(dim=-1).mean()) for at in positions]
        return {
            "error": round(float((action - self.recorded).abs().median()), 5),
            "from_teacher": round(float((action - self.target).abs().median()), 5),
            **({"position_mm": round(1000 * max(distances), 2)} if distances else {}),
        }
