"""Turn a checkpoint into a small bundle with a model card."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.learning.release import main

    return int(main(argv) or 0)
