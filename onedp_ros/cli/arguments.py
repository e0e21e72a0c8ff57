"""Arguments shared by the commands that start a graph, simulate or train."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onedp_ros.graph.options import PLACE, TASK, Option
from onedp_ros.graph.processes import NodeProcess, describe_network, graph_environment, placed


def add_task_argument(parser: argparse.ArgumentParser) -> None:
    """Add the task argument of a command that simulates the task."""
    from onedp_ros.tasks import TASKS

    names = ", ".join(TASKS.names())
    parser.add_argument("task", help=f"name of a file in config/tasks, or path of a task file, of one of the tasks {names}")


def graph_parser(command: str, description: str | None, *options: Mapping[str, Option]) -> argparse.ArgumentParser:
    """A parser for a task, ``options`` and :data:`~onedp_ros.graph.options.PLACE`."""
    parser = argparse.ArgumentParser(prog=f"onedp {command}", description=description)
    parser.add_argument("task", help=TASK)
    for group in (*options, PLACE):
        add_options(parser, group)
    return parser


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Add each option as ``--name``, with its default in the help text."""
    for name, option in options.items():
        default = "" if option.default in (None, "") else f" (default {option.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=option.kind, default=option.default, help=option.text + default)


def values(args: argparse.Namespace, *options: Iterable[str]) -> dict[str, Any]:
    """The parsed values of the options, by name."""
    return {name: getattr(args, name) for names in options for name in names}


def place(args: argparse.Namespace, processes: Sequence[NodeProcess]) -> list[NodeProcess]:
    """The processes with the :data:`~onedp_ros.graph.options.PLACE` options applied. Gives this process the graph's environment
    and prints who can reach it."""
    os.environ.update(graph_environment(os.environ, args.network))
    print(describe_network(os.environ), flush=True)
    return placed(processes, namespace=args.namespace, params_file=args.params_file, log_level=args.log_level)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``onedp train`` and ``onedp distill``."""
    parser.add_argument("task", help="name of a file in config/tasks, or path of a task file; names the default paths")
    parser.add_argument("--data", type=Path, help="replay buffer made by 'onedp convert' (default out/<task>/data.zarr)")
    parser.add_argument("--config", type=Path, help="network and settings (default: config/train/compact.yaml)")
    parser.add_argument("--steps", type=int, help="gradient steps; overrides the configuration")
    parser.add_argument(
        "--color-jitter", type=float, help="random colour augmentation, from 0 (none) to 1; overrides the configuration"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    parser.add_argument("--threads", type=int, help="CPU threads")
