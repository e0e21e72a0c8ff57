"""Turn a checkpoint into a small bundle with a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp release", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="for example models/<task>/<method>")
    parser.add_argument("--evaluation", type=Path, action="append", default=[], help="JSON of onedp evaluate; may be repeated")
    parser.add_argument("--command", action="append", default=[], help="a command that produced it; may be repeated")
    args = parser.parse_args(argv)

    from onedp_ros.learning.release import release

    print(f"written {release(args.checkpoint, args.out, args.evaluation, args.command)}")
    return 0
