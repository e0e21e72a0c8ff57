"""``onedp run``: the graph of a task without ``ros2 launch``. Starts each node as a child process, watches, and stops them all."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onedp_ros.graph import shm
from onedp_ros.graph.processes import (
    LOG_LEVELS,
    METHODS,
    NETWORKS,
    ROBOTS,
    NodeProcess,
    describe_network,
    enclave,
    graph_environment,
    placed,
    task_graph,
)

STOP_TIME = 5.0  # s that nodes get to end by themselves, as under ros2 launch: one may hold an arm
RESPAWN_DELAY = 1.0  # s before a node is started again
SHORT_LIFE = 5.0  # s: a node that ends sooner after its start will not do better the next time
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class NodeDiedError(RuntimeError):
    """A node ended while the graph should run; names it and where its output is."""


def command(process: NodeProcess) -> list[str]:
    """The command line of a node: ``python -m onedp_ros.nodes.<executable> --ros-args …``."""
    arguments = [sys.executable, "-m", f"onedp_ros.nodes.{process.executable}", "--ros-args", "-r", f"__node:={process.name}"]
    arguments += enclave(os.environ, process.executable)
    arguments += ["-r", f"__ns:={process.namespace}"] if process.namespace else []
    arguments += ["--log-level", process.log_level] if process.log_level else []
    arguments += ["--params-file", process.params_file] if process.params_file else []
    for name, value in process.parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML
    return arguments


class Supervisor:
    """Runs processes together: all or none, but for those that are to be respawned. A context manager; leaving it stops them.

    A child is killed by the kernel when this process dies, whatever kills it. Enter the context in the main thread: the kernel
    counts the death of the thread that started a child.

    Args:
        processes: what to run.
        logs: directory for the nodes' output, one file each; default: this terminal.
        environment: variables besides this process's own and :func:`graph_environment`.
    """

    def __init__(
        self, processes: Sequence[NodeProcess], logs: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._processes, self._logs = list(processes), logs
        base = {**os.environ, **(environment or {})}
        source = str(Path(__file__).resolve().parents[2])  # children must find the package that this process runs
        paths = [source, *filter(None, [base.get("PYTHONPATH")])]
        self._environment = {**base, **graph_environment(base), "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def __enter__(self) -> Supervisor:
        if done := shm.prepare((process.executable for process in self._processes), self._environment):
            print(done, flush=True)
        try:
            for process in self._processes:
                self._start(process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self, process: NodeProcess) -> None:
        parent = os.getpid()

        def before_exec() -> None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died in between
                os._exit(1)

        output: IO[bytes] | None = None
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            output = open(self.log(process.name), "ab" if process.name in self._started else "wb")  # noqa: SIM115 (closed below, when the child has its own)
        self._started[process.name] = time.monotonic()
        try:
            # A session of its own: Ctrl-C reaches the nodes through stop() alone, and their own children are stopped with them.
            self.children[process.name] = subprocess.Popen(
                command(process),
                env=self._environment,
                stdin=None if process.terminal else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
                preexec_fn=before_exec,
            )
        finally:
            if output is not None:
                output.close()

    def log(self, name: str) -> Path:
        """The file with the output of a node."""
        assert self._logs is not None
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """NodeDiedError when a node has ended that is not to be respawned, or that lives too short for that."""
        for process in self._processes:
            name, now = process.name, time.monotonic()
            if (status := self.children[name].poll()) is None:
                continue
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            if process.respawn and self._ended.setdefault(name, now) - self._started[name] > SHORT_LIFE:
                if now - self._ended[name] > RESPAWN_DELAY:
                    print(f"{name} {how}; starting it again", file=sys.stderr, flush=True)
                    del self._ended[name]
                    self._start(process)
                continue
            where = "see its output above"
            if self._logs is not None:
                lines = self.log(name).read_text(errors="replace").strip().splitlines()[-8:]
                where = "\n".join([f"{self.log(name)} ends with:", *lines])
            raise NodeDiedError(f"{name} {how}, so the graph was stopped; {where}")

    def stop(self) -> None:
        """End all nodes: SIGINT, then, for whatever is left after :data:`STOP_TIME`, SIGKILL."""
        for child in self.children.values():
            if child.poll() is None:
                _signal_group(child, signal.SIGINT)
        deadline = time.monotonic() + STOP_TIME
        try:
            for child in self.children.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(deadline - time.monotonic(), 0.0))
        finally:  # also when the user is impatient and presses Ctrl-C again
            for child in self.children.values():
                _signal_group(child, signal.SIGKILL)  # a node that ended may have left children
                child.wait()
            deadline = time.monotonic() + 0.3
            while any(_signal_group(child, 0) for child in self.children.values()) and time.monotonic() < deadline:
                time.sleep(0.01)
            self.children.clear()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a child's process group; number 0 only asks. Whether there is such a group."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return False
    return True


def on_terminate(number: int, frame: object) -> None:
    """A signal handler that ends a program as Ctrl-C does."""
    raise KeyboardInterrupt


def add_robot_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of what moves and what sees."""
    parser.add_argument("--robot", choices=ROBOTS, default="twin")
    parser.add_argument("--robot-file", default="", help="path of a file like config/robot/franka.yaml: your workspace, speeds …")
    parser.add_argument("--speed", type=float, default=1.0, help="share of the robot file's speeds, above 0 and up to 1")
    parser.add_argument("--image-transport", choices=("raw", "compressed"), default="raw", help="how the cameras publish")
    parser.add_argument("--robot-ip", default="", help="address of the Franka")
    parser.add_argument("--mode", default="", help="cartesian_pose or cartesian_impedance (default: the robot file's)")
    parser.add_argument("--realtime", choices=("enforce", "ignore"), default="enforce", help="ignore: without a real-time kernel")
    parser.add_argument("--cpu", type=int, default=-1, help="processor of its own for the Franka's control loop (default: any)")


