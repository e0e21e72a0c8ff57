"""Methods: how a policy is trained and sampled. One file each, which defines ``METHOD``, a subclass of :class:`.base.Method`.

The file's name is the method's. A trailing number is its parameter: ``dp_ddim10`` is ``dp_ddim.py`` with ten steps. Launch files
list the names on the system's Python, so nothing here imports PyTorch until a method is looked up.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onedp_ros.registry import Registry, UnknownNameError

if TYPE_CHECKING:
    from onedp_ros.policy.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method", __name__, "METHOD", besides=("base", "diffusion_policy", "one_step_generator", "settings")
)


def describe_methods() -> str:
    """The available names, for help texts."""
    return f"{', '.join(METHODS.names())}; with a number where it takes one, such as dp_ddim10"


def split_name(name: str) -> tuple[str, int | None]:
    """``dp_ddim10`` -> (``dp_ddim``, 10). A name that is registered as it is has no number.

    Raises:
        UnknownNameError: no such method. Whether the number is allowed, only :func:`find_method` knows.
    """
    if name in METHODS:
        return name, None
    if (parts := re.fullmatch(r"(.*?)([1-9]\d*)", name)) and parts[1] in METHODS:
        return parts[1], int(parts[2])
    METHODS.get(name)  # raises
    raise AssertionError(name)


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        UnknownNameError: there is none, or not with this number; lists the valid ones.
    """
    family, number = split_name(name)
    kind = METHODS.get(family)
    allowed = kind.numbers
    if (number is None) != (allowed is None) or (allowed is not None and number not in allowed):
        expected = family
        if allowed is not None:
            few = len(allowed) <= 3
            expected = (
                " or ".join(f"{family}{n}" for n in allowed) if few else f"{family}N with N from {allowed[0]} to {allowed[-1]}"
            )
        raise UnknownNameError(f"unknown method '{name}', expected {expected}")
    return kind(name, number)
