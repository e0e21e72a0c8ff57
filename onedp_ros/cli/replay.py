"""Replay a recording through a policy, and compare what it sees and predicts with what was recorded.

Offline, the recording's messages pass in log order, the order of their arrival, through the code of observation_node and
policy_node (``messages.decode.feed``, ``ObservationAssembler``, ``ObservationHistory``, ``Predictor``). With ``--graph`` they pass
through the nodes themselves: ``player_node`` publishes them, byte for byte, under ``/clock``.

A recording with ``observation/*`` and ``action/chunk`` (``extra_topics`` of recorder_node) is a run of a policy: every observation
set is compared byte by byte, every chunk value by value. Its ``/diagnostics``, if recorded, name the policy. Any other recording is
a demonstration: predictions from every set are compared with what was commanded.

Which sets are formed depends on the order in which the cameras' frames arrive, and that may differ at the recorder when frames
arrive together. The content of the set with a given stamp does not, if the contract's slop is shorter than a camera's period.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.policy.engines import describe_engines
from onedp_ros.policy.methods import describe_methods
from onedp_ros.resources import default_task

REPEATED = 0.9  # fraction of the recorded sets to be reproduced; live, frames may have arrived in another order


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 when a set differs from the recorded one, or fewer than :data:`REPEATED` are reproduced, else 0."""
    parser = argparse.ArgumentParser(prog="onedp replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--policy", type=Path, help="checkpoint (default: the recorded run's, else the method's released one)")
    parser.add_argument("--method", help=f"{describe_methods()} (default: the recorded run's, else the checkpoint's)")
    parser.add_argument("--engine", help=f"{describe_engines()} (default: the recorded run's, else auto)")
    parser.add_argument("--seed", type=int, help="seed of the policy's noise (default: the recorded run's, else 0)")
    parser.add_argument("--graph", action="store_true", help="play to the real nodes, under the recording's clock")
    parser.add_argument("--real-time", action="store_true", help="with --graph: play at the recorded speed")
    parser.add_argument(
        "--image-transport", choices=("raw", "compressed"), help="which image topics to use (default: raw if recorded)"
    )
    task = default_task()
    parser.add_argument("--task", default=task, help=f"task whose contract is used for a bag that stores none (default {task})")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--out", type=Path, help="folder for the report, a plot and the nodes' logs")
    args = parser.parse_args(argv)
    if args.real_time and not args.graph:
        parser.error("--real-time plays to the nodes; give --graph, too")
    from onedp_ros.evaluation.replay import replay
    from onedp_ros.evaluation.replay_report import table

    report = replay(args.bag, args)
    print(table(report))
    seen = report["observations"]
    return 1 if seen["different"] or (seen["recorded"] and seen["equal"] < max(1, REPEATED * seen["compared"])) else 0
