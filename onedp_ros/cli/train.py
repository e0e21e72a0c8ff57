"""Train a diffusion policy, the teacher."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import add_training_arguments
from onedp_ros.policy.methods import describe_methods
from onedp_ros.resources import task_folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp train", description=__doc__)
    add_training_arguments(parser)
    parser.add_argument("--method", help=f"a method that is trained, one of {describe_methods()} (default: the teacher's)")
    parser.add_argument("--out", type=Path, help="directory for the checkpoint, logs and train.json (default out/<task>/teacher)")
    parser.add_argument("--init", type=Path, help="checkpoint to begin with, such as a released teacher")
    parser.add_argument("--encoders", type=Path, help="checkpoint of any task, whose image encoders to begin with")
    parser.add_argument("--learning-rate", type=float, help="overrides the configuration")
    args = parser.parse_args(argv)

    from onedp_ros.contract import task_contract
    from onedp_ros.learning.train import METHOD, prepare, read_section, train, trained_method
    from onedp_ros.policy.networks import NetworkConfig
    from onedp_ros.settings import from_mapping

    method = trained_method(args.method or METHOD)
    data, config, settings = prepare(args, method.name, "train")
    if args.init:
        settings["init"] = str(args.init)
    if args.encoders:
        settings["encoders"] = str(args.encoders)
    if args.learning_rate:
        settings["learning_rate"] = args.learning_rate
    network = NetworkConfig.from_dict(read_section(config, "network"))
    out, contract = args.out or task_folder(args.task) / method.weights, task_contract(args.task)
    result = train(data, out, network, from_mapping(method.settings, "train", settings), args.resume, contract, method=method.name)
    print(json.dumps({k: v for k, v in result.items() if k != "train"}, indent=2))
    return 0
