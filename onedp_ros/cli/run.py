"""Run the graph of a task without ros2 launch."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import graph_parser, place, values
from onedp_ros.graph.options import ROBOT, RUN, graph_arguments
from onedp_ros.graph.processes import task_graph
from onedp_ros.graph.supervisor import Supervisor, on_terminate


def main(argv: Sequence[str] | None = None) -> int:
    parser = graph_parser("run", __doc__, RUN, ROBOT)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the engine (default: half of the cores)")
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument("--disabled", action="store_true", help="do not move until action_node's service ~/enable is called")
    wait.add_argument("--enabled", action="store_true", help="move at once (default with the twin only)")
    parser.add_argument("--record", type=Path, help="folder to record the run to, for onedp replay")
    args = parser.parse_args(argv)
    processes = task_graph(
        args.task,
        enabled=False if args.disabled else True if args.enabled else None,
        threads=args.threads,
        record=args.record,
        **graph_arguments(values(args, RUN, ROBOT)),
    )
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        with Supervisor(place(args, processes)) as supervisor:
            print(f"running {', '.join(supervisor.children)}; Ctrl-C stops all of them", flush=True)
            while True:
                supervisor.check()
                time.sleep(0.1)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0
