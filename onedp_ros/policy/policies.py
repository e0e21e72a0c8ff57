"""A policy: networks, normaliser and the encoding of observations, sampled by one of :mod:`onedp_ros.policy.methods`.

It is used in three stages so that a camera frame is encoded once: ``encode_image``, ``condition``, ``sample``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onedp_ros.contract import Contract, Normalizer
from onedp_ros.policy.diffusion import Denoiser
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.base import Method, TrainedMethod
from onedp_ros.policy.networks import ImageEncoder, NetworkConfig, UNet


@dataclasses.dataclass(frozen=True)
class Batch:
    """Training windows, not normalised. ``images``: (B, n_obs, H, W, 3) by camera, uint8 or float from 0 to 255, full size or
    cropped; ``state`` (B, n_obs, state); ``action`` (B, horizon, action), where index ``n_obs - 1`` is the action at the newest
    observation's step."""

    images: Mapping[str, Tensor]
    state: Tensor
    action: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        images = {name: image.to(device, non_blocking=True) for name, image in self.images.items()}
        action = None if self.action is None else self.action.to(device, non_blocking=True)
        return Batch(images, self.state.to(device, non_blocking=True), action)


def network_input(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """Images uint8 (B, H, W, 3) -> central crops of size ``crop``, (B, 3, height, width) in [-1, 1]."""
    height, width = crop
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    cut = images[:, top : top + height, left : left + width]
    # The permuted view of (B, H, W, C) is already channels-last, the fastest layout for convolutions.
    return cut.permute(0, 3, 1, 2).float() * (2 / 255) - 1


class Sampler(nn.Module):
    """A policy without its networks, which may run on an inference engine: normalisation and sampling.

    Args:
        contract: what the policy sees and predicts.
        config: network sizes.
        normalizer: of the training data.
        method: name of one of :mod:`onedp_ros.policy.methods`.

    Raises:
        ValueError: an unknown method, or a horizon or a normaliser that does not fit.
    """

    state_offset: Tensor
    state_scale: Tensor
    action_offset: Tensor
    action_scale: Tensor

    def __init__(self, contract: Contract, config: NetworkConfig, normalizer: Normalizer, method: str = "dp_ddpm100") -> None:
        super().__init__()
        config.check_horizon(contract.horizon)
        self.contract, self.config, self.normalizer = contract, config, normalizer
        self.method: Method = find_method(method)
        self.diffusion = self.method.diffusion()
        for field in dataclasses.fields(normalizer):
            values = getattr(normalizer, field.name)
            size = contract.state_dim if field.name.startswith("state") else contract.action_dim
            if values.shape != (size,):
                raise ValueError(f"normalizer.{field.name} has the shape {values.shape}, the contract's is ({size},)")
            self.register_buffer(field.name, torch.from_numpy(values), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.action_scale.device

    @property
    def nfe(self) -> int:
        """Network evaluations of one prediction."""
        return self.method.nfe

    def condition(self, features: Sequence[Tensor], state: Tensor) -> Tensor:
        """Features (B, n_obs, 64) of each of the contract's cameras and raw states (B, n_obs, state) -> (B, condition)."""
        normal = (state - self.state_offset) / self.state_scale
        return torch.cat([*features, normal], dim=-1).flatten(1)

    def normalize_action(self, action: Tensor) -> Tensor:
        return (action - self.action_offset) / self.action_scale

    def sample_with(self, denoise: Denoiser, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Conditions (B, condition) -> action chunks (B, horizon, action), not normalised; ``denoise`` runs the U-Net."""
        start = self.start(len(condition), generator)
        return self.method.sample(self.diffusion, denoise, start, condition, generator) * self.action_scale + self.action_offset

    def start(self, count: int, generator: torch.Generator | None = None, method: Method | None = None) -> Tensor:
        """The initial samples (count, horizon, action) for ``method``, by default the policy's own."""
        shape = (count, self.contract.horizon, self.contract.action_dim)
        return (method or self.method).start(shape, generator, self.device)


class Policy(Sampler):
    """A policy with its networks. Arguments as for :class:`Sampler`."""

    def __init__(self, contract: Contract, config: NetworkConfig, normalizer: Normalizer, method: str = "dp_ddpm100") -> None:
        super().__init__(contract, config, normalizer, method)
        self.encoders = nn.ModuleDict({name: ImageEncoder(config) for name in contract.cameras})
        self.unet = UNet(contract.action_dim, config.condition_dim(contract), config, self.method.stops)

    def encode_image(self, camera: str, images: Tensor) -> Tensor:
        """Images of one camera, uint8 (B, H, W, 3) -> features (B, 64). Takes the contract's central crop."""
        return self.encoders[camera](network_input(images, self.contract.crop))

    def encode(self, batch: Batch) -> Tensor:
        """Windows -> conditions (B, condition)."""
        windows = batch.state.shape[:2]
        features = [self.encode_image(c, batch.images[c].flatten(0, 1)).unflatten(0, windows) for c in self.contract.cameras]
        return self.condition(features, batch.state)

    def sample(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Conditions (B, condition) -> action chunks (B, horizon, action), not normalised."""
        return self.sample_with(self.unet, condition, generator)

    @torch.no_grad()
    def predict_action(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Windows -> action chunks (B, horizon, action), float32."""
        return self.sample(self.encode(batch), generator).float()

    def compute_loss(self, batch: Batch, generator: torch.Generator | None = None, noise_samples: int = 1) -> Tensor:
        """The method's training loss, over ``noise_samples`` draws of step and noise for each window.

        Several draws share one encoding of the images, which costs most of a step.
        """
        assert batch.action is not None and isinstance(self.method, TrainedMethod)
        condition = self.encode(batch).repeat_interleave(noise_samples, 0)
        clean = self.normalize_action(batch.action).repeat_interleave(noise_samples, 0)
        return self.method.compute_loss(self.diffusion, self.unet, clean, condition, generator)
