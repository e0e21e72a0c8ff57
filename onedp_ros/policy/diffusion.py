"""The diffusion process of Diffusion Policy: ``x^k = alpha_k x^0 + sigma_k noise`` with 100 squared-cosine steps.

Samplers are in :mod:`onedp_ros.policy.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 100
GENERATOR_STEP = 65
"""The timestep input of the one-step generators (OneDP, section 3); alpha 0.5054, sigma 0.8629."""

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy chunks (B, horizon, action), steps (B,), conditions (B, condition)) -> predicted noise (B, horizon, action)."""


class Diffusion(nn.Module):
    """Forward process and one-step estimate, as tables of alpha and sigma over the steps 0..99."""

    alpha: Tensor
    sigma: Tensor

    def __init__(self) -> None:
        super().__init__()
        cumulative = torch.cumprod(1 - _betas(), 0).double()
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


def _betas() -> Tensor:
    """The noise schedule ``squaredcos_cap_v2`` of diffusers, bit for bit. Importing diffusers takes seconds, and a one-step policy
    needs no scheduler."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - alpha_bar((i + 1) / STEPS) / alpha_bar(i / STEPS), 0.999) for i in range(STEPS)])


def generate(diffusion: Diffusion, denoise: Denoiser, z: Tensor, condition: Tensor) -> Tensor:
    """The one-step generator of OneDP: z or zeros (B, horizon, action), conditions -> normalised, unclipped x^0.

    The paper does not say how z enters. Here sigma_65 z takes the place of x^65: the zero action, the middle of the range, with
    the noise of that step. The output is the network's estimate of x^0. So a copy of the teacher is a reasonable generator before
    any training. With alpha_65 = 0.5054 the division is well conditioned.
    """
    step = torch.full((len(z),), GENERATOR_STEP, device=z.device)
    noisy = diffusion.sigma[GENERATOR_STEP] * z
    return diffusion.estimate(noisy, denoise(noisy, step, condition), step)


def denoising_loss(
    diffusion: Diffusion, denoise: Denoiser, clean: Tensor, condition: Tensor, step: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the noise predicted for clean (B, horizon, action) diffused to ``step`` (B,) with ``noise``."""
    return functional.mse_loss(denoise(diffusion.add_noise(clean, noise, step), step, condition).float(), noise)
