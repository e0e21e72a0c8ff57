"""Consistency Policy (Prasad et al. 2024, https://arxiv.org/abs/2405.07503): a consistency trajectory model (CTM, Kim et al. 2023,
https://arxiv.org/abs/2310.02279) distilled from ``dp_edm``, the baseline of OneDP's EDM table.

The student jumps from level t to level s along the teacher's trajectory,

    G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)

with g preconditioned as EDM's denoiser. Two losses with equal weight, both pseudo-Huber:

- CTM: G(x_t, t, s) agrees with G(x_u, u, s), where x_u is one Heun step of the teacher from x_t; both are compared after a jump to
  the data by the fixed current student.
- DSM: g(x_t, t, 0) denoises recorded chunks, weighted as EDM's loss.

Choices: the stop's embedding is added to the step's and begins as zero, so that the student begins as the teacher; the image
encoders stay the teacher's, as in the authors' code. Sampling begins at sigma_max N(0, I), as training does.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from onedp_ros.policy.diffusion import Denoiser, Diffusion, wide
from onedp_ros.policy.edm import EDM, SIGMA_MAX, SIGMA_MIN, level_of
from onedp_ros.policy.methods.base import Average, Distillation, DistilledMethod
from onedp_ros.policy.methods.settings import TrainingSettings, learning_rate_factor
from onedp_ros.policy.networks import FilmBlock, UNet

BINS = 80  # levels between which the student learns to jump
CHAIN = (27, 54)  # bins to which the three-step sampler returns
HUBER = 0.00054  # of the square root of a chunk's size


@dataclasses.dataclass(frozen=True)
class CPSettings(TrainingSettings):
    """Settings of the distillation; the defaults are the authors'."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    dropout: float = 0.2

    positive: ClassVar[tuple[str, ...]] = (*TrainingSettings.positive, "learning_rate")


def jump(diffusion: EDM, network: Denoiser, sample: Tensor, level: Tensor, stop: Tensor, condition: Tensor) -> Tensor:
    """G: chunks (B, horizon, action) at ``level`` (B,) -> at ``stop`` (B,), not clipped."""
    steps = 250 * torch.stack([level, stop], -1).log()
    clean = diffusion.precondition(network, sample, level, steps, condition)
    ratio = wide(stop / level, sample)
    return ratio * sample + (1 - ratio) * clean


def pseudo_huber(difference: Tensor) -> Tensor:
    """``sqrt(d^2 + c^2) - c``, element by element; c as in improved consistency training (https://arxiv.org/abs/2310.14189)."""
    c = HUBER * math.sqrt(difference[0].numel())
    return (difference**2 + c**2).sqrt() - c


