"""Diffusion Policy with deterministic sampling (Song et al. 2020, eta 0): N of the 100 steps, evenly spaced,
``x^j = alpha_j x^0(x^k, eps_theta) + sigma_j eps_theta``."""

from __future__ import annotations

import torch
from torch import Tensor

from onedp_ros.policy.diffusion import STEPS, Denoiser, Diffusion
from onedp_ros.policy.methods.diffusion_policy import SCHEDULE, DiffusionPolicy, follow_schedule


class DDIM(DiffusionPolicy):
    """``dp_ddimN``. Scheduler: https://huggingface.co/docs/diffusers/api/schedulers/ddim."""

    numbers = range(1, STEPS + 1)

    @property
    def nfe(self) -> int:
        assert self.number is not None
        return self.number

    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        from diffusers import DDIMScheduler  # takes seconds

        scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=True, steps_offset=0)
        scheduler.set_timesteps(self.nfe)  # type: ignore[attr-defined]
        return follow_schedule(scheduler, denoise, start, condition)


METHOD = DDIM