def robot_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_robot_arguments` was given, as arguments of the functions in ``graph``."""
    given = {name: getattr(args, name) for name in ("robot", "robot_file", "speed", "image_transport")}
    return {**given, "franka": {name: getattr(args, name) for name in ("robot_ip", "mode", "realtime", "cpu")}}


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how and where nodes run."""
    parser.add_argument("--network", choices=NETWORKS, help="who reaches the graph (default: localhost, this host only)")
    parser.add_argument("--namespace", default="", help="of all nodes, topics and services, for several robots in one ROS domain")
    parser.add_argument("--params-file", default="", help="YAML file of parameters; those that options set win over it")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")


def place(args: argparse.Namespace, processes: Sequence[NodeProcess]) -> list[NodeProcess]:
    """The processes as :func:`add_place_arguments` asks for them. Sets this process's environment to that of the graph, and says
    who can reach it."""
    os.environ.update(graph_environment(os.environ, args.network or ""))
    print(describe_network(os.environ), flush=True)
    return placed(processes, namespace=args.namespace, params_file=args.params_file, log_level=args.log_level)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp run", description=__doc__)
    parser.add_argument("task", help="name of a file in config/tasks, for example pnp_milk, or path of a task file")
    parser.add_argument("--method", default="onedp_s", help=f"one of {', '.join(METHODS)}, or dp_ddimN (default onedp_s)")
    parser.add_argument("--engine", default="auto", help="auto, torch, cuda, openvino or openvino_bf16")
    parser.add_argument("--model", type=Path, help="directory of the policy (default: the released one of the method)")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    parser.add_argument("--twin-seed", type=int, default=100_000, help="of the twin's first episode")
    parser.add_argument("--threads", type=int, default=0, help="processor threads of the engine (default: its own choice)")
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument("--disabled", action="store_true", help="do not move before action_node's service ~/enable is called")
    wait.add_argument("--enabled", action="store_true", help="move at once; what only the twin does by itself")
    parser.add_argument("--record", type=Path, help="folder to record the run to, for onedp replay")
    parser.add_argument("--lead", type=float, help="how far ahead of the clock chunks are sampled, s (default: action_node's own)")
    add_robot_arguments(parser)
    add_place_arguments(parser)
    args = parser.parse_args(argv)
    processes = task_graph(
        args.task,
        method=args.method,
        engine=args.engine,
        model=args.model,
        seed=args.seed,
        twin_seed=args.twin_seed,
        enabled=False if args.disabled else True if args.enabled else None,
        lead=args.lead,
        threads=args.threads,
        **robot_arguments(args),
        record=args.record,
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


if __name__ == "__main__":
    raise SystemExit(main())
