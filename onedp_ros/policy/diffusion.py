"""The diffusion process of Diffusion Policy: ``x^k = alpha_k x^0 + sigma_k noise`` with 100 squared-cosine steps.

Schedulers from https://huggingface.co/docs/diffusers/api/schedulers/ddpm and .../ddim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

STEPS = 100
_COMMON = {"num_train_timesteps": STEPS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True}

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy chunks (B, horizon, action), steps (B,), conditions (B, condition)) -> predicted noise (B, horizon, action)."""


class Diffusion(nn.Module):
    """Forward process and one-step estimate, as tables of alpha and sigma over the steps 0..99."""

    alpha: Tensor
    sigma: Tensor

    def __init__(self) -> None:
        super().__init__()
        cumulative = DDPMScheduler(**_COMMON).alphas_cumprod.double()
        self.register_buffer("alpha", cumulative.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - cumulative).sqrt().float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Clean (B, ...), noise (B, ...), steps (B,) -> x^k (B, ...)."""
        shape = (-1, *[1] * (clean.ndim - 1))
        return self.alpha[step].view(shape) * clean + self.sigma[step].view(shape) * noise

    def estimate(self, sample: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x^k, its predicted noise and steps (B,) -> x^0 = (x^k - sigma_k noise) / alpha_k, not clipped."""
        shape = (-1, *[1] * (sample.ndim - 1))
        return (sample - self.sigma[step].view(shape) * noise) / self.alpha[step].view(shape)


def sample_ddpm(denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None) -> Tensor:
    """Ancestral sampling with all 100 steps from ``start`` ~ N(0, I) (B, horizon, action)."""
    scheduler = DDPMScheduler(**_COMMON)
    scheduler.set_timesteps(STEPS)
    return _walk(scheduler, denoise, start, condition, generator=generator)


def sample_ddim(denoise: Denoiser, start: Tensor, condition: Tensor, steps: int) -> Tensor:
    """Deterministic sampling (Song et al. 2020, eta 0) with ``steps`` of the 100 from ``start`` ~ N(0, I)."""
    scheduler = DDIMScheduler(**_COMMON, set_alpha_to_one=True, steps_offset=0)
    scheduler.set_timesteps(steps)
    return _walk(scheduler, denoise, start, condition)


def _walk(scheduler, denoise: Denoiser, sample: Tensor, condition: Tensor, **options) -> Tensor:
    for step in scheduler.timesteps.tolist():
        noise = denoise(sample, torch.full((len(sample),), step, device=sample.device), condition)
        sample = scheduler.step(noise, step, sample, **options).prev_sample
    return sample
