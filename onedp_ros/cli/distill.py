"""Distil a teacher into a one-step generator."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.learning.distill import main

    return int(main(argv) or 0)