class ConsistencyDistillation(Distillation):
    """Trains the student's U-Net; arguments as for :meth:`~.base.DistilledMethod.begin_distillation`."""

    def __init__(self, diffusion: EDM, teacher: Denoiser, student: UNet, settings: CPSettings, average: Average) -> None:
        self.diffusion, self.teacher, self.student, self.settings, self.average = diffusion, teacher, student, settings, average
        last = cast(nn.Linear, student.stop.mlp[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        for block in student.modules():
            if isinstance(block, FilmBlock):
                block.dropout = settings.dropout
        self.target = copy.deepcopy(student.eval()).requires_grad_(False)
        self.networks: dict[str, nn.Module] = {}
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizers = {"student": torch.optim.AdamW(student.parameters(), rate, settings.betas, weight_decay=decay)}

    def update(
        self,
        step: int,
        start: Tensor,
        clean: Tensor,
        condition: Tensor,
        teacher_condition: Tensor,
        random: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """One update of the student. Returns both losses and the gradient norm."""
        settings, optimizer = self.settings, self.optimizers["student"]
        factor = learning_rate_factor(step, settings.warmup_steps, settings.steps)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        self.target.load_state_dict(self.student.state_dict())
        self.student.train()
        losses = {
            "ctm_loss": trajectory_loss(self.diffusion, self.teacher, self.student, self.target, clean, teacher_condition, random),
            "dsm_loss": denoising_loss(self.diffusion, self.student, clean, teacher_condition, random),
        }
        self.student.eval()
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        parameters = list(self.student.parameters())
        self.average(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        return {**{name: loss.detach() for name, loss in losses.items()}, "grad_norm": norm}


def trajectory_loss(
    diffusion: EDM,
    teacher: Denoiser,
    student: Denoiser,
    target: Denoiser,
    clean: Tensor,
    condition: Tensor,
    random: torch.Generator | None,
) -> Tensor:
    """CTM: for random bins t < s, the student's jump from t to s against that of ``target``, its fixed copy, from t + 1, where one
    step of the teacher leads."""
    count = len(clean)
    draws = torch.rand(2, count, generator=random, device=clean.device)
    t = (draws[0] * (BINS - 1)).long()
    s = t + 1 + (draws[1] * (BINS - 1 - t)).long()
    level, following, stop = (level_of(bins, BINS) for bins in (t, t + 1, s))
    noisy = diffusion.add_noise(clean, torch.randn(clean.shape, generator=random, device=clean.device), level)
    end = torch.full_like(stop, SIGMA_MIN)
    with torch.no_grad():
        stepped = heun_step(diffusion, teacher, noisy, level, following, condition)
        wanted = jump(diffusion, target, stepped, following, stop, condition)
        wanted = jump(diffusion, target, wanted, stop, end, condition)
    reached = jump(diffusion, student, noisy, level, stop, condition)
    return pseudo_huber(jump(diffusion, target, reached, stop, end, condition) - wanted).mean()


def denoising_loss(diffusion: EDM, student: Denoiser, clean: Tensor, condition: Tensor, random: torch.Generator | None) -> Tensor:
    """DSM: half of the levels as EDM's training draws them, half from the upper 70 % of the bins."""
    count = len(clean)
    high = 0.7 * torch.rand(count - count // 2, generator=random, device=clean.device)
    level = torch.cat([level_of(high, 2), diffusion.draw(count // 2, random, clean.device)])
    noisy = diffusion.add_noise(clean, torch.randn(clean.shape, generator=random, device=clean.device), level)
    reached = jump(diffusion, student, noisy, level, torch.full_like(level, SIGMA_MIN), condition)
    return (wide(diffusion.weight(level), clean) * pseudo_huber(reached - clean)).mean()


def heun_step(diffusion: EDM, network: Denoiser, sample: Tensor, level: Tensor, following: Tensor, condition: Tensor) -> Tensor:
    """One step of Heun's method from ``level`` (B,) to ``following`` (B,), which is not 0."""
    step = wide(following - level, sample)
    first = -diffusion.score(network, sample, level, condition) / wide(level, sample)
    euler = sample + step * first
    return sample + step * (first - diffusion.score(network, euler, following, condition) / wide(following, sample)) / 2


class ConsistencyPolicy(DistilledMethod):
    """``cp1``: one jump from noise; ``cp3``: three, with new noise in between."""

    numbers = range(1, 4, 2)
    diffusion, teacher, settings, stops = EDM, "dp_edm10", CPSettings, True

    @property
    def weights(self) -> str:
        return "cp"

    @property
    def nfe(self) -> int:
        assert self.number is not None
        return self.number

    def start(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return SIGMA_MAX * super().start(shape, generator, device)

    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        process, end = cast(EDM, diffusion), torch.full((len(start),), SIGMA_MIN, device=start.device)
        level = torch.full_like(end, SIGMA_MAX)
        chunk = jump(process, denoise, start, level, end, condition).clamp(-1, 1)
        for index in CHAIN if self.number == 3 else ():
            level = level_of(torch.full_like(end, index), BINS)
            noise = torch.randn(start.shape, generator=generator, device=start.device)
            chunk = jump(process, denoise, process.add_noise(chunk, noise, level), level, end, condition).clamp(-1, 1)
        return chunk

    def begin_distillation(
        self,
        diffusion: Diffusion,
        teacher: nn.Module,
        generator: nn.Module,
        encoders: Sequence[nn.Parameter],
        settings: CPSettings,
        average: Average,
    ) -> ConsistencyDistillation:
        return ConsistencyDistillation(cast(EDM, diffusion), teacher, cast(UNet, generator), settings, average)


METHOD = ConsistencyPolicy
