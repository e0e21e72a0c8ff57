"""Random colour augmentation, so that a policy does not depend on one lighting or one camera exposure."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from onedp_ros.policy.policies import Batch

BRIGHTNESS = (0.4, 1.3)  # factor; cameras are more often too dark than overexposed
WHITE = 1.2  # largest gain of red, green and blue
SATURATION = (0.0, 1.5)  # 0: grey
HUE = 0.35  # rad, largest rotation about the grey axis
GAMMA = 1.3  # largest exponent
NOISE = 8.0  # largest standard deviation, of 255


def jitter_batch(batch: Batch, strength: float, random: torch.Generator) -> Batch:
    """The batch with each camera's images augmented by :func:`jitter_colors`; unchanged when ``strength`` is 0."""
    if strength == 0:
        return batch
    return dataclasses.replace(batch, images={n: jitter_colors(images, strength, random) for n, images in batch.images.items()})


def jitter_colors(images: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Vary brightness, white balance, saturation, hue, contrast (gamma) and noise of one camera's windows.

    Args:
        images: uint8 (B, n_obs, H, W, 3). The images of a window change alike: light does not change within so short a time.
        strength: 0 to 1.
        random: generator on the images' device.

    Returns:
        float32 of the same shape, 0 to 255.
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
    # One matrix per window: Rodrigues' rotation about (1, 1, 1), which leaves grey unchanged, blended with greyscale.
    grey = torch.full((3, 3), 1 / 3, device=device)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device) / math.sqrt(3)
    rotation = torch.cos(turn) * (torch.eye(3, device=device) - grey) + grey + torch.sin(turn) * cross
    matrix = (saturation * rotation + (1 - saturation) * grey) * gain
    colors = torch.bmm(images.flatten(1, 3).float() / 255, matrix)
    colors = colors.clamp_(0, 1).pow_(gamma).mul_(255).view(images.shape)
    # The windows of a batch share one noise pattern: drawing it costs more than everything else.
    noise = torch.randn(images.shape[1:], generator=random, device=device)
    return colors.addcmul_(deviation, noise).clamp_(0, 255)
