"""Measure the success of a policy in the twin."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.evaluation.rollout import main

    return int(main(argv) or 0)
