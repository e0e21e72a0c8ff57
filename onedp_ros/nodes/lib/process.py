"""The main function of a node's process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from onedp_ros.graph import shm
from onedp_ros.nodes.lib.executor import LeanExecutor

NOTICE = 0.2  # s
SHUTDOWN = 1.0  # s after a stop signal until a process that is still loading or predicting is ended
CLEAN_UP = 3.5  # s that a node then has to bring its arm to rest and release its resources: launch waits for 5 s in all
LISTENERS = 2.0  # s to wait for a subscriber of /rosout when a node fails at start
REST = 1.0  # s before that for a node that commands an arm, to bring it to rest by its targets


def run_node(make_node: Callable[[], Node], args: Sequence[str] | None = None, rest: bool = False) -> int:
    """Run one node until SIGINT or SIGTERM. Exit status: 0 when asked to end, 1 if the node failed.

    Args:
        rest: the node commands an arm. Before shutdown, while it can still publish, its executor calls ``come_to_rest()``, and
            shutdown waits up to :data:`REST` s for ``at_rest``.
    """
    name = Path(sys.argv[0]).stem
    try:
        shm.prepare([name], os.environ)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    ends = _StopSignals() if rest else None
    rclpy.init(
        args=None if args is None else list(args),
        signal_handler_options=None if ends is None else rclpy.signals.SignalHandlerOptions.NO,
    )
    if ends is not None and ends.received:  # before there was a context to shut down
        _shut_down()
    context = rclpy.get_default_context()
    status, ending = [0], threading.Event()
    threading.Thread(target=_exit_when_told, args=(context, ending, status), daemon=True).start()
    node = None
    try:
        node = make_node()
        if ends is not None:
            ends.watch(node)
        executor = LeanExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        _shut_down()  # rclpy's own handler may be slower, and the node must see the shutdown
    except Exception as error:
        if not _ends(context):  # else the error is from an interrupted call
            status[0] = 1
            report_failure(node, error)
            if not isinstance(error, (OSError, ValueError, RuntimeError)):  # these need no traceback: they name the remedy
                raise
    finally:
        # Under ros2 launch Ctrl-C arrives twice, from the terminal and from launch; the second must not interrupt the cleanup.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        ending.set()
        if node is not None:
            node.destroy_node()
        _shut_down()
    return status[0]


class _StopSignals:
    """Handles SIGINT and SIGTERM for a node that first comes to rest. Python's signal handlers wait until the main thread's current
    call returns; the wakeup socket does not."""

    def __init__(self) -> None:
        self._signals, written = socket.socketpair()
        written.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        self._keep, self._node, self._guard = written, None, None
        self.received = False
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, node: Any) -> None:
        """Bring this node to rest before shutdown."""
        self._guard = node.create_guard_condition(node.come_to_rest)
        self._node = node

    def _run(self) -> None:
        while True:
            self._signals.recv(1)
            self.received = True
            deadline = time.monotonic() + REST
            if self._node is not None:
                self._guard.trigger()
                while not self._node.at_rest and time.monotonic() < deadline:
                    time.sleep(0.005)
            _shut_down()


def report_failure(node: Node | None, error: Exception) -> None:
    """Log the error, also to /rosout, under the node's name, even if the node failed during construction."""
    words = str(error) or type(error).__name__
    if node is None:
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        node = next((it for it in frames if isinstance(it, Node) and hasattr(it, "handle")), None)
    if node is None:  # the ROS arguments are wrong
        print(f"{Path(sys.argv[0]).stem}: {words}", file=sys.stderr)
        return
    deadline = time.monotonic() + LISTENERS
    while not node.count_subscribers("/rosout") and time.monotonic() < deadline:
        time.sleep(0.02)
    node.get_logger().fatal(words)
    time.sleep(2 * NOTICE)  # until it is sent


def _ends(context: rclpy.Context) -> bool:
    """Whether the process was told to end. The context may learn of it slightly later than a call interrupted by the signal."""
    deadline = time.monotonic() + NOTICE
    while context.ok() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not context.ok()


def _shut_down() -> None:
    with contextlib.suppress(rclpy_implementation.RCLError):  # rclpy's own handler was faster
        rclpy.try_shutdown()


def _exit_when_told(context: rclpy.Context, ending: threading.Event, status: list[int]) -> None:
    """Exit soon after a stop signal, even while loading a policy or predicting, which cannot be interrupted."""
    while context.ok() and not ending.is_set():
        time.sleep(0.1)
    if ending.wait(SHUTDOWN):
        time.sleep(CLEAN_UP)
    sys.stdout.flush()
    os._exit(status[0])
