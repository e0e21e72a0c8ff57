"""Networks of Diffusion Policy (Chi et al. 2023, https://arxiv.org/abs/2303.04137): image encoder and conditional 1D U-Net."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onedp_ros.config import shown
from onedp_ros.contract import Contract
from onedp_ros.settings import from_mapping

MAX_SIZE, MAX_LEVELS = 16384, 8


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Network sizes. The defaults are the paper's real-robot network: with two cameras, two observations and ten action values the
    U-Net has 66.92 M parameters and each encoder 11.2 M. ``unet_channels`` must be multiples of 8, ``encoder_width`` of 16."""

    encoder_width: int = 64
    unet_channels: tuple[int, ...] = (256, 512, 1024)
    kernel: int = 5
    step_dim: int = 128
    keypoints: int = 32
    features: int = 64

    def __post_init__(self) -> None:
        channels = self.unet_channels
        if not isinstance(channels, (list, tuple)) or not all(map(_is_size, channels)):
            raise ValueError(f"unet_channels is {shown(channels)}, expected whole numbers")
        object.__setattr__(self, "unet_channels", tuple(channels))
        for name in ("encoder_width", "kernel", "step_dim", "keypoints", "features"):
            if not _is_size(getattr(self, name)):
                raise ValueError(f"{name} is {shown(getattr(self, name))}, expected a whole number from 1 to {MAX_SIZE}")
        if self.encoder_width < 16 or self.encoder_width % 16:
            raise ValueError(f"encoder_width is {self.encoder_width}, expected a positive multiple of 16")
        if not 0 < len(self.unet_channels) <= MAX_LEVELS or any(c < 8 or c % 8 for c in self.unet_channels):
            raise ValueError(f"unet_channels is {list(channels)}, expected positive multiples of 8, {MAX_LEVELS} at most")
        if self.kernel % 2 == 0 or self.step_dim % 2 or self.step_dim < 4:
            raise ValueError(f"expected an odd kernel and an even step_dim of 4 or more in {self}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Inverse of :meth:`to_dict`. ValueError names a field that is missing or unknown."""
        return from_mapping(cls, "network", data, complete=True)

    def condition_dim(self, contract: Contract) -> int:
        """Size of the U-Net's condition: the features of all cameras and the state, for every observation."""
        return contract.n_obs_steps * (self.features * len(contract.cameras) + contract.state_dim)

    def check_horizon(self, horizon: int) -> None:
        """ValueError when the U-Net cannot halve chunks of this length at each of its levels but the first."""
        factor = 2 ** (len(self.unet_channels) - 1)
        if horizon % factor:
            raise ValueError(
                f"horizon {horizon} is not a multiple of {factor}, as the U-Net's {len(self.unet_channels)} levels need: change "
                f"horizon in the task file, or give fewer unet_channels"
            )

    def least_parameters(self, contract: Contract) -> int:
        """A lower bound on the number of parameters, of the right order: those of the largest layers. Builds no network."""
        widest, encoder = max(self.unet_channels), 8 * self.encoder_width
        film = (self.step_dim + self.condition_dim(contract)) * 2 * widest
        head = 9 * encoder**2 + encoder * self.keypoints + 2 * self.keypoints * self.features if contract.cameras else 0
        return self.kernel * widest**2 + film + 8 * self.step_dim**2 + head

    @property
    def name(self) -> str:
        """``paper``, ``compact``, or the sizes."""
        known: dict[tuple[int, tuple[int, ...]], str] = {(64, (256, 512, 1024)): "paper", (16, (64, 128, 256)): "compact"}
        sizes = (self.encoder_width, self.unet_channels)
        return known.get(sizes, f"ResNet-18 width {sizes[0]}, U-Net {list(sizes[1])}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML."""
        return {**dataclasses.asdict(self), "unet_channels": list(self.unet_channels)}


def group_norm(channels: int) -> nn.GroupNorm:
    """Replaces BatchNorm, whose running statistics do not work with an EMA of the weights."""
    return nn.GroupNorm(channels // 16, channels)


class ResidualBlock(nn.Module):
    """The basic block of ResNet-18 (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = group_norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), group_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class SpatialSoftmax(nn.Module):
    """(B, C, H, W) -> (B, 2 keypoints): the expected image position (x, y in [-1, 1]) of each keypoint's activation."""

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, keypoints, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        height, width = h.shape[-2:]
        attention = h.flatten(2).softmax(-1).unflatten(2, (height, width))
        x_mean = attention.sum(2) @ torch.linspace(-1, 1, width, device=x.device, dtype=attention.dtype)
        y_mean = attention.sum(3) @ torch.linspace(-1, 1, height, device=x.device, dtype=attention.dtype)
        return torch.cat([x_mean, y_mean], dim=-1)


class ImageEncoder(nn.Module):
    """ResNet-18 from scratch, spatial softmax, linear layer: (B, 3, H, W) in [-1, 1] -> (B, features)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w = config.encoder_width
        self.stem = nn.Sequential(nn.Conv2d(3, w, 7, 2, 3, bias=False), group_norm(w), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        inputs = w
        for stage, outputs in enumerate((w, 2 * w, 4 * w, 8 * w)):
            blocks += [ResidualBlock(inputs, outputs, 2 if stage else 1), ResidualBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = SpatialSoftmax(inputs, config.keypoints)
        self.head = nn.Linear(2 * config.keypoints, config.features)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.stem(x))
        # Keypoints are image coordinates: bfloat16 would round them to half a pixel.
        with torch.autocast(x.device.type, enabled=False):
            return torch.relu(self.head(self.pool(h.float())))


class StepEmbedding(nn.Module):
    """(B,) diffusion steps -> (B, dim): sine and cosine features, then a two-layer network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        half = self.dim // 2
        frequency = torch.exp(torch.arange(half, device=step.device) * (-math.log(10000.0) / (half - 1)))
        phase = step[:, None].float() * frequency
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1))


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(8, outputs), nn.Mish())


