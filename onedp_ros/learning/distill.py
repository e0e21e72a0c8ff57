"""Distillation of a diffusion policy into a one-step generator (OneDP, https://arxiv.org/abs/2410.21257, section 3):
``python -m onedp_ros.learning.distill``, alone or under ``accelerate launch``.

Choices where the paper is silent:

- z ~ 0.1 N(0, I) (zeros for OneDP-D), times sigma_65, takes the place of x^65, and the output is (x^65 - sigma eps) / alpha: see
  ``generate``. It is clipped to [-1, 1] in use, as the teacher's samples are, but not in training: that would stop the gradient.
- The generator and the score network start from the teacher's EMA weights.
- The generator trains its own copy of the encoders. The score network sees the features of the teacher's frozen encoders: it has
  the same input as the teacher, so the two scores differ only where the two action distributions do.
- A score network that has not yet learned the generator's distribution gives no useful gradient. During ``warmup_steps`` it learns
  while the generator follows OneDP-D's gradient, from its own z. The paper's long distillations need none (0, the default).
- Several z, timesteps and noises are drawn for each window, since encoding its images costs most.
- The released weights are an EMA of the generator's.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from onedp_ros.contract import Contract, task_contract
from onedp_ros.files import write_atomically
from onedp_ros.learning.dataset import WindowDataset
from onedp_ros.learning.train import (
    STATE,
    add_common_arguments,
    load_state,
    make_config,
    prepare,
    save_ema,
    save_state,
    settings_error,
)
from onedp_ros.policy.checkpoint import IncompatibleCheckpointError, load_policy, read_config
from onedp_ros.policy.diffusion import Denoiser, Diffusion, denoising_loss, generate, sample_ddim
from onedp_ros.policy.policies import Batch, Policy
from onedp_ros.resources import task_folder

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation; the defaults are the paper's."""

    steps: int
    batch_size: int = 64
    noise_samples: int = 1
    warmup_steps: int = 0
    warmup_learning_rate: float = 1e-6
    generator_learning_rate: float = 1e-6
    score_learning_rate: float = 2e-5
    betas: tuple[float, float] = (0.0, 0.999)
    first_timestep: int = 2
    last_timestep: int = 95
    max_grad_norm: float = float("inf")
    ema_max: float = 0.9999
    ema_power: float = 0.75
    mixed_precision: str = "no"
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        positive = ("steps", "batch_size", "noise_samples", "generator_learning_rate", "score_learning_rate", "save_every")
        settings_error(self, positive)
        if not 0 <= self.first_timestep < self.last_timestep <= 99:
            raise ValueError(f"timesteps are {self.first_timestep} to {self.last_timestep}, expected two of 0 to 99 in order")


