"""A node that monitors a graph and calls its services, for programs that start one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray

from onedp_ros.graph.processes import enclave

CALL_TIME = 5.0  # s for a service


class GraphWatch:
    """Keeps the nodes' reports on /diagnostics. Creates and shuts down this process's ROS context.

    Args:
        name, namespace: of this node. Nodes in the same namespace are listed by name, others by their full name.
        check: called while waiting; raises if a node has died.
        keep: whether ``history`` holds all reports, or only the last of each node.

    Attributes:
        meanwhile: also called repeatedly while waiting.
    """

    def __init__(self, name: str, check: Callable[[], None], keep: bool = False, namespace: str = "") -> None:
        keys = enclave(os.environ, "operator")
        rclpy.init(args=["--ros-args", *keys] if keys else [])
        self._check, self._keep = check, keep
        self.meanwhile: Callable[[], None] = lambda: None
        self.node = rclpy.create_node(name, namespace=namespace or None, start_parameter_services=False)
        self.history: dict[str, list[tuple[float, dict[str, str]]]] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._clients: dict[str, Any] = {}

    def close(self) -> None:
        self.node.destroy_node()
        if rclpy.ok():
            rclpy.shutdown()  # so that another one can be created

    def values(self, name: str) -> dict[str, str]:
        """A node's last report on /diagnostics; empty before the first."""
        return self.history[name][-1][1] if self.history.get(name) else {}

    def complaints(self) -> str:
        """The messages of all nodes' last reports, in one line."""
        messages = {name: entries[-1][1]["message"] for name, entries in self.history.items() if entries}
        return "; ".join(f"{name} reports '{text}'" for name, text in messages.items()) or "no node reports anything"

    def spin_until(self, done: Callable[[], bool], timeout: float) -> bool:
        """Handle messages until ``done()``; False after ``timeout`` (s). Raises what ``check`` raises."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            self._check()
            self.meanwhile()
            rclpy.spin_once(self.node, timeout_sec=0.05)
        return True

    def spin_for(self, seconds: float) -> None:
        self.spin_until(lambda: False, seconds)

    def call(self, kind: Any, service: str, request: Any = None) -> Any:
        """Call a service of the graph. RuntimeError if it does not answer."""
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client = self._clients[service]
        if not self.spin_until(client.service_is_ready, CALL_TIME):
            raise RuntimeError(f"service {service} is not available; see the nodes' logs")
        future = client.call_async(kind.Request() if request is None else request)
        if not self.spin_until(future.done, CALL_TIME):
            raise RuntimeError(f"service {service} did not answer within {CALL_TIME:.0f} s; see the nodes' logs")
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        stamp = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
        for status in message.status:
            values = {item.key: item.value for item in status.values} | {"message": status.message, "level": str(status.level[0])}
            reports = self.history.setdefault(name_within(status.name, self.node.get_namespace()), [])
            if not self._keep:
                reports.clear()
            reports.append((stamp, values))


def name_within(name: str, namespace: str) -> str:
    """The name in a diagnostic status relative to a namespace: ``policy_node`` for ``/left/policy_node`` in ``/left``. Names in
    other namespaces, and names without a slash, are unchanged."""
    prefix = namespace.rstrip("/") + "/"
    rest = name.removeprefix(prefix)
    return rest if rest and "/" not in rest else name
