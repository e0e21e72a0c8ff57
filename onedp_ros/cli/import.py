"""Turn a policy that another program trained into a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.learning.imports import IMPORTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp import", description=__doc__)
    parser.add_argument("file", type=Path, help="checkpoint of the other program; nothing in it is executed")
    parser.add_argument("--from", dest="program", required=True, choices=IMPORTS.names(), help="the program that wrote it")
    parser.add_argument(
        "--task", required=True, help="name of a file in config/tasks, or path of a task file, that the policy fits"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint, for example out/<task>/teacher")
    parser.add_argument(
        "--map",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="camera or state feature NAME of the task file is KEY in the checkpoint; may be repeated (default: equal names)",
    )
    args = parser.parse_args(argv)
    if len(names := dict(args.map)) < len(args.map):
        parser.error("--map names a key twice")

    from onedp_ros.contract import task_contract
    from onedp_ros.learning.imports.base import import_policy

    imported = import_policy(args.file, args.program, task_contract(args.task), names, args.out)
    policy = imported.policy
    parameters = sum(p.numel() for p in policy.parameters()) / 1e6
    known = ", ".join(f"{name} {value}" for name, value in imported.origin.items() if isinstance(value, (str, int)))
    print(f"written {args.out}: {policy.method.name}, network {policy.config.name}, {parameters:.2f} M parameters ({known})")
    for note in imported.notes:
        print(f"note: {note}")
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, separator, name = text.partition("=")
    if not (key and separator and name):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form KEY=NAME, such as agentview_image=front")
    return key, name
