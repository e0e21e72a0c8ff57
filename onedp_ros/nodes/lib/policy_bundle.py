"""Finds and loads policies for policy_node. PyTorch is imported only when a policy is loaded: that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def load_bundle(path: str, *, progress: Callable[[str], None], **options: Any) -> Any:
    """:func:`onedp_ros.policy.predictor.load_predictor`."""
    progress("importing PyTorch")
    from onedp_ros.policy.predictor import load_predictor

    return load_predictor(path, progress=progress, **options)


def find_bundle(task: str, method: str, progress: Callable[[str], None]) -> str:
    """Path of the released policy: :func:`onedp_ros.policy.checkpoint.find_released`."""
    progress("importing PyTorch")
    from onedp_ros.policy.checkpoint import find_released

    return str(find_released(task, method))


def suggest_faster_policy(predictor: Any) -> str:
    """Suggest how to make a slow policy faster, largest gain first."""
    if predictor.nfe > 1:
        return f"use onedp_s, which evaluates the network once instead of {predictor.nfe} times"
    if predictor.engine == "torch":
        return "use engine auto, give it more threads, or train a smaller network"
    return "give it more threads, stop other programs on this machine, or train a smaller network (onedp bench compares)"
