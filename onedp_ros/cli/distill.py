"""Distil a diffusion policy, the teacher, into a one-step generator."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import add_training_arguments
from onedp_ros.graph.processes import DEFAULT_METHOD
from onedp_ros.policy.methods import describe_methods, find_method
from onedp_ros.resources import task_folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp distill", description=__doc__)
    add_training_arguments(parser)
    method_help = f"a distilled one of {describe_methods()} (default {DEFAULT_METHOD})"
    parser.add_argument("--method", default=DEFAULT_METHOD, help=method_help)
    parser.add_argument("--teacher", type=Path, help="checkpoint of the pre-trained policy (default out/<task>/teacher)")
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for the checkpoint, logs and distill.json (default out/<task>/<method>, for cp1 and cp3 out/<task>/cp)",
    )
    args = parser.parse_args(argv)

    from onedp_ros.contract import task_contract
    from onedp_ros.learning.distill import distill, distilled_method
    from onedp_ros.learning.train import prepare
    from onedp_ros.settings import from_mapping

    method = distilled_method(args.method)
    data, _, settings = prepare(args, method.weights)
    teacher = args.teacher or task_folder(args.task) / find_method(method.teacher).weights
    out = args.out or task_folder(args.task) / method.weights
    contract = task_contract(args.task)
    result = distill(teacher, data, method.name, out, from_mapping(method.settings, method.name, settings), args.resume, contract)
    print(json.dumps({k: v for k, v in result.items() if k != "distill"}, indent=2))
    return 0
