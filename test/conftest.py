"""Fuzzing is the same in every run and has no deadlines: speed is measured by ``onedp bench``, not here."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

import onedp_ros  # noqa: F401  # it bounds what OpenCV decodes, which must be told before a test imports cv2

settings.register_profile("onedp", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)  # pytest --hypothesis-profile fuzz
settings.load_profile("onedp")  # unless the command line names another

# engines that tests compile are not kept among the user's own, but for all tests of one run and its processes
_CACHE = tempfile.TemporaryDirectory(prefix="onedp_ros_tests_")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_TIME = ("graph", "robot", "teleop")  # folders whose tests run processes against the clock


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "real_time: runs against the clock: alone on the machine, and again where the machine stalled"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine without a real-time kernel may stall for longer than a robot or a camera's queue forgives; not three times in a
    row. What ran again is named at the end."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in REAL_TIME:
            item.add_marker("real_time")
        if item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.flaky(reruns=2))
