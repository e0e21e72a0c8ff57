"""The interface of an inference engine."""

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
    """``auto`` tries the highest first."""
    on_gpu: ClassVar[bool] = False
    """When a GPU engine is available, ``auto`` tries no CPU engine but eager PyTorch."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Python distributions whose versions must be the same for an :meth:`export` to be restored."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether the engine can run here."""
        return True

    @classmethod
    @abstractmethod
    def start(cls, policy: Policy, threads: int) -> Engine:
        """Start the engine for a policy, with ``threads`` CPU threads. EngineError when it cannot run here; names the remedy."""

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
        """Start from what :meth:`export` returned on the same machine, with the same versions."""
        raise EngineError(f"{cls.__name__} cannot be restored")
