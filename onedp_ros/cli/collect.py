"""Record demonstrations of the scripted expert in simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import add_task_argument
from onedp_ros.parallel import add_worker_options
from onedp_ros.resources import task_folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp collect", description=__doc__)
    add_task_argument(parser)
    parser.add_argument("--episodes", type=int, default=100, help="successful episodes to record (default 100)")
    parser.add_argument("--out", type=Path, default=None, help="folder of bags (default out/<task>/bags)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--recoveries", type=float, default=0.5, help="fraction of episodes that start off the expert's path")
    parser.add_argument("--policy", type=Path, help="policy to improve: those episodes start with its own mistakes")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="task option; may be repeated")
    parser.add_argument("--keep-unsuccessful", action="store_true", help="also keep failed episodes, marked as such")
    add_worker_options(parser)
    args = parser.parse_args(argv)

    from onedp_ros.tasks.base import read_options
    from onedp_ros.tasks.collect import collect

    out = args.out or task_folder(args.task) / "bags"
    summary = collect(
        out,
        args.episodes,
        task=args.task,
        seed=args.seed,
        recoveries=args.recoveries,
        options=read_options(args.option),
        policy=args.policy,
        keep_unsuccessful=args.keep_unsuccessful,
        jobs=args.jobs,
        scheduler=args.scheduler,
    )
    print(f"{summary['kept']} episodes of {summary['attempts']} attempts in {out}; failures: {summary['failures'] or 'none'}")
    return 0
