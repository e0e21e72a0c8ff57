"""Record demonstrations: start the robot or the twin, the operator's device and the recorder, and show its state.

The operator starts and ends episodes with the device's buttons, or with recorder_node's services ~/start, ~/stop, ~/fail and
~/discard. With ``--device expert`` the twin's scripted expert demonstrates, through the same topics and the same recorder.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedp_ros.cli.arguments import graph_parser, place, values
from onedp_ros.graph.options import RECORD, ROBOT, graph_arguments
from onedp_ros.graph.processes import NO_DEVICE, record_graph
from onedp_ros.graph.supervisor import Supervisor, on_terminate
from onedp_ros.resources import task_folder
from onedp_ros.teleop.devices import DEVICES

if TYPE_CHECKING:
    from onedp_ros.graph.client import GraphWatch

START_TIME = 60.0  # s for the graph to start
CAMERA_TIME = 20.0  # s more for the cameras
SETTLE = 0.3  # s after a reset
LINGER = 0.5  # s after success, so that a policy learns to stay
EPISODE_TIME = 20.0  # s after which an episode of the expert counts as failed
LINE_PERIOD = 0.5  # s


def describe_recorder(watch: GraphWatch) -> str:
    """The recorder's diagnostics in one line."""
    report = watch.values("recorder_node")
    level = "" if report.get("level", "0") == "0" else f"  {report['message']}"
    rates = [f"{key.split('.', 1)[1]} {float(value):.0f}" for key, value in report.items() if key.startswith("hz.")]
    return f"{report.get('state', 'starting')} {report.get('episode', '')} {report.get('seconds', '')} s  {' '.join(rates)}{level}"


def record_expert(watch: GraphWatch, episodes: int) -> dict[str, int]:
    """Let the twin's expert demonstrate. Returns the numbers of successes and failures."""
    from std_srvs.srv import SetBool, Trigger

    def request(service: str, patience: float = 0.0) -> None:
        answers: list[Any] = []

        def granted() -> bool:
            answers.append(watch.call(Trigger, service))
            return bool(answers[-1].success)

        if not watch.spin_until(granted, patience):
            raise RuntimeError(f"{service}: {answers[-1].message}")

    def succeeded() -> bool:
        return bool(watch.call(Trigger, "twin_node/success").success)

    ended = {"successes": 0, "failures": 0}
    for episode in range(episodes):
        if episode:  # the twin starts with a fresh scene
            request("twin_node/reset")
            watch.spin_for(SETTLE)
        request("recorder_node/start", CAMERA_TIME)
        watch.call(SetBool, "twin_node/expert", SetBool.Request(data=True))
        success = watch.spin_until(succeeded, EPISODE_TIME)
        watch.spin_for(LINGER)
        watch.call(SetBool, "twin_node/expert", SetBool.Request(data=False))
        request("recorder_node/stop" if success else "recorder_node/fail")
        ended["successes" if success else "failures"] += 1
        print(f"episode {episode + 1}/{episodes}: {'success' if success else 'failure'}; {describe_recorder(watch)}", flush=True)
    return ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = graph_parser("record", __doc__, RECORD, ROBOT)
    parser.add_argument("--episodes", type=int, default=10, help="with --device expert: episodes to record (default 10)")
    parser.add_argument("--twin-seed", type=int, help="seed of the twin's first scene (default: number of bags already in --out)")
    args = parser.parse_args(argv)
    out = Path(args.out) if args.out else task_folder(args.task) / "bags"
    chosen = graph_arguments(values(args, RECORD, ROBOT))
    chosen["out"] = out.resolve()
    seed = len(list(out.glob("episode_*"))) if args.twin_seed is None else args.twin_seed
    processes = record_graph(args.task, twin_seed=seed, **chosen)
    quiet = args.device not in NO_DEVICE and DEVICES.get(args.device).uses_terminal
    processes = place(args, processes)
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        with Supervisor(processes) as supervisor:
            from onedp_ros.graph.client import GraphWatch

            watch = GraphWatch("record", supervisor.check, namespace=args.namespace)
            try:
                if not watch.spin_until(lambda: "state" in watch.values("recorder_node"), START_TIME):
                    raise RuntimeError(f"the recorder did not start within {START_TIME:.0f} s: {watch.complaints()}")
                print(f"recording to {out}; Ctrl-C ends", flush=True)
                if args.device == "expert":
                    ended = record_expert(watch, args.episodes)
                    print(f"{ended['successes']} successes, {ended['failures']} failures in {out}", flush=True)
                    return 0 if ended["successes"] else 1
                _show(watch, quiet)
            finally:
                watch.close()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _show(watch: GraphWatch, quiet: bool) -> None:
    """Show a status line until interrupted; only changes of state if there is no terminal or the device uses it."""
    before = ""
    while True:
        watch.spin_for(LINE_PERIOD)
        now = describe_recorder(watch)
        if sys.stdout.isatty() and not quiet:
            print(f"\r\033[K{now[:150]}", end="", flush=True)
        elif (what := " ".join(now.split()[:2])) != before:
            before = what
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
