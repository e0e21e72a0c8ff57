"""The command line: ``onedp <command> …``. Each command lives in the module that does the work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "collect": ("onedp_ros.tasks.collect", "record demonstrations of the scripted expert in the twin"),
    "record": ("onedp_ros.cli.record", "record demonstrations: robot, operator's device and recorder"),
    "inspect": ("onedp_ros.evaluation.inspect", "what a bag or a training set holds: rates, gaps, ranges, pictures"),
    "convert": ("onedp_ros.data.convert", "turn recordings into a training set"),
    "replay": ("onedp_ros.evaluation.replay", "what a policy sees and says in a recording, against what was recorded"),
    "train": ("onedp_ros.learning.train", "train a diffusion policy, the teacher"),
    "distill": ("onedp_ros.learning.distill", "distil a teacher into a one-step generator"),
    "release": ("onedp_ros.learning.release", "turn a checkpoint into a small bundle with a model card"),
    "evaluate": ("onedp_ros.evaluation.rollout", "success of a policy in the twin"),
    "bench": ("onedp_ros.bench.inference", "latency of engines and methods, frames over DDS"),
    "run": ("onedp_ros.graph.supervisor", "start the whole graph without ros2 launch"),
    "fake-franka": ("onedp_ros.robot.fake_franka", "serve an FR3 on this machine, to try the real client without an arm"),
    "demo": ("onedp_ros.cli.demo", "watch the released policy pick the milk, in real time"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: onedp <command> [options]; onedp <command> --help tells more\n")
        print("\n".join(f"  {name:11} {text}" for name, (_, text) in COMMANDS.items()))
        return 0
    if arguments[0] not in COMMANDS:
        print(f"onedp: unknown command '{arguments[0]}', expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[arguments[0]]
    try:
        return int(importlib.import_module(module).main(arguments[1:]) or 0)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, RuntimeError) as error:  # ours name the thing and the remedy; a trace would bury that
        print(f"onedp {arguments[0]}: {error}", file=sys.stderr)
        return 1