class ScoreDifferenceLoss:
    """Its gradient is ``E[w(k) (s_psi(A^k) - s_phi(A^k)) dA^k]`` with w(k) = sigma_k^2: equation (5) for OneDP-S.

    With s = -eps / sigma that is sigma_k (eps_phi - eps_psi). OneDP-D has no score network: a point's diffused score is
    -noise / sigma_k, so the noise itself takes the place of eps_psi.
    """

    def __init__(self, diffusion: Diffusion, teacher: Denoiser, score: Denoiser | None) -> None:
        self.diffusion, self.teacher, self.score = diffusion, teacher, score

    def __call__(self, action: Tensor, condition: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Generated (B, horizon, action), conditions, steps (B,), noise -> (B,)."""
        noisy = self.diffusion.add_noise(action, noise, step)
        with torch.no_grad():
            fake = noise if self.score is None else self.score(noisy, step, condition)
            difference = self.teacher(noisy, step, condition) - fake
        return self.diffusion.sigma[step] * (difference * noisy).flatten(1).sum(1)


class Distillation:
    """The alternating updates, for any noise predictors.

    Args:
        diffusion: the teacher's process.
        teacher: frozen noise predictor.
        generator: noise predictor of the generator, trained together with ``encoders``.
        score: the generator score network; None for OneDP-D.
        encoders: further parameters that the generator's conditions depend on.
        config: settings.
        average: averages gradients over processes.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        teacher: Denoiser,
        generator: nn.Module,
        score: nn.Module | None,
        encoders: Sequence[nn.Parameter],
        config: DistillConfig,
        average=lambda parameters: None,
    ) -> None:
        self.diffusion, self.generator, self.score, self.config, self.average = diffusion, generator, score, config, average
        self.loss, self.point_loss = (ScoreDifferenceLoss(diffusion, teacher, s) for s in (score, None))
        self.generator_parameters = [*generator.parameters(), *encoders]
        self.optimizers = {"generator": torch.optim.Adam(self.generator_parameters, config.generator_learning_rate, config.betas)}
        if score is not None:
            self.optimizers["score"] = torch.optim.Adam(score.parameters(), config.score_learning_rate, config.betas)

    def update(
        self,
        start: Tensor,
        condition: Tensor,
        teacher_condition: Tensor,
        random: torch.Generator | None = None,
        warmup: bool = False,
    ) -> dict[str, Tensor]:
        """One update of the score network (psi), then one of the generator (theta).

        Args:
            start: z or zeros (B, horizon, action).
            condition: (B, condition) of the generator's encoders, with their graph.
            teacher_condition: (B, condition) of the frozen encoders, for the teacher and the score network.
            random: source of timesteps and noise.
            warmup: the score network learns, but the generator does without it.

        Returns:
            The score network's denoising loss and the generator's gradient norm.
        """
        action = generate(self.diffusion, self.generator, start, condition)
        report = {}
        if self.score is not None:
            step, noise = self._draw(action, random)
            loss = denoising_loss(self.diffusion, self.score, action.detach(), teacher_condition, step, noise)
            self._descend("score", loss, list(self.score.parameters()))
            report["score_loss"] = loss.detach()
        step, noise = self._draw(action, random)
        loss = (self.point_loss if warmup else self.loss)(action, teacher_condition, step, noise).mean()
        report["generator_grad_norm"] = self._descend("generator", loss, self.generator_parameters)
        return report

    def _draw(self, action: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        first, last = self.config.first_timestep, self.config.last_timestep
        step = torch.randint(first, last + 1, (len(action),), generator=random, device=action.device)
        return step, torch.randn(action.shape, generator=random, device=action.device, dtype=action.dtype)

    def _descend(self, name: str, loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.average(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizers[name].step()
        return norm


def distill(
    teacher_path: str | Path,
    data: str | Path,
    method: str,
    out: str | Path,
    config: DistillConfig,
    resume: bool = False,
    contract: Contract | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Distil the teacher checkpoint into a one-step generator and write it as a checkpoint to ``out``.

    Args:
        teacher_path: checkpoint directory of a ``dp_...`` policy.
        data: the replay buffer that the teacher was trained on.
        method: ``onedp_s`` or ``onedp_d``.
        out: directory; also gets ``state.safetensors`` for ``resume``, TensorBoard logs and ``distill.json``.
        config: settings.
        resume: go on from ``out/state.safetensors``; begin when there is none.
        contract: when given, the teacher and the data must be of it.
        stop_at: end early at this step, as if interrupted.

    Returns:
        What distill.json holds: gradient steps, their share of the pre-training's, wall-clock (s), errors.
    """
    out = Path(out)
    if method not in ("onedp_s", "onedp_d"):
        raise ValueError(f"method is '{method}', expected onedp_s or onedp_d")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with="tensorboard", project_dir=out)
    device = accelerator.device
    teacher = load_policy(teacher_path, contract=contract).requires_grad_(False).to(device)
    if not teacher.method.startswith("dp_"):
        raise IncompatibleCheckpointError(f"{teacher_path} is a {teacher.method} policy; distil a dp_ teacher")
    share, rest = divmod(config.batch_size, accelerator.num_processes)
    if rest:
        raise ValueError(f"batch_size {config.batch_size} is not a multiple of the {accelerator.num_processes} processes")
    with accelerator.local_main_process_first():
        dataset = WindowDataset(data, teacher.contract, unpack=True)
    set_seed(config.seed)
    policy = Policy(teacher.contract, teacher.config, teacher.normalizer, method).to(device)
    policy.load_state_dict(teacher.state_dict())
    for network in (teacher, policy):
        network.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    score = copy.deepcopy(teacher.unet).requires_grad_(True) if method == "onedp_s" else None

    def average(parameters: list[nn.Parameter]) -> None:
        if accelerator.num_processes > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    encoders = list(policy.encoders.parameters())
    distillation = Distillation(policy.diffusion, teacher.unet, policy.unet, score, encoders, config, average)
    ema = EMAModel(policy.parameters(), config.ema_max, use_ema_warmup=True, power=config.ema_power, foreach=True)
    networks = nn.ModuleDict({"generator": policy} | ({"score": score} if score is not None else {}))
    teacher_weights = read_config(teacher_path)["weights_sha256"]
    made_of = dataclasses.asdict(config) | {"method": method, "teacher": teacher_weights, "data": dataset.stamp}
    made_of["processes"] = accelerator.num_processes
    step, seconds = 0, 0.0
    if resume and (out / STATE).exists():
        step, seconds = load_state(out / STATE, networks, distillation.optimizers, ema, made_of, device)
        log.info("resuming %s at step %d", out, step)

    watched = dataset.batch(np.random.default_rng(config.seed).choice(len(dataset), min(128, len(dataset)), replace=False))
    watch = Watch(teacher, watched.to(device))
    errors = {"teacher_error": watch.teacher_error, "untrained": watch(teacher, method), "trained": {}}
    if accelerator.is_main_process:
        log.info(
            "median action error (normalised): teacher DDIM-10 %.4f; its untrained copy in one step: %s",
            watch.teacher_error,
            errors["untrained"],
        )
    accelerator.init_trackers("tensorboard")
    batches = dataset.batches(share, step, config.seed, accelerator.process_index, accelerator.num_processes)
    random = torch.Generator(device)
    begin, end = time.monotonic() - seconds, min(config.steps, stop_at or config.steps)
    bar = tqdm(
        total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process, mininterval=2, smoothing=0.02
    )
    while step < end:
        random.manual_seed(((config.seed * 1_000_003 + step) << 10) + accelerator.process_index)
        batch = next(batches).to(device)
        # The networks of actions stay in float32: their outputs' small differences are the signal.
        with accelerator.autocast():
            condition = policy.encode(batch).float().repeat_interleave(config.noise_samples, 0)
            with torch.no_grad():
                teacher_condition = teacher.encode(batch).float().repeat_interleave(config.noise_samples, 0)
        warmup = step < config.warmup_steps
        rate = config.warmup_learning_rate if warmup else config.generator_learning_rate
        distillation.optimizers["generator"].param_groups[0]["lr"] = rate
        report = distillation.update(policy.start(len(condition), random), condition, teacher_condition, random, warmup)
        ema.step(policy.parameters())
        step += 1
        bar.update()
        if step % 20 == 0 or step == end:
            values = {name: float(value) for name, value in report.items()}
            if any(value != value for value in values.values()):
                raise RuntimeError(f"NaN at step {step} ({values}); begin anew with smaller learning rates")
            bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            accelerator.log(values, step)
        if (step % config.save_every == 0 or step == end) and accelerator.is_main_process:
            seconds = time.monotonic() - begin
            ema.store(policy.parameters())
            ema.copy_to(policy.parameters())
            errors["trained"] = watch(policy, method)
            ema.restore(policy.parameters())
            accelerator.log(errors["trained"], step)
            tqdm.write(f"step {step}: {errors['trained']}")
            pretraining = read_config(teacher_path)["training"].get("gradient_steps")
            result = {
                "method": method,
                "gradient_steps": step,
                "planned_steps": config.steps,
                "pretraining_steps": pretraining,
                "share_of_pretraining": round(step / pretraining, 4) if pretraining else None,
                "wall_clock_s": round(seconds, 1),
                "pretraining_wall_clock_s": read_config(teacher_path)["training"].get("wall_clock_s"),
                **errors,
                "processes": accelerator.num_processes,
                "data": Path(data).name,
                "distill": dataclasses.asdict(config),
            }
            save_ema(out, policy, ema, result)
            write_atomically(out / "distill.json", (json.dumps(result, indent=2) + "\n").encode())
            # last, so that a run that dies in between does these steps, and what they write, again
            save_state(out / STATE, step, seconds, networks, distillation.optimizers, ema, made_of)
    batches.close()
    bar.close()
    accelerator.end_training()
    return json.loads((out / "distill.json").read_text()) if (out / "distill.json").exists() else {}


class Watch:
    """The figure to watch: median absolute error of actions on some training windows, in normalised units.

    ``error`` is against the recorded actions, to be compared with the teacher's; ``from_teacher`` against the teacher's DDIM-10.
    ``position_mm`` is the mean distance from the teacher's positions.
    """

    def __init__(self, teacher: Policy, batch: Batch) -> None:
        assert batch.action is not None
        self.batch, self.recorded = batch, teacher.normalize_action(batch.action)
        with torch.no_grad():
            condition = teacher.encode(batch)
            self.target = sample_ddim(teacher.unet, teacher.start(len(condition), self._random(teacher)), condition, 10)
        self.teacher_error = round(float((self.target - self.recorded).abs().median()), 5)

    @staticmethod
    def _random(policy: Policy) -> torch.Generator:
        return torch.Generator(policy.device).manual_seed(0)

    @torch.no_grad()
    def __call__(self, policy: Policy, method: str) -> dict[str, float]:
        condition = policy.encode(self.batch)
        action = generate(policy.diffusion, policy.unet, policy.start(len(condition), self._random(policy), method), condition)
        action = action.clamp(-1, 1)
        distance = ((action - self.target) * policy.action_scale)[..., :3].norm(dim=-1).mean()
        return {
            "error": round(float((action - self.recorded).abs().median()), 5),
            "from_teacher": round(float((action - self.target).abs().median()), 5),
            "position_mm": round(1000 * float(distance), 2),
        }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp distill", description="Distil a diffusion policy into a one-step generator.")
    add_common_arguments(parser)
    parser.add_argument("--method", default="onedp_s", choices=["onedp_s", "onedp_d"])
    parser.add_argument("--teacher", type=Path, help="checkpoint of the pre-trained policy (default out/<task>/teacher)")
    parser.add_argument(
        "--out", type=Path, help="directory for the checkpoint, logs and distill.json (default out/<task>/<method>)"
    )
    args = parser.parse_args(argv)
    data, _, settings = prepare(args, args.method)
    teacher = args.teacher or task_folder(args.task) / "teacher"
    out = args.out or task_folder(args.task) / args.method
    result = distill(teacher, data, args.method, out, make_config(DistillConfig, settings), args.resume, task_contract(args.task))
    print(json.dumps({k: v for k, v in result.items() if k != "distill"}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
