"""Fuzzing is the same in every run and has no deadlines: speed is measured by ``onedp bench``, not here."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from distributed import LocalCluster

import onedp_ros  # noqa: F401  # it tells OpenCV what to decode and MuJoCo how to draw, before a test imports them

settings.register_profile("onedp", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)  # pytest --hypothesis-profile fuzz
settings.load_profile("onedp")  # unless the command line names another

# engines that tests compile are not kept among the user's own, but for all tests of one run and its processes
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has its controller's
    _CACHE = tempfile.TemporaryDirectory(prefix="onedp_ros_tests_")
    os.environ["XDG_CACHE_HOME"] = _CACHE.name

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_TIME = ("graph", "robot", "teleop")  # folders whose tests run processes against the clock, unless they say otherwise
MARKERS = (
    "real_time: runs against the clock: alone on the machine, and again, twice at most, where the machine stalled",
    "concurrent: in a folder of real-time tests, but may share the machine",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ran again is named at the end; on a quiet machine nothing does."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in REAL_TIME and not item.get_closest_marker("concurrent"):
            item.add_marker("real_time")
        if item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope="session")
def cluster() -> "Iterator[LocalCluster]":
    """A Dask cluster of two workers on this machine, which are started again when they die; a call may end one of them, not two."""
    import dask
    from distributed import LocalCluster

    settings = {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "1 h"}
    with dask.config.set(settings), LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster:
        yield cluster