class FilmBlock(nn.Module):
    """Residual block whose hidden layer is scaled and shifted by the condition: ``scale * h + bias``.

    Attributes:
        dropout: fraction of the hidden values that is dropped in training, after each convolution.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int) -> None:
        super().__init__()
        self.dropout = 0.0
        self.conv1 = ConvBlock(inputs, outputs, kernel)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.conv2 = ConvBlock(outputs, outputs, kernel)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, bias = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        return self._dropped(self.conv2(scale * self._dropped(self.conv1(x)) + bias)) + self.shortcut(x)

    def _dropped(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.dropout) if self.training and self.dropout else hidden


Levels: TypeAlias = Iterable[tuple[nn.Module, nn.Module, nn.Module]]


class UNet(nn.Module):
    """Conditional 1D U-Net over an action chunk.

    Args:
        action_dim: values in one action.
        condition_dim: length of the flattened observations.
        config: sizes.
        stops: whether it is also told the step at which to stop, as consistency trajectory models are.
    """

    def __init__(self, action_dim: int, condition_dim: int, config: NetworkConfig, stops: bool = False) -> None:
        super().__init__()
        channels, kernel = config.unet_channels, config.kernel
        condition = config.step_dim + condition_dim
        pairs = list(zip((action_dim, *channels[:-1]), channels, strict=True))
        self.step = StepEmbedding(config.step_dim)
        if stops:
            self.stop = StepEmbedding(config.step_dim)
        self.stops = stops
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairs):
            halve = nn.Conv1d(outputs, outputs, 3, 2, padding=1) if level < len(pairs) - 1 else nn.Identity()
            first, second = (FilmBlock(i, outputs, condition, kernel) for i in (inputs, outputs))
            self.down.append(nn.ModuleList([first, second, halve]))
        self.middle = nn.ModuleList(FilmBlock(channels[-1], channels[-1], condition, kernel) for _ in range(2))
        self.up = nn.ModuleList()
        for inputs, outputs in reversed(pairs[1:]):
            double = nn.ConvTranspose1d(inputs, inputs, 4, 2, padding=1)
            first, second = (FilmBlock(i, inputs, condition, kernel) for i in (2 * outputs, inputs))
            self.up.append(nn.ModuleList([first, second, double]))
        self.final = nn.Sequential(ConvBlock(channels[0], channels[0], kernel), nn.Conv1d(channels[0], action_dim, 1))

    def forward(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Noisy chunks (B, horizon, action), steps (B,), or (B, 2) if it ``stops``, conditions (B, condition) -> output of the
        chunks' shape.

        For valid horizons see :meth:`NetworkConfig.check_horizon`.
        """
        embedding = self.step(step[:, 0]) + self.stop(step[:, 1]) if self.stops else self.step(step)
        c = torch.cat([embedding, condition], dim=-1)
        x = sample.transpose(1, 2)
        skips: list[Tensor] = []
        for first, second, halve in cast(Levels, self.down):
            x = second(first(x, c), c)
            skips.append(x)
            x = halve(x)
        for block in self.middle:
            x = block(x, c)
        for first, second, double in cast(Levels, self.up):
            x = double(second(first(torch.cat([x, skips.pop()], dim=1), c), c))
        return self.final(x).transpose(1, 2)
