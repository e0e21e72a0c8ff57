"""The executor of the nodes' processes, and subscriptions outside it."""

import threading

import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from std_srvs.srv import Trigger

from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import pose_message
from onedp_ros.nodes.lib.executor import LeanExecutor
from onedp_ros.nodes.lib.polled import PolledSubscriber

pytestmark = pytest.mark.concurrent


class Worker(Node):
    """Does one of everything."""

    def __init__(self, **kwargs):
        super().__init__("worker", **kwargs)
        self.poses, self.ticks, self.woken = [], 0, 0
        self.create_subscription(PoseStamped, "early", self.poses.append, 10)
        self.timer = self.create_timer(0.01, self.on_timer)
        self.guard = self.create_guard_condition(self.on_guard)
        self.create_service(Trigger, "~/late", self.on_late)

    def on_timer(self):
        self.ticks += 1
        if self.ticks == 5:
            self.guard.trigger()

    def on_guard(self):
        self.woken += 1

    def on_late(self, request, response):
        self.create_subscription(PoseStamped, "late", self.poses.append, 10)
        response.success = True
        return response


def pose(stamp):
    return pose_message([0.1, 0.2, 0.3], [1, 0, 0, 0], stamp, "base")


def test_messages_timers_guards_and_services_are_served_and_new_subscriptions_too(rig):
    worker = rig.add(Worker)
    early, late = (rig.node.create_publisher(PoseStamped, topic, 10) for topic in ("early", "late"))
    client = rig.node.create_client(Trigger, "worker/late")
    rig.until(client.service_is_ready, "the service")
    rig.until(lambda: early.get_subscription_count(), "the first subscription")
    early.publish(pose(1))
    rig.until(lambda: worker.poses, "the message")
    assert stamp_ns(worker.poses[0]) == 1
    rig.until(lambda: worker.ticks > 10, "the timer")
    assert worker.woken == 1
    future = client.call_async(Trigger.Request())
    rig.until(future.done, "the answer")
    assert future.result().success
    rig.until(lambda: late.get_subscription_count(), "the second subscription")
    late.publish(pose(2))
    rig.until(lambda: len(worker.poses) == 2, "the message of the new subscription")
    worker.timer.cancel()
    rig.until(lambda: worker.timer.is_canceled(), "the end of the timer")


def test_an_error_in_a_callback_ends_spin(rig):
    node = Node("broken", context=rig.context)
    executor = LeanExecutor(context=rig.context)
    executor.add_node(node)
    node.create_timer(0.001, lambda: [][0])
    with pytest.raises(IndexError):
        executor.spin()
    executor.shutdown()
    node.destroy_node()


def test_spin_ends_with_its_context():
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = Node("brief", context=context)
    executor = LeanExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    rclpy.shutdown(context=context)
    thread.join(5.0)
    assert not thread.is_alive()


def test_polled_messages_wait_for_poll_and_can_be_raw(rig):
    seen, raw = [], []
    node = rig.add(lambda **kwargs: Node("poller", **kwargs))
    subscriber = PolledSubscriber(node, PoseStamped, "poses", 3, seen.append)
    bytes_of = PolledSubscriber(node, PoseStamped, "poses", 3, lambda message, arrival: raw.append((message, arrival)), raw=True)
    publisher = rig.node.create_publisher(PoseStamped, "poses", 10)
    rig.until(lambda: publisher.get_subscription_count() == 2, "the subscriptions")
    for stamp in range(1, 6):
        publisher.publish(pose(stamp))
    rig.until(lambda: bytes_of.poll() or (raw and stamp_ns(deserialize_message(raw[-1][0], PoseStamped)) == 5), "the last message")
    assert not seen
    rig.until(lambda: subscriber.poll() or (seen and stamp_ns(seen[-1]) == 5), "the same")
    assert len(seen) <= 5 and [stamp_ns(m) for m in seen] == sorted(stamp_ns(m) for m in seen)
    arrivals = [arrival for _, arrival in raw]
    assert all(a > 1_600_000_000 * 10**9 for a in arrivals) and arrivals == sorted(arrivals)
