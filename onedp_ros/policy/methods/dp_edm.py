"""Diffusion Policy on EDM's process, sampled with Heun's method (Karras et al. 2022, algorithm 1 with S_churn = 0):
``dx / dsigma = (x - D(x, sigma)) / sigma``, second order but for the last step. The diffusion policies of OneDP's EDM table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from onedp_ros.policy.diffusion import Denoiser, Diffusion
from onedp_ros.policy.edm import EDM, SIGMA_MAX, sampling_levels
from onedp_ros.policy.methods.base import TrainedMethod


class DPEDM(TrainedMethod):
    """``dp_edmN``: N steps, 2 N - 1 network evaluations: 1, 19 and 35 for ``dp_edm1``, ``dp_edm10`` and ``dp_edm18``."""

    numbers = range(1, 101)
    diffusion = EDM

    @property
    def weights(self) -> str:
        return "teacher_edm"

    @property
    def nfe(self) -> int:
        assert self.number is not None
        return 2 * self.number - 1

    def start(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return SIGMA_MAX * super().start(shape, generator, device)

    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        assert self.number is not None
        levels, sample = sampling_levels(self.number), start

        def slope(sample: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(sample),), sigma, device=sample.device)
            return -diffusion.score(denoise, sample, level, condition) / sigma

        for sigma, following in itertools.pairwise(levels):
            first = slope(sample, sigma)
            euler = sample + (following - sigma) * first
            sample = sample + (following - sigma) * (first + slope(euler, following)) / 2 if following else euler
        return sample.clamp(-1, 1)


METHOD = DPEDM
