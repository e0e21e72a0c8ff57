"""Decides whether a message may be acted upon: its stamp must be fresh, and its topic must have a single publisher."""

from __future__ import annotations

import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.impl.implementation_singleton import rclpy_implementation as rclpy_c
from rclpy.node import Node
from rclpy.subscription import Subscription

from onedp_ros.contract import NANOSECONDS

POSE_TIMEOUT = 0.5  # s: an older measured pose counts as unknown
FUTURE = 0.05  # s that a stamp may lie ahead of this clock
QUIET = 1.0  # s for which a publisher must have been the only one before it is trusted again
RECENT = 2.0  # s for which the refusal of a stamp is reported


class SolePublisher:
    """Decides from the current and total numbers of publishers whether there is, and recently was, only one.

    A publisher that takes over from one that has left is trusted at once; if two overlapped, or may have, none is trusted for
    :data:`QUIET` s.
    """

    def __init__(self) -> None:
        self.count = self.total = 0
        self._doubt_until = float("-inf")

    def update(self, count: int, total: int, now: float) -> bool:
        """Update the numbers at ``now`` (s, monotonic). Returns whether the publisher is trusted."""
        joined = total - self.total
        if count > 1 or joined > 1 or (joined and self.count):
            self._doubt_until = now + QUIET
        self.count, self.total = count, total
        return now >= self._doubt_until


class InputWatch:
    """Checks each message of a subscription that moves something.

    The middleware counts the publishers matched with a subscription, and a message can only come from one of these. The count is
    read with each message, so that even a short-lived publisher is noticed, which polling the graph would miss. Sequence numbers
    would be less reliable: a second publisher's may happen to continue the first's.

    A publisher whose process was killed counts until its lease expires, 20 s with Fast DDS's defaults.

    Args:
        max_age: largest age of a message, s; None: its stamp is checked elsewhere.
    """

    def __init__(self, node: Node, subscription: Subscription, max_age: float | None = None) -> None:
        self._node, self._subscription, self._max_age = node, subscription, max_age
        self._publishers = SolePublisher()
        self._event: Any = None
        matched = getattr(rclpy_c.rcl_subscription_event_type_t, "RCL_SUBSCRIPTION_MATCHED", None)
        if matched is not None:  # Humble has no such event, only the count
            with subscription.handle:
                self._event = rclpy_c.EventHandle(subscription.handle, matched)
        self._age, self._refused_at = 0.0, float("-inf")

    def alone(self) -> bool:
        """Whether there is a single publisher, and has been for a while."""
        now = time.monotonic()
        if self._event is None:
            count = self._subscription.get_publisher_count()
            total = self._publishers.total + max(count - self._publishers.count, 0)
        else:
            with self._event:
                status = self._event.take_event()
            count, total = status.current_count, status.total_count
        return self._publishers.update(count, total, now)

    @property
    def publishers(self) -> int:
        """Number of publishers at the last check."""
        return self._publishers.count

    def refusal(self, stamp: int) -> str:
        """Why a message stamped ``stamp`` (ns) must not be acted upon: ``several_publishers``, ``old`` or ``from_the_future``;
        empty if it may."""
        if not self.alone():
            return "several_publishers"
        if self._max_age is None:
            return ""
        age = (self._node.get_clock().now().nanoseconds - stamp) / NANOSECONDS
        if -FUTURE < age < self._max_age:
            return ""
        self._age, self._refused_at = age, time.monotonic()
        return "old" if age > 0 else "from_the_future"

    def finding(self) -> tuple[Any, str] | None:
        """The current problem, for ``diagnostics.worst``."""
        topic = self._subscription.topic
        if not self.alone():
            if self.publishers > 1:
                infos = self._node.get_publishers_info_by_topic(self._subscription.topic_name)
                names = ", ".join(sorted(f"{i.node_namespace.rstrip('/')}/{i.node_name}" for i in infos))
                text = f"{self.publishers} nodes publish {topic} ({names}); none is followed, stop all but one"
            else:
                text = f"another node also published {topic} within the last {QUIET:.0f} s, so none is followed; find that node"
            return DiagnosticStatus.ERROR, text
        if time.monotonic() - self._refused_at < RECENT:
            when = f"{self._age:.2f} s ago" if self._age > 0 else f"{-self._age:.2f} s ahead"
            return DiagnosticStatus.WARN, f"{topic} was stamped {when}; are the machines' clocks synchronised?"
        return None
