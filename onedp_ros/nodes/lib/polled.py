"""Subscriptions outside the executor.

Messages that are needed only at certain times stay in the subscription's queue until they are polled, so that hundreds of them per
second wake no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy


class _NeverExecuted(MutuallyExclusiveCallbackGroup):
    """A callback group whose entities the executor ignores."""

    def can_execute(self, entity: Any) -> bool:
        return False


class PolledSubscriber:
    """A subscription whose callback is called by :meth:`poll`.

    Best effort, so that it is compatible with any publisher. The queue keeps the newest ``depth`` messages.

    Args:
        callback: called as ``callback(message)``; with ``raw`` as ``callback(bytes, arrival)``: serialized, and its arrival (ns).
    """

    def __init__(
        self, node: Node, message_type: Any, topic: str, depth: int, callback: Callable[..., None], raw: bool = False
    ) -> None:
        self._node, self._callback, self._raw, self._depth = node, callback, raw, max(depth, 1)
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.subscription = node.create_subscription(message_type, topic, callback, qos, callback_group=_NeverExecuted(), raw=raw)

    def poll(self) -> None:
        """Call back for the messages received since the last call, oldest first."""
        handle = self.subscription.handle
        for _ in range(self._depth):  # bounded, in case a publisher is faster than this loop
            with handle:
                taken = handle.take_message(self.subscription.msg_type, self._raw)
            if taken is None:
                return
            message, info = taken
            if self._raw:
                self._callback(message, info["received_timestamp"])
            else:
                self._callback(message)

    def destroy(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self.subscription)
