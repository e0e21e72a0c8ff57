"""Measure a policy's success rate in simulation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import add_options, add_task_argument
from onedp_ros.graph.options import POLICY
from onedp_ros.parallel import add_worker_options


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp evaluate", description=__doc__)
    add_task_argument(parser)
    add_options(parser, {name: option for name, option in POLICY.items() if name != "seed"})
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, help="first seed (default: the task's first evaluation seed)")
    parser.add_argument("--action-steps", type=int, help="actions of each chunk to execute (default: the contract's)")
    parser.add_argument(
        "--lead",
        type=float,
        help="how far ahead of the clock chunks are sampled, s (default: 0; with --latency 0.18, as live)",
    )
    parser.add_argument(
        "--latency",
        help="keep simulating while the policy predicts, for this long, s; measured: for as long as it takes here; v100: as on the "
        "paper's V100 (default: the simulation waits)",
    )
    parser.add_argument("--handover", help="with --latency: hand-over between chunks, as action_node's parameter of that name")
    parser.add_argument("--max-time", type=float, help="time limit of an episode, simulated, s (default: the task's)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="task option; may be repeated")
    add_worker_options(parser)
    parser.add_argument(
        "--json",
        type=Path,
        help="write the results here, and a plot of the starts beside it; an interrupted evaluation continues when repeated",
    )
    args = parser.parse_args(argv)

    from onedp_ros.contract import task_contract
    from onedp_ros.evaluation.rollout import evaluate, table
    from onedp_ros.policy.checkpoint import find_released
    from onedp_ros.tasks import TASKS
    from onedp_ros.tasks.base import read_options

    first = TASKS.get(task_contract(args.task).task).evaluation_seeds
    if args.seed is not None and args.seed < first:
        parser.error(f"--seed {args.seed} may be training data; evaluation seeds start at {first}")
    model = Path(args.model) if args.model else find_released(args.task, args.method)
    summary = evaluate(
        model,
        task=args.task,
        method=args.method,
        engine=args.engine,
        episodes=args.episodes,
        seed=args.seed,
        action_steps=args.action_steps,
        lead=args.lead,
        latency=args.latency,
        handover=args.handover,
        max_time=args.max_time,
        options=read_options(args.option),
        jobs=args.jobs,
        scheduler=args.scheduler,
        partial=args.json and args.json.with_name(args.json.name + ".partial"),
    )
    print(table(summary))
    if args.json:
        from onedp_ros.evaluation.figures import plot_starts

        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        written = [args.json]
        if plot_starts(summary, args.json.with_suffix(".png")):
            written.append(args.json.with_suffix(".png"))
        print(f"written {' and '.join(map(str, written))}")
    return 0
