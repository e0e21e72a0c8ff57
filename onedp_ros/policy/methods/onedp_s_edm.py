"""OneDP-S on EDM's process, distilled from ``dp_edm``: ``A = D_theta(2.5 z, 2.5)``; theta descends on ``E[(D_psi - D_phi)(A^sigma,
sigma) dA/dtheta]``, with the log-normal sigma of training.

Here z is N(0, I): the preconditioning passes only a tenth of it on to the action.
"""

from __future__ import annotations

from onedp_ros.policy.edm import EDM
from onedp_ros.policy.methods.one_step_generator import OneDPSettings
from onedp_ros.policy.methods.onedp_s import OneDPS


class OneDPSEDM(OneDPS):
    diffusion, teacher, settings = EDM, "dp_edm10", OneDPSettings
    z_scale = 1.0


METHOD = OneDPSEDM
