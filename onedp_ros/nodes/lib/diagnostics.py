"""A node's report on /diagnostics, and the statistics in it."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from onedp_ros import clock

PERIOD = 0.5  # s
NO_TIME = 3.0  # s without /clock until that is reported

DiagnosticReport = tuple[Any, str, dict[str, Any]]  # level, message, values
Finding = tuple[Any, str] | None  # level and message of a problem; None: no problem


class Diagnostics:
    """Publishes ``report()`` at 2 Hz: level (``DiagnosticStatus.OK`` …), message (problem and remedy), values.

    The status has the node's fully qualified name, since all robots in a ROS domain share the topic. ``hardware_id``: the robot's
    address, or, by default, the name of this computer.
    """

    def __init__(self, node: Node, report: Callable[[], DiagnosticReport], hardware_id: str = "") -> None:
        self._node, self._report, self._hardware_id = node, report, hardware_id or platform.node()
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a node that waits for /clock must be able to report that
        self._timer = node.create_timer(PERIOD, self.publish, clock=steady)
        self._began = time.monotonic()

    def publish(self) -> None:
        """Publish now, in addition to the timer."""
        level, message, values = self._missing_clock() or self._report()
        name = self._node.get_fully_qualified_name()
        status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=self._hardware_id)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _missing_clock(self) -> DiagnosticReport | None:
        """The report while ``use_sim_time`` is set and no /clock arrives, else None."""
        waited = time.monotonic() - self._began
        if waited < NO_TIME or not self._node.get_parameter("use_sim_time").value or self._node.get_clock().now().nanoseconds:
            return None
        text = "use_sim_time is set, but no /clock arrives: start ros2 bag play --clock or a simulator, or omit use_sim_time"
        self._node.get_logger().error(text, throttle_duration_sec=10.0)
        return DiagnosticStatus.ERROR, text, {}


class RecentProblem:
    """The last problem of a node, which is logged, and shown on /diagnostics while it is recent.

    Args:
        level: ``DiagnosticStatus.WARN`` or ``ERROR``, also for the log.
        seconds: for how long it is recent.
    """

    def __init__(self, node: Node, level: Any = DiagnosticStatus.WARN, seconds: float = 2.0) -> None:
        self._logger, self._level, self._seconds = node.get_logger(), level, seconds
        self._at, self._text = float("-inf"), ""

    def report(self, text: str) -> None:
        """Report a problem; it is logged at most once every 2 s."""
        self._at, self._text = clock.now(), text
        if self._level == DiagnosticStatus.ERROR:
            self._logger.error(text, throttle_duration_sec=2.0)
        else:
            self._logger.warning(text, throttle_duration_sec=2.0)

    @property
    def text(self) -> str:
        """The problem; empty if there was none recently."""
        return self._text if clock.now() - self._at < self._seconds else ""

    def finding(self) -> Finding:
        """For :func:`worst`."""
        return (self._level, self.text) if self.text else None


class Rate:
    """Events per second over the last seconds."""

    def __init__(self, window: float = 3.0) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=2048)

    def tick(self) -> None:
        """Count an event."""
        self._times.append(time.monotonic())

    def hz(self) -> float:
        """The rate; 0 with fewer than two events in the window, or none in its last third."""
        now = time.monotonic()
        while self._times and now - self._times[0] > self._window:
            self._times.popleft()
        if len(self._times) < 2 or now - self._times[-1] > self._window / 3:
            return 0.0
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)


class Percentiles:
    """Percentiles of the last ten thousand values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=10_000)

    def add(self, value: float) -> None:
        self._values.append(value)

    def values(self, key: str) -> dict[str, float]:
        """``{key}_p50``, ``{key}_p95`` and ``{key}_p99``; empty before the first value."""
        if not self._values:
            return {}
        low, mid, high = np.percentile(np.fromiter(self._values, dtype=np.float64), (50, 95, 99))
        return {f"{key}_p50": round(float(low), 2), f"{key}_p95": round(float(mid), 2), f"{key}_p99": round(float(high), 2)}


def counted(prefix: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason as values named ``{prefix}.{reason}``."""
    return {f"{prefix}.{reason.replace(' ', '_')}": count for reason, count in sorted(counts.items())}


def worst(*findings: Finding, fine: str) -> tuple[Any, str]:
    """The highest level among the findings, with all messages of that level; OK and ``fine`` if there are none."""
    found = [f for f in findings if f is not None]
    if not found:
        return DiagnosticStatus.OK, fine
    level = max(level for level, _ in found)
    return level, "; ".join(message for its, message in found if its == level)
