"""OneDP-D, the deterministic one-step generator: ``A = G_theta(O)``, that is z = 0.

The generator's distribution is a point, whose diffused score is ``-eps / sigma_k``: no score network is needed, and theta descends
on ``E[(w(k) / sigma_k) (eps_phi(A^k, k) - eps) dA^k/dtheta]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onedp_ros.policy.methods.one_step_generator import OneStepGenerator


class OneDPD(OneStepGenerator):
    trains_score = False

    def start(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.zeros(*shape, device=device)


METHOD = OneDPD
