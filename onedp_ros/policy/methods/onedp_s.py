"""OneDP-S, the stochastic one-step generator: ``A = G_theta(z, O)``.

theta descends on ``E[w(k) (s_psi(A^k) - s_phi(A^k)) dA^k/dtheta]``, with the teacher's score s_phi and the score s_psi of a network
that learns the generator's distribution alongside: the gradient of the KL divergence between the two diffused distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from onedp_ros.policy.methods.one_step_generator import OneStepGenerator


class OneDPS(OneStepGenerator):
    trains_score = True
    z_scale: ClassVar[float] = 0.1
    """z is this times N(0, I). The paper does not say how z is scaled. What the network does not recognise as noise at step 65
    reaches the action, 1.7 times larger: at scale 1 a copy of the teacher had twice the error that it has at 0.1, and a short
    distillation did not remove it. The generator can amplify a small z wherever the score asks for more spread."""

    def start(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return self.z_scale * super().start(shape, generator, device)


METHOD = OneDPS
