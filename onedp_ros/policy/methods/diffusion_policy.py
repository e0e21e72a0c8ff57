"""Training of Diffusion Policy (Chi et al. 2023, https://arxiv.org/abs/2303.04137), which its samplers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onedp_ros.policy.diffusion import STEPS, Denoiser
from onedp_ros.policy.methods.base import TrainedMethod

SCHEDULE = {"num_train_timesteps": STEPS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True}


class DiffusionPolicy(TrainedMethod):
    """A noise predictor, trained with ``E |eps_theta(alpha_k x^0 + sigma_k eps, k) - eps|^2`` over k = 0..99."""

    @property
    def weights(self) -> str:
        return "teacher"


def follow_schedule(scheduler: Any, denoise: Denoiser, sample: Tensor, condition: Tensor, **options: Any) -> Tensor:
    """Denoise ``sample`` (B, horizon, action) over all timesteps of a diffusers scheduler."""
    for step in scheduler.timesteps.tolist():
        noise = denoise(sample, torch.full((len(sample),), step, device=sample.device), condition)
        sample = scheduler.step(noise, step, sample, **options).prev_sample
    return sample
