"""What a policy sees and predicts in a recording, against what was recorded.

Offline, the recording's messages go in log order, which is that of their arrival, through the code of observation_node and of
policy_node (``messages.decode.feed``, ``ObservationAssembler``, ``ObservationHistory``, ``Predictor``). With ``--graph`` they go
through those nodes themselves: ``player_node`` publishes them, byte for byte, under ``/clock``.

A recording with ``observation/*`` and ``action/chunk`` (``extra_topics`` of recorder_node) is one of a policy's run, and is
compared with itself: every set byte by byte, every chunk number by number. With ``/diagnostics`` it tells which policy that was.
Any other is a demonstration: predictions from every set are compared with what was commanded.

Which sets there are depends on the order in which the frames of two cameras arrive, which may be another at the recorder where they
arrive together. What the set of a stamp holds does not depend on it where the contract's slop is shorter than a camera's period.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.policy.engines import describe_engines
from onedp_ros.policy.methods import describe_methods
from onedp_ros.resources import default_task

REPEATED = 0.9  # of the recorded sets must be made again; live, frames may have come in another order


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a set holds other bytes than the recorded one, or when hardly any set is the recorded one."""
    parser = argparse.ArgumentParser(prog="onedp replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--policy", type=Path, help="bundle (default: the recorded run's, else the released one of the method)")
    parser.add_argument("--method", help=f"{describe_methods()} (default: the recorded run's, else the bundle's)")
    parser.add_argument("--engine", help=f"{describe_engines()} (default: the recorded run's, else auto)")
    parser.add_argument("--seed", type=int, help="of the policy's noise (default: the recorded run's, else 0)")
    parser.add_argument("--graph", action="store_true", help="through the real nodes, in the recording's time")
    parser.add_argument("--real-time", action="store_true", help="with --graph: as fast as it was")
    parser.add_argument(
        "--image-transport", choices=("raw", "compressed"), help="which of a camera's topics (default: raw if recorded)"
    )
    task = default_task()
    parser.add_argument("--task", default=task, help=f"contract of a bag whose recorder noted none (default {task})")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--out", type=Path, help="folder for the report, a picture, and the nodes' logs")
    args = parser.parse_args(argv)
    if args.real_time and not args.graph:
        parser.error("--real-time is a way to play to the nodes; give --graph, too")
    from onedp_ros.evaluation.replay import replay
    from onedp_ros.evaluation.replay_report import table

    report = replay(args.bag, args)
    print(table(report))
    seen = report["observations"]
    return 1 if seen["different"] or (seen["recorded"] and seen["equal"] < max(1, REPEATED * seen["compared"])) else 0
