"""What commands that start a graph have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onedp_ros.graph.options import PLACE, TASK, Option
from onedp_ros.graph.processes import NodeProcess, describe_network, graph_environment, placed


def graph_parser(command: str, description: str | None, *options: Mapping[str, Option]) -> argparse.ArgumentParser:
    """A parser for a task, ``options``, and :data:`~onedp_ros.graph.options.PLACE`."""
    parser = argparse.ArgumentParser(prog=f"onedp {command}", description=description)
    parser.add_argument("task", help=TASK)
    for group in (*options, PLACE):
        add_options(parser, group)
    return parser


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Each option as ``--name``, with its default."""
    for name, option in options.items():
        default = "" if option.default in (None, "") else f" (default {option.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=option.kind, default=option.default, help=option.text + default)


def values(args: argparse.Namespace, *options: Iterable[str]) -> dict[str, Any]:
    """What was given for the options, by name."""
    return {name: getattr(args, name) for names in options for name in names}


def place(args: argparse.Namespace, processes: Sequence[NodeProcess]) -> list[NodeProcess]:
    """The processes as :data:`~onedp_ros.graph.options.PLACE` was given. Sets this process's environment to that of the graph, and
    tells who can reach it."""
    os.environ.update(graph_environment(os.environ, args.network))
    print(describe_network(os.environ), flush=True)
    return placed(processes, namespace=args.namespace, params_file=args.params_file, log_level=args.log_level)
