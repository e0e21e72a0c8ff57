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
from typing import IO

from onedp_ros.graph import METHODS, ROBOTS, NodeProcess, graph_environment, task_graph

STOP_TIME = 1.4  # s that nodes get to end by themselves
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class NodeDiedError(RuntimeError):
    """A node ended while the graph should run; names it and where its output is."""


def command(process: NodeProcess) -> list[str]:
    """The command line of a node: ``python -m onedp_ros.nodes.<executable> --ros-args …``."""
    arguments = [sys.executable, "-m", f"onedp_ros.nodes.{process.executable}", "--ros-args", "-r", f"__node:={process.name}"]
    for name, value in process.parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML
    return arguments


class Supervisor:
    """Runs processes together: all or none. A context manager; leaving it stops them.

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
        source = str(Path(__file__).resolve().parents[1])  # children must find the package that this process runs
        paths = [source, *filter(None, [base.get("PYTHONPATH")])]
        self._environment = {**base, **graph_environment(base), "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Supervisor:
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
            output = open(self.log(process.name), "wb")  # noqa: SIM115 (closed below, when the child has its own)
        try:
            # A session of its own: Ctrl-C reaches the nodes through stop() alone, and their own children are stopped with them.
            self.children[process.name] = subprocess.Popen(
                command(process),
                env=self._environment,
                stdin=subprocess.DEVNULL,
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
        """NodeDiedError when a node has ended."""
        for name, child in self.children.items():
            if (status := child.poll()) is not None:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
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


def _on_terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp run", description=__doc__)
    parser.add_argument("task", help="name of a file in config/tasks, for example pnp_milk")
    parser.add_argument("--robot", choices=ROBOTS, default="twin")
    parser.add_argument("--method", default="onedp_s", help=f"one of {', '.join(METHODS)}, or dp_ddimN (default onedp_s)")
    parser.add_argument("--engine", default="auto", help="auto, torch, cuda, openvino or openvino_bf16")
    parser.add_argument("--model", type=Path, help="directory of the policy (default: the released one of the method)")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    parser.add_argument("--twin-seed", type=int, default=100_000, help="of the twin's first episode")
    parser.add_argument("--threads", type=int, default=0, help="processor threads of the engine (default: its own choice)")
    parser.add_argument("--disabled", action="store_true", help="do not move before action_node's service ~/enable is called")
    args = parser.parse_args(argv)
    processes = task_graph(
        args.task,
        robot=args.robot,
        method=args.method,
        engine=args.engine,
        model=args.model,
        seed=args.seed,
        twin_seed=args.twin_seed,
        enabled=not args.disabled,
        threads=args.threads,
    )
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        with Supervisor(processes) as supervisor:
            print(f"running {', '.join(supervisor.children)}; Ctrl-C stops all of them", flush=True)
            while True:
                supervisor.check()
                time.sleep(0.1)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
