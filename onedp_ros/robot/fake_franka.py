"""A fake robot for testing the real client without an arm. Serves Franka's own protocol, on this machine only.

The server (``fake_franka_server.py``) needs packages that conflict with this package's, so it has its own virtual environment,
created at the first start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from onedp_ros.resources import resource
from onedp_ros.robot.child import ENVIRONMENT

START_TIME = 60.0  # s
SERVER = Path(__file__).with_name("fake_franka_server.py")


def environment() -> Path:
    """The Python of the server's virtual environment, which is created if it is missing or its packages changed.

    Raises:
        RuntimeError: the packages could not be installed.
    """
    pinned = resource("config", "fake_franka", "constraints.txt")
    inside = sys.prefix != sys.base_prefix
    home = Path(sys.prefix) if inside else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "onedp_ros"
    folder = home / "fake_franka"
    python, made_from = folder / "bin" / "python", folder / "made_from"
    wanted = f"{sys.version}\n{pinned.read_text()}"
    if python.exists() and made_from.exists() and made_from.read_text() == wanted:
        return python
    print(f"creating the fake robot's environment in {folder}; this downloads about 100 MB once", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(pinned)]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
        if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            raise RuntimeError(
                f"could not create the fake robot's environment: {' '.join(command)} printed: {done.stderr.strip()[-800:]}"
            )
    made_from.write_text(wanted)
    return python


def _variables() -> dict[str, str]:
    """Environment of the server's process: no PYTHON variables of this one, and single-threaded, or it misses its rate."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | ENVIRONMENT


class FakeFranka:
    """A fake robot as a child process; a context manager. :meth:`tell` provokes faults."""

    def __init__(self, *arguments: str, address: str = "127.0.0.1", log: Path | None = None) -> None:
        self.address = address
        self._arguments = ["--host", address, "--until-eof", *arguments, *(["--log", str(log)] if log is not None else [])]

    def __enter__(self) -> FakeFranka:
        command = [str(environment()), str(SERVER), *self._arguments]
        self._process = subprocess.Popen(command, env=_variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answers: list[str] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._await("ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._arrived:
                self._answers.append(line.strip())
                self._arrived.notify_all()
        with self._arrived:
            self._answers.append("ended")
            self._arrived.notify_all()

    def _await(self, answer: str) -> None:
        deadline = time.monotonic() + START_TIME
        with self._arrived:
            while answer not in self._answers:
                if "ended" in self._answers or not self._arrived.wait(max(deadline - time.monotonic(), 0.0)):
                    raise RuntimeError(f"the fake robot did not answer '{answer}'; is port 1337 or 1338 of {self.address} taken?")
            self._answers.clear()

    def tell(self, command: str) -> None:
        """Send a command to the server: ``reflex``, ``press``, ``release``, ``object WIDTH``, ``flush``. Returns when it is
        done."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._await(f"done {command}")


def read_log(path: Path) -> NDArray[np.void]:
    """Read the robot's log, one record per cycle: time (s), q, dq, twist (m/s, rad/s), pose and commanded_pose (16, column-major),
    torque, mode, errors (bits), success_rate."""
    with path.open("rb") as file:
        kind = np.dtype(
            [(name, form, tuple(shape[0])) if shape else (name, form) for name, form, *shape in json.loads(file.readline())]
        )
        data = file.read()
    return np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)


def become_server(arguments: Sequence[str]) -> NoReturn:
    """Run the server in place of this process."""
    python = environment()
    print("the fake robot takes: reflex, press, release, object WIDTH, quit", flush=True)
    os.execve(python, [str(python), str(SERVER), *arguments], _variables())
