"""What OneDP's one-step generators have in common (https://arxiv.org/abs/2410.21257, section 3).

Choices where the paper is silent:

- How z (zeros for OneDP-D) enters and how the output becomes a chunk: see :meth:`Diffusion.generate`. The chunk is clipped to
  [-1, 1] in use, as the teacher's samples are, but not in training: that would stop the gradient.
- The generator and the score network are initialised with the teacher's EMA weights.
- The generator trains its own copy of the encoders. The score network gets the features of the teacher's frozen encoders: it has
  the same input as the teacher, so the two scores differ only where the two action distributions do.
- A score network that has not yet learned the generator's distribution gives no useful gradient. During ``warmup_steps`` it learns
  while the generator follows OneDP-D's gradient, from its own z. The paper's long distillations need no warm-up (0, the default).
- Several z, timesteps and noises are drawn per window, since encoding its images costs most.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from onedp_ros.policy.diffusion import STEPS, Denoiser, Diffusion, wide
from onedp_ros.policy.methods.base import Average, Distillation, DistilledMethod
from onedp_ros.policy.methods.settings import TrainingSettings


@dataclasses.dataclass(frozen=True)
class OneDPSettings(TrainingSettings):
    """Settings of a distillation; the defaults are the paper's. The levels of noise are those that the teacher was trained on."""

    warmup_steps: int = 0
    warmup_learning_rate: float = 1e-6
    generator_learning_rate: float = 1e-6
    score_learning_rate: float = 2e-5
    betas: tuple[float, float] = (0.0, 0.999)

    positive: ClassVar[tuple[str, ...]] = (*TrainingSettings.positive, "generator_learning_rate", "score_learning_rate")

    def draw(self, diffusion: Diffusion, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Levels (count,) at which the scores are compared."""
        return diffusion.draw(count, generator, device)


@dataclasses.dataclass(frozen=True)
class CosineOneDPSettings(OneDPSettings):
    """The same on the process of Diffusion Policy: timesteps are uniform from the first to the last."""

    first_timestep: int = 2
    last_timestep: int = 95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first_timestep < self.last_timestep < STEPS:
            raise ValueError(
                f"timesteps are {self.first_timestep} to {self.last_timestep}, expected two of 0 to {STEPS - 1} in order"
            )

    def draw(self, diffusion: Diffusion, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.randint(self.first_timestep, self.last_timestep + 1, (count,), generator=generator, device=device)


class ScoreDifferenceLoss:
    """Its gradient is ``E[w(k) (s_psi(A^k) - s_phi(A^k)) dA^k]`` with w(k) = sigma_k^2: equation (5) for OneDP-S.

    With a noise predictor, s = -eps / sigma, that is sigma_k (eps_phi - eps_psi); with EDM, D_psi - D_phi. Without a score network:
    a point's diffused score is -noise / sigma_k (OneDP-D).
    """

    def __init__(self, diffusion: Diffusion, teacher: Denoiser, score: Denoiser | None) -> None:
        self.diffusion, self.teacher, self.score = diffusion, teacher, score

    def __call__(self, action: Tensor, condition: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Generated (B, horizon, action), conditions, levels (B,), noise -> (B,)."""
        noisy, score = self.diffusion.add_noise(action, noise, level), self.diffusion.score
        with torch.no_grad():
            if self.score is None:
                own = -wide(self.diffusion.sigma_at(level), noise) * noise
            else:
                own = score(self.score, noisy, level, condition)
            difference = own - score(self.teacher, noisy, level, condition)
        return (difference * noisy).flatten(1).sum(1)


class AlternatingUpdates(Distillation):
    """The score network psi learns the generator's distribution with the denoising loss, then the generator theta descends on
    :class:`ScoreDifferenceLoss`.

    Args:
        diffusion: the teacher's process.
        teacher: frozen network.
        generator: the generator's network, trained together with ``encoders``.
        score: the generator score network; None for OneDP-D.
        encoders: parameters of the encoders that compute the generator's conditions.
        settings: rates, betas and timesteps.
        average: averages gradients over processes.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        teacher: Denoiser,
        generator: nn.Module,
        score: nn.Module | None,
        encoders: Sequence[nn.Parameter],
        settings: OneDPSettings,
        average: Average = lambda parameters: None,
    ) -> None:
        self.diffusion, self.generator, self.score, self.settings, self.average = diffusion, generator, score, settings, average
        self.networks = {} if score is None else {"score": score}
        self.loss, self.point_loss = (ScoreDifferenceLoss(diffusion, teacher, s) for s in (score, None))
        self.parameters = [*generator.parameters(), *encoders]
        self.optimizers = {"generator": torch.optim.Adam(self.parameters, settings.generator_learning_rate, settings.betas)}
        if score is not None:
            self.optimizers["score"] = torch.optim.Adam(score.parameters(), settings.score_learning_rate, settings.betas)

    def update(
        self,
        step: int,
        start: Tensor,
        clean: Tensor,
        condition: Tensor,
        teacher_condition: Tensor,
        random: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """One update of psi, then one of theta; recorded chunks are not used.

        Returns the denoising loss of psi and the gradient norm of theta.
        """
        warmup = step < self.settings.warmup_steps
        if step <= self.settings.warmup_steps:
            rate = self.settings.warmup_learning_rate if warmup else self.settings.generator_learning_rate
            self.optimizers["generator"].param_groups[0]["lr"] = rate
        action = self.diffusion.generate(self.generator, start, condition)
        report = {}
        if self.score is not None:
            level, noise = self._draw(action, random)
            loss = self.diffusion.loss(self.score, action.detach(), teacher_condition, level, noise)
            self._descend("score", loss, list(self.score.parameters()))
            report["score_loss"] = loss.detach()
        level, noise = self._draw(action, random)
        loss = (self.point_loss if warmup else self.loss)(action, teacher_condition, level, noise).mean()
        report["generator_grad_norm"] = self._descend("generator", loss, self.parameters)
        return report

    def _draw(self, action: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        level = self.settings.draw(self.diffusion, len(action), random, action.device)
        return level, torch.randn(action.shape, generator=random, device=action.device, dtype=action.dtype)

    def _descend(self, name: str, loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.average(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.optimizers[name].step()
        return norm


class OneStepGenerator(DistilledMethod):
    """``A = clip(G_theta(z, O))``: on Diffusion Policy's process, ``G = sigma_65 (z - eps_theta(sigma_65 z, 65)) / alpha_65``."""

    settings: ClassVar[type[OneDPSettings]] = CosineOneDPSettings
    trains_score: ClassVar[bool]
    """Whether a generator score network is trained alongside."""

    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return diffusion.generate(denoise, start, condition).clamp(-1, 1)

    def begin_distillation(
        self,
        diffusion: Diffusion,
        teacher: nn.Module,
        generator: nn.Module,
        encoders: Sequence[nn.Parameter],
        settings: OneDPSettings,
        average: Average,
    ) -> AlternatingUpdates:
        score = copy.deepcopy(teacher).requires_grad_(True) if self.trains_score else None
        return AlternatingUpdates(diffusion, teacher, generator, score, encoders, settings, average)
