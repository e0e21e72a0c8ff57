"""Diffusion Policy with ancestral sampling (Ho et al. 2020): ``x^(k-1) ~ N(mu(x^k, eps_theta), sigma^2)`` over all 100 steps."""

from __future__ import annotations

import torch
from torch import Tensor

from onedp_ros.policy.diffusion import STEPS, Denoiser, Diffusion
from onedp_ros.policy.methods.diffusion_policy import SCHEDULE, DiffusionPolicy, follow_schedule


class DDPM(DiffusionPolicy):
    """``dp_ddpm100``. Scheduler: https://huggingface.co/docs/diffusers/api/schedulers/ddpm."""

    numbers = range(STEPS, STEPS + 1)

    @property
    def nfe(self) -> int:
        return STEPS

    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        from diffusers import DDPMScheduler  # takes seconds

        scheduler = DDPMScheduler(**SCHEDULE)
        scheduler.set_timesteps(STEPS)  # type: ignore[attr-defined]
        return follow_schedule(scheduler, denoise, start, condition, generator=generator)


METHOD = DDPM
