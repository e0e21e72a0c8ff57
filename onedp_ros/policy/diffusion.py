"""Diffusion processes: how chunks are diffused, and what a network that was trained on them predicts.

Samplers are in :mod:`onedp_ros.policy.methods`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 100
GENERATOR_STEP = 65
"""The timestep input of the one-step generators (OneDP, section 3); alpha 0.5054, sigma 0.8629."""

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(chunks (B, horizon, action), step inputs (B,), conditions (B, condition)) -> (B, horizon, action): the U-Net."""


class Diffusion(nn.Module, ABC):
    """A forward process. Chunks are (B, horizon, action), levels of noise (B,), conditions (B, condition)."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Levels (count,) as a network is trained on."""

    @abstractmethod
    def sigma_at(self, level: Tensor) -> Tensor:
        """Standard deviation of the noise at each level, (B,)."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Clean chunks and noise N(0, I) -> diffused chunks."""

    @abstractmethod
    def score(self, network: Denoiser, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """sigma^2 times the score that ``network`` has learned, at diffused chunks."""

    @abstractmethod
    def loss(self, network: Denoiser, clean: Tensor, condition: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """The denoising loss (a scalar) of ``network`` on clean chunks diffused to ``level`` with ``noise``."""

    @abstractmethod
    def generate(self, network: Denoiser, z: Tensor, condition: Tensor) -> Tensor:
        """The one-step generator of OneDP: z or zeros, conditions -> normalised chunks, not clipped.

        The paper does not say how z enters. Here the zero action, the middle of the range, diffused to the paper's fixed level with
        z for its noise, is the input, and the network's estimate of the clean chunk the output. So a copy of the teacher is a
        reasonable generator before any training.
        """


class CosineDiffusion(Diffusion):
    """The process of Diffusion Policy: ``x^k = alpha_k x^0 + sigma_k noise`` with 100 squared-cosine steps, as tables of alpha and
    sigma. Levels are the steps 0..99, and the network predicts the noise."""

    alpha: Tensor
    sigma: Tensor

    def __init__(self) -> None:
        super().__init__()
        cumulative = torch.cumprod(1 - _betas(), 0).double()
        self.register_buffer("alpha", cumulative.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - cumulative).sqrt().float(), persistent=False)

    def draw(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.randint(STEPS, (count,), generator=generator, device=device)

    def sigma_at(self, level: Tensor) -> Tensor:
        return self.sigma[level]

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return wide(self.alpha[level], clean) * clean + wide(self.sigma[level], clean) * noise

    def estimate(self, sample: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x^k and its predicted noise -> x^0 = (x^k - sigma_k noise) / alpha_k, not clipped."""
        return (sample - wide(self.sigma[level], sample) * noise) / wide(self.alpha[level], sample)

    def score(self, network: Denoiser, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return -wide(self.sigma[level], noisy) * network(noisy, level, condition)

    def loss(self, network: Denoiser, clean: Tensor, condition: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        return functional.mse_loss(network(self.add_noise(clean, noise, level), level, condition).float(), noise)

    def generate(self, network: Denoiser, z: Tensor, condition: Tensor) -> Tensor:
        # with alpha_65 = 0.5054 the division is well conditioned
        level = torch.full((len(z),), GENERATOR_STEP, device=z.device)
        noisy = self.sigma[GENERATOR_STEP] * z
        return self.estimate(noisy, network(noisy, level, condition), level)


def wide(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) in the number of dimensions of a tensor (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _betas() -> Tensor:
    """The noise schedule ``squaredcos_cap_v2`` of diffusers, bit for bit. Importing diffusers takes seconds, and a one-step policy
    needs no scheduler."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - alpha_bar((i + 1) / STEPS) / alpha_bar(i / STEPS), 0.999) for i in range(STEPS)])
