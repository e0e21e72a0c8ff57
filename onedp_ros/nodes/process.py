"""The main function of a node's process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from onedp_ros.nodes.executor import LeanExecutor

NOTICE = 0.2  # s
SHUTDOWN = 1.0  # s after which a process ends that was told to, whatever it is still doing


def main_of(make_node: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Run one node until SIGINT or SIGTERM. Exit status: 0 when told to end, 1 when the node failed."""
    rclpy.init(args=None if args is None else list(args))
    context = rclpy.get_default_context()
    status = [0]
    threading.Thread(target=_insist, args=(context, status), daemon=True).start()
    node = None
    try:
        node = make_node()
        executor = LeanExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        _shut_down()  # rclpy's own handler may be slower: a node must see that it was told to end
    except Exception as error:
        if not _ends(context):  # else the error is only that of a call that was cut short
            status[0] = 1
            if not isinstance(error, (OSError, ValueError, RuntimeError)):
                raise
            print(f"{node.get_name() if node else 'node'}: {error}", file=sys.stderr)  # ours name the thing and the remedy
    finally:
        # Ctrl-C under ros2 launch comes twice, from the terminal and from launch; the second must not cut the end short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        _shut_down()
    return status[0]


def _ends(context: rclpy.Context) -> bool:
    """Whether the process was told to end, which the context may learn a little later than a call that the signal interrupts."""
    deadline = time.monotonic() + NOTICE
    while context.ok() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not context.ok()


def _shut_down() -> None:
    with contextlib.suppress(rclpy_implementation.RCLError):  # rclpy's own handler was faster by an instant
        rclpy.try_shutdown()


def _insist(context: rclpy.Context, status: list[int]) -> None:
    """Loading a policy or a long inference cannot be interrupted, but a robot's user who says stop means it."""
    while context.ok():
        time.sleep(0.1)
    time.sleep(SHUTDOWN)
    sys.stdout.flush()
    os._exit(status[0])
