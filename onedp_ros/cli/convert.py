"""Turn recordings into a training set."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.data.convert import main

    return int(main(argv) or 0)
