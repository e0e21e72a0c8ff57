"""A pause is noticed once, whatever the process was doing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from onedp_ros import clock

SCRIPT = """
import time
from onedp_ros.clock import PauseWatch
watch = PauseWatch(0.3)
print("ready", flush=True)
while not (length := watch.check()):
    time.sleep(0.01)
assert watch.ended_within(0.2) and not watch.check()
print(length, flush=True)
"""


def test_a_process_that_was_stopped_notices() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGCONT)
        assert float(process.stdout.readline()) > 0.4


def test_a_suspended_machine_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux lets the clock go on that is asked here, and ``time.monotonic`` not."""
    watch = clock.PauseWatch(1.0)
    read = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda kind: read(kind) + (60.0 if kind == time.CLOCK_BOOTTIME else 0.0))
    assert 59.0 < watch.check() < 61.0
    assert not watch.check() and watch.ended_within(1.0)
