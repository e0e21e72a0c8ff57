"""How far an engine's actions are from eager PyTorch's, and how long it takes, on fixed inputs."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from onedp_ros.policy.diffusion import GENERATOR_STEP, Denoiser
from onedp_ros.policy.engines.base import Engine
from onedp_ros.policy.engines.torch import TorchEngine
from onedp_ros.policy.policies import Policy, Sampler

PARITY_BOUND = 0.05
"""Greatest difference from eager PyTorch that is accepted, in normalised action units (for a position, 1 is half the data's range).
bfloat16 reaches about 0.01."""

WINDOWS = 4


def parity(policy: Policy, engine: Engine) -> float:
    """Greatest difference between the actions of ``engine`` and of eager PyTorch, on fixed inputs with one network evaluation.

    In normalised action units. NaN when either outputs NaN.
    """
    return difference(example_actions(policy, TorchEngine(policy)), example_actions(policy, engine))


def difference(some: Tensor, other: Tensor) -> float:
    """Greatest absolute difference of two tensors."""
    return float((some - other).abs().max())


@torch.inference_mode()
def example_actions(policy: Sampler, engine: Engine) -> Tensor:
    """Normalised actions (windows, horizon, action) of ``engine``, on fixed inputs with one network evaluation."""
    sampler = Sampler(policy.contract, policy.config, policy.normalizer, policy.method.name).to(engine.device)
    actions = []
    for inputs in zip(*(i.split(1) for i in _example(policy, WINDOWS)), strict=True):
        *images, state, z = (i.to(engine.device) for i in inputs)
        features = [engine.encode(c, i) for c, i in zip(policy.contract.cameras, images, strict=True)]
        repeated = [f[:, None].expand(-1, policy.contract.n_obs_steps, -1) for f in features]
        denoise = _denoiser(sampler, engine)
        actions.append(sampler.diffusion.generate(denoise, z, sampler.condition(repeated, state)).clamp(-1, 1).cpu())
    return torch.cat(actions)


def _denoiser(policy: Sampler, engine: Engine) -> Denoiser:
    """The engine's U-Net, which stops where it starts if it is to be told."""

    def denoise(sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return engine.denoise(sample, step[:, None].expand(-1, 2) if policy.method.stops else step, condition)

    return denoise


def _example(policy: Sampler, windows: int) -> list[Tensor]:
    """Fixed inputs: smooth images for each camera, states within the data's range, z."""
    random = torch.Generator().manual_seed(0)
    c = policy.contract
    inputs: list[Tensor] = []
    for camera in c.cameras.values():
        coarse = 255 * torch.rand(windows, 3, 6, 8, generator=random)
        smooth = nn.functional.interpolate(coarse, (camera.height, camera.width), mode="bilinear")
        inputs.append(smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous())
    normal = 2 * torch.rand(windows, c.n_obs_steps, c.state_dim, generator=random) - 1
    inputs.append(normal * torch.from_numpy(policy.normalizer.state_scale) + torch.from_numpy(policy.normalizer.state_offset))
    inputs.append(torch.randn(windows, c.horizon, c.action_dim, generator=random))
    return inputs


@torch.inference_mode()
def measure_seconds(policy: Sampler, engine: Engine, repeats: int = 15) -> float:
    """Minimum time (s) for encoding a frame of each camera and evaluating the U-Net once: other load only adds to it."""
    *images, _, z = (i[:1].to(engine.device) for i in _example(policy, 1))
    step, denoise = torch.full((1,), GENERATOR_STEP, device=engine.device), _denoiser(policy, engine)
    condition = torch.zeros(1, policy.config.condition_dim(policy.contract), device=engine.device)
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        for camera, image in zip(policy.contract.cameras, images, strict=True):
            engine.encode(camera, image)
        denoise(z, step, condition).cpu()
        times.append(time.perf_counter() - begin)
    return min(times[3:])
