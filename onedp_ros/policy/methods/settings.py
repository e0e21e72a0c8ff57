"""Training settings: the sections of a ``config/train`` file."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Settings of every training. ``batch_size``: over all processes; ``noise_samples``: drawn for each encoded window, since
    encoding costs most; ``color_jitter``: strength of random colour augmentation, 0 (none) to 1. ValueError names a setting that is
    out of range."""

    steps: int
    batch_size: int = 64
    noise_samples: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = float("inf")
    ema_power: float = 0.75
    ema_max: float = 0.9999
    mixed_precision: str = "no"
    save_every: int = 1000
    seed: int = 0
    color_jitter: float = 0.0

    positive: ClassVar[tuple[str, ...]] = ("steps", "batch_size", "noise_samples", "max_grad_norm", "save_every")

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        for name in self.positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision is '{self.mixed_precision}', expected 'no' or 'bf16'")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter is {self.color_jitter}, expected 0 (the images as they are) to 1")


@dataclasses.dataclass(frozen=True)
class PretrainingSettings(TrainingSettings):
    """Settings of training on demonstrations; the defaults are Diffusion Policy's. ``accumulation``: batches per optimiser step."""

    accumulation: int = 1
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    mixed_precision: str = "bf16"
    save_every: int = 5000
    init: str = ""
    """Checkpoint whose weights and normaliser to begin with; empty: none. The normaliser is widened to the data's range."""
    encoders: str = ""
    """Checkpoint, of any task, whose image encoders to begin with, for the cameras that both have; empty: none."""

    positive: ClassVar[tuple[str, ...]] = (*TrainingSettings.positive, "accumulation", "learning_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init and self.encoders:
            raise ValueError(f"both init ({self.init}) and encoders ({self.encoders}) are given: init has encoders of its own")


def learning_rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """0 to 1 over the warm-up, then half a cosine down to 0 at the last of ``steps``."""
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
