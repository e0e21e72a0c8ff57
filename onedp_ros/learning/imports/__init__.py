"""Formats of other programs' checkpoints that ``onedp import`` reads. One file each, named as its program, which defines
``read_policy``; see :data:`.base.ReadPolicy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onedp_ros.registry import Registry

if TYPE_CHECKING:
    from onedp_ros.learning.imports.base import ReadPolicy

IMPORTS: Registry[ReadPolicy] = Registry(
    "checkpoint format", __name__, "read_policy", besides=("base", "diffusion_policy_settings", "inert_pickle", "torch_file")
)
