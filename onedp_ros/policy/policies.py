"""Every method behind one interface: DDPM and DDIM sampling of a diffusion policy, and the one-step generators of OneDP.

All share the networks, the normaliser and the encoding of observations; they differ in :meth:`Policy.sample`. A policy is used in
three stages so that a camera frame is encoded once: ``encode_image``, ``condition``, ``sample``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onedp_ros.contract import Contract, Normalizer
from onedp_ros.policy.diffusion import STEPS, Denoiser, Diffusion, denoising_loss, generate, sample_ddim, sample_ddpm
from onedp_ros.policy.networks import ImageEncoder, NetworkConfig, UNet

Z_SCALE = 0.1
"""z of OneDP-S is this times N(0, I). The paper does not say how z is scaled. What the network does not recognise as noise at
step 65 reaches the action, 1.7 times larger: at scale 1 a copy of the teacher had twice the error that it has at 0.1, and a short
distillation did not remove it. The generator can amplify a small z wherever the score asks for more spread."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Training windows. ``images``: uint8 (B, n_obs, H, W, 3) by camera, whole or cropped; ``state`` (B, n_obs, 9);
    ``action`` (B, horizon, 10), index ``n_obs - 1`` being the action of the newest observation's step. Not normalised."""

    images: Mapping[str, Tensor]
    state: Tensor
    action: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        images = {name: image.to(device, non_blocking=True) for name, image in self.images.items()}
        action = None if self.action is None else self.action.to(device, non_blocking=True)
        return Batch(images, self.state.to(device, non_blocking=True), action)


def network_input(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """Images uint8 (B, H, W, 3) -> their centres of size ``crop``, (B, 3, height, width) in [-1, 1]."""
    height, width = crop
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    cut = images[:, top : top + height, left : left + width]
    # The permuted view of (B, H, W, C) is already in the channels-last order that convolutions like best.
    return cut.permute(0, 3, 1, 2).float() * (2 / 255) - 1


class Sampler(nn.Module):
    """What surrounds the networks of a policy: normalisation and sampling. The networks themselves may run on an inference engine.

    Args:
        contract: what the policy sees and says.
        config: network sizes.
        normalizer: of the training data.
        method: ``dp_ddpm100``, ``dp_ddimN`` (N network evaluations, 1 to 100), ``onedp_s`` or ``onedp_d``.
    """

    state_offset: Tensor
    state_scale: Tensor
    action_offset: Tensor
    action_scale: Tensor

    def __init__(self, contract: Contract, config: NetworkConfig, normalizer: Normalizer, method: str = "dp_ddpm100") -> None:
        super().__init__()
        self.contract, self.config, self.normalizer = contract, config, normalizer
        evaluations(method)
        self.method = method
        self.diffusion = Diffusion()
        for field in dataclasses.fields(normalizer):
            self.register_buffer(field.name, torch.from_numpy(getattr(normalizer, field.name)), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.diffusion.alpha.device

    @property
    def nfe(self) -> int:
        """Network evaluations of one prediction."""
        return evaluations(self.method)

    def condition(self, features: Tensor, state: Tensor) -> Tensor:
        """Features (B, n_obs, 64 cameras), in the contract's order of cameras, and raw states (B, n_obs, 9) -> (B, n_obs 137)."""
        normal = (state - self.state_offset) / self.state_scale
        return torch.cat([features, normal.to(features.dtype)], dim=-1).flatten(1)

    def normalize_action(self, action: Tensor) -> Tensor:
        return (action - self.action_offset) / self.action_scale

    def sample_with(self, denoise: Denoiser, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Conditions (B, n_obs 137) -> action chunks (B, horizon, 10) in metres and 6D rotations; ``denoise`` runs the U-Net."""
        start = self.start(len(condition), generator)
        if self.method.startswith("onedp"):
            action = generate(self.diffusion, denoise, start, condition).clamp(-1, 1)
        elif self.method == "dp_ddpm100":
            action = sample_ddpm(denoise, start, condition, generator)
        else:
            action = sample_ddim(denoise, start, condition, self.nfe)
        return action * self.action_scale + self.action_offset

    def start(self, count: int, generator: torch.Generator | None = None, method: str | None = None) -> Tensor:
        """What sampling with ``method`` (this policy's) begins from, (count, horizon, 10): noise N(0, I), for OneDP-S ``Z_SCALE``
        times that, for OneDP-D zeros."""
        method = method or self.method
        shape = (count, self.contract.horizon, self.contract.action_dim)
        if method == "onedp_d":
            return torch.zeros(shape, device=self.device)
        noise = torch.randn(shape, generator=generator, device=self.device)
        return Z_SCALE * noise if method == "onedp_s" else noise


class Policy(Sampler):
    """A policy of one contract and network, with its networks. Arguments as of :class:`Sampler`."""

    def __init__(self, contract: Contract, config: NetworkConfig, normalizer: Normalizer, method: str = "dp_ddpm100") -> None:
        super().__init__(contract, config, normalizer, method)
        self.encoders = nn.ModuleDict({name: ImageEncoder(config) for name in contract.cameras})
        observation = config.features * len(contract.cameras) + contract.state_dim
        self.unet = UNet(contract.action_dim, contract.n_obs_steps * observation, config)

    def encode_image(self, camera: str, images: Tensor) -> Tensor:
        """Images of one camera, uint8 (B, H, W, 3) -> features (B, 64). What lies outside the contract's central crop is cut."""
        return self.encoders[camera](network_input(images, self.contract.crop))

    def encode(self, batch: Batch) -> Tensor:
        """Windows -> conditions (B, n_obs 137)."""
        features = [self.encode_image(c, batch.images[c].flatten(0, 1)) for c in self.contract.cameras]
        return self.condition(torch.cat(features, dim=-1).unflatten(0, batch.state.shape[:2]), batch.state)

    def sample(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Conditions (B, n_obs 137) -> action chunks (B, horizon, 10) in metres and 6D rotations."""
        return self.sample_with(self.unet, condition, generator)

    @torch.no_grad()
    def predict_action(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Windows -> action chunks (B, horizon, 10), float32."""
        return self.sample(self.encode(batch), generator).float()

    def compute_loss(self, batch: Batch, generator: torch.Generator | None = None, noise_samples: int = 1) -> Tensor:
        """Mean squared error of the predicted noise, over ``noise_samples`` draws of step and noise for each window.

        Several draws share one encoding of the images, which costs most of a step.
        """
        assert batch.action is not None
        condition = self.encode(batch).repeat_interleave(noise_samples, 0)
        clean = self.normalize_action(batch.action).repeat_interleave(noise_samples, 0)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        step = torch.randint(STEPS, (len(clean),), generator=generator, device=clean.device)
        return denoising_loss(self.diffusion, self.unet, clean, condition, step, noise)

    forward = compute_loss  # what distributed wrappers call


def evaluations(method: str) -> int:
    """Network evaluations of one prediction (NFE). ValueError for an unknown method."""
    if method in ("onedp_s", "onedp_d"):
        return 1
    if method == "dp_ddpm100":
        return STEPS
    if (match := re.fullmatch(r"dp_ddim(\d+)", method)) and 1 <= int(match[1]) <= STEPS:
        return int(match[1])
    raise ValueError(f"unknown method '{method}', expected dp_ddpm100, dp_ddimN (N from 1 to {STEPS}), onedp_s or onedp_d")
