"""Policies as policy_node finds and loads them. PyTorch is imported when a policy is asked for: it takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def load_bundle(path: str, *, progress: Callable[[str], None], **options: Any) -> Any:
    """:func:`onedp_ros.policy.predictor.load_predictor`."""
    progress("importing PyTorch")
    from onedp_ros.policy.predictor import load_predictor

    return load_predictor(path, progress=progress, **options)


def find_bundle(task: str, method: str, progress: Callable[[str], None]) -> str:
    """Path of the released policy, as of :func:`onedp_ros.policy.checkpoint.find_released`."""
    progress("importing PyTorch")
    from onedp_ros.policy.checkpoint import find_released

    return str(find_released(task, method))


def suggest_faster_policy(predictor: Any) -> str:
    """What makes a slow policy faster, the greatest gain first."""
    if predictor.nfe > 1:
        return f"take onedp_s, which evaluates the network once and not {predictor.nfe} times"
    if predictor.engine == "torch":
        return "take engine auto, give it more threads, or train a smaller network"
    return "give it more threads, end other programs on this machine, or train a smaller network (onedp bench compares)"
