"""The interface of a method: how a policy is sampled, and how it is trained on demonstrations or distilled from a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onedp_ros.policy.diffusion import CosineDiffusion, Denoiser, Diffusion
from onedp_ros.policy.methods import METHODS
from onedp_ros.policy.methods.settings import PretrainingSettings, TrainingSettings

Average = Callable[[Sequence[nn.Parameter]], None]
"""Averages the parameters' gradients over all training processes, in place."""


class Method(ABC):
    """A sampler. Chunks are (B, horizon, action), normalised to [-1, 1]; conditions (B, condition).

    Args:
        name: for example ``dp_ddim10``.
        number: the trailing number of the name, one of ``numbers``; None when those are None.
    """

    numbers: ClassVar[range | None] = None
    diffusion: ClassVar[type[Diffusion]] = CosineDiffusion
    """The process that its networks were trained on."""
    stops: ClassVar[bool] = False
    """Whether its U-Net is also told the step at which to stop: step inputs are then (B, 2)."""

    def __init__(self, name: str, number: int | None = None) -> None:
        self.name, self.number = name, number

    @property
    def weights(self) -> str:
        """Name of the weights it uses, under which they are released: ``models/<task>/<weights>``. Methods with the same weights
        can use each other's checkpoints."""
        return self.name

    @property
    def nfe(self) -> int:
        """Network evaluations of one prediction."""
        return 1

    def start(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """The initial sample: noise N(0, I) of ``shape``."""
        return torch.randn(*shape, generator=generator, device=device)

    @abstractmethod
    def sample(
        self, diffusion: Diffusion, denoise: Denoiser, start: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """``start`` and conditions -> chunks; ``denoise`` runs the U-Net."""


class TrainedMethod(Method):
    """A method that is trained on demonstrations."""

    settings: ClassVar[type[PretrainingSettings]] = PretrainingSettings

    def compute_loss(
        self, diffusion: Diffusion, denoise: Denoiser, clean: Tensor, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The training loss (a scalar) of recorded chunks. Default: the process's denoising loss at random levels."""
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return diffusion.loss(denoise, clean, condition, diffusion.draw(len(clean), generator, clean.device), noise)


class Distillation(ABC):
    """A distillation in progress.

    Attributes:
        networks: those trained besides the generator, by name.
        optimizers: by name.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]

    @abstractmethod
    def update(
        self,
        step: int,
        start: Tensor,
        clean: Tensor,
        condition: Tensor,
        teacher_condition: Tensor,
        random: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """One update of all networks.

        Args:
            step: updates before this one.
            start: the generator's input (B, horizon, action), from :meth:`Method.start`.
            clean: the recorded chunks (B, horizon, action), normalised.
            condition: (B, condition) from the generator's encoders, with gradients.
            teacher_condition: (B, condition) from the teacher's frozen encoders.
            random: source of timesteps and noise.

        Returns:
            Values to log.
        """


class DistilledMethod(Method):
    """A generator that is distilled from a teacher and initialised as its copy."""

    teacher: ClassVar[str] = "dp_ddim10"
    """Method by which the teacher is sampled for comparison with the generator; the teacher must have this method's weights."""
    settings: ClassVar[type[TrainingSettings]] = TrainingSettings

    @abstractmethod
    def begin_distillation(
        self,
        diffusion: Diffusion,
        teacher: nn.Module,
        generator: nn.Module,
        encoders: Sequence[nn.Parameter],
        settings: Any,
        average: Average,
    ) -> Distillation:
        """Start training ``generator`` and its ``encoders`` from the frozen ``teacher``, a network of the same sizes.
        ``settings`` is an instance of the class attribute :attr:`settings`."""


def distilled_methods() -> list[str]:
    """Names of the methods that are distilled from a teacher."""
    return [name for name in METHODS.names() if issubclass(METHODS.get(name), DistilledMethod)]
