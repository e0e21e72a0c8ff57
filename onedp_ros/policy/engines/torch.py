"""Eager PyTorch, on the device of the policy: what the other engines must agree with."""

from __future__ import annotations

from torch import Tensor

from onedp_ros.policy.engines.base import Engine
from onedp_ros.policy.policies import Policy


class TorchEngine(Engine):
    priority = 0

    def __init__(self, policy: Policy) -> None:
        self.policy, self.device = policy, policy.device

    @classmethod
    def start(cls, policy: Policy, threads: int) -> TorchEngine:
        return cls(policy)

    def encode(self, camera: str, images: Tensor) -> Tensor:
        return self.policy.encode_image(camera, images)

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self.policy.unet(sample, step, condition)


ENGINE = TorchEngine
