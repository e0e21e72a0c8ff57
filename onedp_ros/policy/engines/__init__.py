"""Inference engines, which run the networks of a policy. One file each, which defines ``ENGINE``, a subclass of
:class:`.base.Engine`.

Launch files list the names on the system's Python, so nothing here imports PyTorch until an engine is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onedp_ros.registry import Registry

if TYPE_CHECKING:
    from onedp_ros.policy.engines.base import Engine

ENGINES: Registry[type[Engine]] = Registry("engine", __name__, "ENGINE", besides=("base",))
AUTO = "auto"  # the fastest that agrees with eager PyTorch


def describe_engines() -> str:
    """The available names, for help texts."""
    return f"{AUTO}, {', '.join(ENGINES.names())}"
