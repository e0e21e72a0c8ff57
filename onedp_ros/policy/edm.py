"""The diffusion process of EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364), with Consistency Policy's constants."""

from __future__ import annotations

import torch
from torch import Tensor

from onedp_ros.policy.diffusion import Denoiser, Diffusion, wide

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.5  # of normalised actions
RHO = 7.0  # spacing of a sampler's levels
LOG_MEAN, LOG_STD = -1.2, 1.2  # of ln sigma in training
GENERATOR_SIGMA = 2.5
"""The fixed level of the one-step generators (OneDP, appendix)."""


class EDM(Diffusion):
    """``x = x^0 + sigma noise``. Levels are sigma, float. What the network F computes is preconditioned,

        D(x, sigma) = c_skip x + c_out F(c_in x, 250 ln sigma)

    so that its input and its target have unit variance at every level; D estimates the clean chunk.
    """

    def draw(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        normal = torch.randn(count, generator=generator, device=device)
        return (LOG_MEAN + LOG_STD * normal).exp().clamp(SIGMA_MIN, SIGMA_MAX)

    def sigma_at(self, level: Tensor) -> Tensor:
        return level

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return clean + wide(level, clean) * noise

    def denoise(self, network: Denoiser, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """D(x, sigma): the estimate of the clean chunks, not clipped."""
        return self.precondition(network, noisy, level, 250 * level.log(), condition)

    def precondition(self, network: Denoiser, noisy: Tensor, level: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """``c_skip x + c_out F(c_in x, step)`` for any input ``step`` of the network."""
        sigma = wide(level, noisy)
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        output = network(noisy / total, step, condition).float()
        return (SIGMA_DATA / total) ** 2 * noisy + (sigma * SIGMA_DATA / total) * output

    def score(self, network: Denoiser, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return self.denoise(network, noisy, level, condition) - noisy

    def loss(self, network: Denoiser, clean: Tensor, condition: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        error = self.denoise(network, self.add_noise(clean, noise, level), level, condition) - clean
        return (wide(self.weight(level), error) * error**2).mean()

    def weight(self, level: Tensor) -> Tensor:
        """Weight of a squared error in the loss at each level, (B,): no level counts more than another."""
        return (level**2 + SIGMA_DATA**2) / (level * SIGMA_DATA) ** 2

    def generate(self, network: Denoiser, z: Tensor, condition: Tensor) -> Tensor:
        level = torch.full((len(z),), GENERATOR_SIGMA, device=z.device)
        return self.denoise(network, GENERATOR_SIGMA * z, level, condition)


def level_of(index: Tensor, count: int) -> Tensor:
    """The level of each ``index`` (B,) of ``count`` levels from SIGMA_MAX (0) down to SIGMA_MIN (equation 5)."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return (high + index / max(count - 1, 1) * (low - high)) ** RHO


def sampling_levels(steps: int) -> list[float]:
    """The levels from SIGMA_MAX to 0 between which a sampler of so many steps moves, steps + 1 values."""
    return [*level_of(torch.arange(steps, dtype=torch.float64), steps).tolist(), 0.0]
