"""A graph without ``ros2 launch``: starts each node as a child process, monitors and stops them."""

from __future__ import annotations

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

from onedp_ros.graph import shm
from onedp_ros.graph.processes import NodeProcess, enclave, graph_environment
from onedp_ros.resources import child_environment

STOP_TIME = 5.0  # s for nodes to exit by themselves, as under ros2 launch: one may hold an arm
RESPAWN_DELAY = 1.0  # s before a node is restarted
SHORT_LIFE = 5.0  # s: a node that exits sooner after its start is not restarted
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class NodeDiedError(RuntimeError):
    """A node died while the graph was running; the message names it and its output."""


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
    """Runs processes together: if one dies, all are stopped, unless it is to be respawned. A context manager; leaving it stops
    them.

    The kernel kills the children when this process dies, for whatever reason. Enter the context in the main thread: what counts is
    the death of the thread that started a child.

    Args:
        processes: what to run.
        logs: directory for the nodes' output, one file each; default: this terminal.
        environment: variables in addition to this process's own and :func:`graph_environment`.
    """

    def __init__(
        self, processes: Sequence[NodeProcess], logs: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._processes, self._logs = list(processes), logs
        base = child_environment({**os.environ, **(environment or {})})
        self._environment = {**base, **graph_environment(base), "PYTHONUNBUFFERED": "1"}
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
            if os.getppid() != parent:  # the parent died in between
                os._exit(1)

        output: IO[bytes] | None = None
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            output = open(self.log(process.name), "ab" if process.name in self._started else "wb")  # noqa: SIM115 (closed below, when the child has its own)
        self._started[process.name] = time.monotonic()
        try:
            # In its own session: Ctrl-C reaches the nodes only through stop(), which also stops their own children.
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
        """The file with a node's output."""
        assert self._logs is not None
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Raise NodeDiedError if a node has died that is not to be respawned, or that died too soon after its start."""
        for process in self._processes:
            name, now = process.name, time.monotonic()
            if (status := self.children[name].poll()) is None:
                continue
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            if process.respawn and self._ended.setdefault(name, now) - self._started[name] > SHORT_LIFE:
                if now - self._ended[name] > RESPAWN_DELAY:
                    print(f"{name} {how}; restarting it", file=sys.stderr, flush=True)
                    del self._ended[name]
                    self._start(process)
                continue
            where = "see its output above"
            if self._logs is not None:
                lines = self.log(name).read_text(errors="replace").strip().splitlines()[-8:]
                where = "\n".join([f"{self.log(name)} ends with:", *lines])
            raise NodeDiedError(f"{name} {how}, so the graph was stopped; {where}")

    def stop(self) -> None:
        """Stop all nodes: SIGINT, and after :data:`STOP_TIME` SIGKILL for any that are left."""
        for child in self.children.values():
            if child.poll() is None:
                _signal_group(child, signal.SIGINT)
        deadline = time.monotonic() + STOP_TIME
        try:
            for child in self.children.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(deadline - time.monotonic(), 0.0))
        finally:  # also if the user presses Ctrl-C again
            for child in self.children.values():
                _signal_group(child, signal.SIGKILL)  # a node that has exited may have left children
                child.wait()
            deadline = time.monotonic() + 0.3
            while any(_signal_group(child, 0) for child in self.children.values()) and time.monotonic() < deadline:
                time.sleep(0.01)
            self.children.clear()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a child's process group; number 0 only checks. Returns whether the group exists."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return False
    return True


def on_terminate(number: int, frame: object) -> None:
    """A signal handler that ends a program like Ctrl-C."""
    raise KeyboardInterrupt
