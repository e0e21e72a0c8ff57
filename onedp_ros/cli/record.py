"""``onedp record``: everything that demonstrations need, robot, operator's device and recorder, and one line that says how it goes.

The operator begins and ends episodes with the device's own buttons, or by the recorder's services ~/start, ~/stop, ~/fail and
~/discard. With ``--device expert`` the twin's scripted expert demonstrates, through the same topics and the same recorder.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedp_ros.graph.processes import record_graph
from onedp_ros.graph.supervisor import Supervisor, add_place_arguments, add_robot_arguments, on_terminate, place, robot_arguments
from onedp_ros.resources import task_folder
from onedp_ros.teleop.devices import DEVICES

if TYPE_CHECKING:
    from onedp_ros.graph.client import GraphWatch

START_TIME = 60.0  # s until the graph must be there
CAMERA_TIME = 20.0  # s from then until the cameras must be there too
SETTLE = 0.3  # s after a reset
LINGER = 0.5  # s after success, so that a policy learns to stay
EPISODE_TIME = 20.0  # s after which an expert's episode has failed
LINE_PERIOD = 0.5  # s


def line(watch: GraphWatch) -> str:
    """What the recorder says, in one line."""
    said = watch.values("recorder_node")
    level = "" if said.get("level", "0") == "0" else f"  {said['message']}"
    rates = [f"{key.split('.', 1)[1]} {float(value):.0f}" for key, value in said.items() if key.startswith("hz.")]
    return f"{said.get('state', 'starting')} {said.get('episode', '')} {said.get('seconds', '')} s  {' '.join(rates)}{level}"


def demonstrate(watch: GraphWatch, episodes: int) -> dict[str, int]:
    """Let the twin's expert demonstrate. Returns how many episodes were successes and failures."""
    from std_srvs.srv import SetBool, Trigger

    def ask(service: str, patience: float = 0.0) -> None:
        answers: list[Any] = []

        def granted() -> bool:
            answers.append(watch.call(Trigger, service))
            return bool(answers[-1].success)

        if not watch.spin_until(granted, patience):
            raise RuntimeError(f"{service}: {answers[-1].message}")

    def ends() -> bool:
        return bool(watch.call(Trigger, "twin_node/success").success)

    ended = {"successes": 0, "failures": 0}
    for episode in range(episodes):
        if episode:  # the first scene is that of the twin's start
            ask("twin_node/reset")
            watch.spin_for(SETTLE)
        ask("recorder_node/start", CAMERA_TIME)
        watch.call(SetBool, "twin_node/expert", SetBool.Request(data=True))
        success = watch.spin_until(ends, EPISODE_TIME)
        watch.spin_for(LINGER)
        watch.call(SetBool, "twin_node/expert", SetBool.Request(data=False))
        ask("recorder_node/stop" if success else "recorder_node/fail")
        ended["successes" if success else "failures"] += 1
        print(f"episode {episode + 1}/{episodes}: {'success' if success else 'failure'}; {line(watch)}", flush=True)
    return ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp record", description=__doc__)
    parser.add_argument("task", help="name of a file in config/tasks, for example pnp_milk, or path of a task file")
    parser.add_argument(
        "--device", choices=(*DEVICES.names(), "expert", "none"), default="phone", help="what the operator holds (phone)"
    )
    parser.add_argument("--teleop", default="", help="file of speeds, frame, operator's place … (default config/teleop.yaml)")
    parser.add_argument("--operator", default="", help="who demonstrates, noted in the bags")
    parser.add_argument("--out", type=Path, help="folder of the bags (default out/<task>/bags)")
    parser.add_argument("--episodes", type=int, default=10, help="of the expert (default 10)")
    parser.add_argument("--host", default="127.0.0.1", help="address where a phone reaches this machine; 0.0.0.0: any")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--twin-seed", type=int, help="of the twin's first scene (default: how many bags are there already)")
    add_robot_arguments(parser)
    add_place_arguments(parser)
    args = parser.parse_args(argv)
    out = args.out or task_folder(args.task) / "bags"
    processes = record_graph(
        args.task,
        device=args.device,
        operator=args.operator,
        out=out.resolve(),
        host=args.host,
        port=args.port,
        teleop=args.teleop,
        twin_seed=len(list(out.glob("episode_*"))) if args.twin_seed is None else args.twin_seed,
        **robot_arguments(args),
    )
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
                    ended = demonstrate(watch, args.episodes)
                    print(f"{ended['successes']} successes, {ended['failures']} failures in {out}", flush=True)
                    return 0 if ended["successes"] else 1
                _show(watch, args.device == "keyboard")
            finally:
                watch.close()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _show(watch: GraphWatch, quiet: bool) -> None:
    """One line for ever; without a terminal, or with one that the keyboard's own line needs, only what changes."""
    before = ""
    while True:
        watch.spin_for(LINE_PERIOD)
        now = line(watch)
        if sys.stdout.isatty() and not quiet:
            print(f"\r\033[K{now[:150]}", end="", flush=True)
        elif (what := " ".join(now.split()[:2])) != before:
            before = what
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
