"""OneDP-D on EDM's process, distilled from ``dp_edm``: ``A = D_theta(0, 2.5)``; theta descends on ``E[(A - D_phi(A^sigma, sigma))
dA/dtheta]``, with the log-normal sigma of training."""

from __future__ import annotations

from onedp_ros.policy.edm import EDM
from onedp_ros.policy.methods.one_step_generator import OneDPSettings
from onedp_ros.policy.methods.onedp_d import OneDPD


class OneDPDEDM(OneDPD):
    diffusion, teacher, settings = EDM, "dp_edm10", OneDPSettings


METHOD = OneDPDEDM
