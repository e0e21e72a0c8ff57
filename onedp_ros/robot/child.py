"""A child process for arm or hand, as its parent sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from onedp_ros import clock
from onedp_ros.resources import child_environment

# One thread each: the arrays are small, and more threads would only wait for each other.
ENVIRONMENT = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class Child:
    """Runs ``python -m onedp_ros.robot.<module> DESCRIPTOR PARENT …`` with an inherited file descriptor."""

    def __init__(self, module: str, descriptor: int, arguments: Sequence[str]) -> None:
        self._module, self._descriptor, self._arguments = module, descriptor, list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0  # s, of onedp_ros.clock

    def start(self) -> None:
        """Start the process, unless it is running."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [
            sys.executable,
            "-m",
            f"onedp_ros.robot.{self._module}",
            str(self._descriptor),
            str(os.getpid()),
            *self._arguments,
        ]
        self._process = subprocess.Popen(
            command, env={**child_environment(), **ENVIRONMENT}, pass_fds=[self._descriptor], stdin=subprocess.DEVNULL
        )
        self.started = clock.now()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def ended(self) -> str:
        """How the process ended, as text; empty while it runs or was never started."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, seconds: float) -> None:
        """Wait this long for the process to end, then kill it."""
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
