"""What an engine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from onedp_ros.policy.policies import Policy


class EngineError(RuntimeError):
    """An engine that is not available here or does not agree with eager PyTorch; the message says what to use instead."""


class Engine(ABC):
    """Runs the networks of a policy on one window. Tensors are on ``device``.

    An engine is used in the thread that first called it.
    """

    device: torch.device
    priority: ClassVar[int]
    """Where several can be used, ``auto`` tries the highest first."""
    on_gpu: ClassVar[bool] = False
    """Where an engine on a GPU can be used, ``auto`` does not try those on the CPU, but for eager PyTorch."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides whether what :meth:`export` gave can be restored."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether the engine can run here."""
        return True

    @classmethod
    @abstractmethod
    def start(cls, policy: Policy, threads: int) -> Engine:
        """The engine for a policy, with so many CPU threads. EngineError when it cannot run here; names the remedy."""

    @abstractmethod
    def encode(self, camera: str, images: Tensor) -> Tensor:
        """An image, uint8 (1, H, W, 3), of the contract's size -> features (1, 64)."""

    @abstractmethod
    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """As the U-Net's forward, batch 1."""

    def export(self) -> Mapping[str, bytes]:
        """The compiled networks by name, for :meth:`restore`; empty: the engine starts from the policy every time."""
        return {}

    @classmethod
    def restore(cls, networks: Mapping[str, bytes], threads: int) -> Engine:
        """From what :meth:`export` gave, on the same machine, with the same versions."""
        raise EngineError(f"{cls.__name__} is not kept")
