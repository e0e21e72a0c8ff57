"""Colours changed at random in training, so that a policy does not depend on one light or one exposure of the cameras."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from onedp_ros.policy.policies import Batch

BRIGHTNESS = (0.4, 1.3)  # factor of all light; cameras are darker more often than they are overexposed
WHITE = 1.2  # largest factor of red, green and blue
SATURATION = (0.0, 1.5)  # 0: grey
HUE = 0.35  # rad, largest turn about the grey axis
GAMMA = 1.3  # largest exponent
NOISE = 8.0  # largest standard deviation, of 255


def jitter_batch(batch: Batch, strength: float, random: torch.Generator) -> Batch:
    """The batch with its images changed, each camera's of a window by :func:`jitter_colors`; unchanged for a ``strength`` of 0."""
    if strength == 0:
        return batch
    return dataclasses.replace(batch, images={n: jitter_colors(images, strength, random) for n, images in batch.images.items()})


def jitter_colors(images: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Change brightness, white balance, saturation, hue, contrast (gamma) and noise of windows of one camera.

    Args:
        images: uint8 (B, n_obs, H, W, 3). One change for all of a window: it is a moment, and light does not change within it.
        strength: of the change, 0 to 1.
        random: on the images' device; all that is drawn.

    Returns:
        float32 of that shape, 0 to 255.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=random, device=device)

    def factor(low: float, high: float, *shape: int) -> Tensor:
        return torch.exp(strength * uniform(math.log(low), math.log(high), *shape))

    gain = factor(*BRIGHTNESS, 1, 1) * factor(1 / WHITE, WHITE, 1, 3)
    saturation = 1 + strength * uniform(SATURATION[0] - 1, SATURATION[1] - 1, 1, 1)
    turn = strength * uniform(-HUE, HUE, 1, 1)
    gamma = factor(1 / GAMMA, GAMMA, 1, 1)
    deviation = strength * uniform(0.0, NOISE, 1, 1, 1, 1)
    # Rodrigues' rotation about (1, 1, 1), which leaves grey as it is, and the way to grey: one matrix for each window.
    grey = torch.full((3, 3), 1 / 3, device=device)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device) / math.sqrt(3)
    rotation = torch.cos(turn) * (torch.eye(3, device=device) - grey) + grey + torch.sin(turn) * cross
    matrix = (saturation * rotation + (1 - saturation) * grey) * gain
    colors = torch.bmm(images.flatten(1, 3).float() / 255, matrix)
    colors = colors.clamp_(0, 1).pow_(gamma).mul_(255).view(images.shape)
    # The windows of a batch have one pattern of noise: drawing it costs more than all else.
    noise = torch.randn(images.shape[1:], generator=random, device=device)
    return colors.addcmul_(deviation, noise).clamp_(0, 255)
