"""One publisher is believed; a second one, however short it lives, is not."""

import threading
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from onedp_ros.contract import NANOSECONDS
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import header
from onedp_ros.nodes.lib.input_watch import QUIET, InputWatch, SolePublisher
from onedp_ros.nodes.lib.polled import PolledSubscriber


def test_one_that_takes_over_is_believed_and_two_at_a_time_are_not():
    sole = SolePublisher()
    assert sole.update(0, 0, 0.0)
    assert sole.update(1, 1, 1.0), "the first"
    assert sole.update(0, 1, 2.0) and sole.update(1, 2, 3.0), "the next, after the first has gone"
    assert not sole.update(2, 3, 4.0)
    assert not sole.update(2, 3, 9.0)
    assert not sole.update(1, 3, 9.5), "for a while after, too"
    assert sole.update(1, 3, 9.1 + QUIET)


def test_a_second_publisher_between_two_looks_is_noticed():
    sole = SolePublisher()
    sole.update(1, 1, 0.0)
    assert not sole.update(1, 2, 1.0), "one came, and one went"
    assert not sole.update(1, 2, 0.9 + QUIET)
    assert sole.update(1, 2, 1.1 + QUIET)
    assert not SolePublisher().update(1, 2, 0.0), "two came and one went before the first look"


class Listener(Node):
    """Notes for each message who sent it and why it is refused; ``pose`` from the executor, ``polled`` every 50 ms."""

    def __init__(self, **kwargs):
        super().__init__("listener", **kwargs)
        self.taken = {"pose": [], "polled": []}
        pose = self.create_subscription(PoseStamped, "pose", lambda message: self._note("pose", message), 1)
        self._polled = PolledSubscriber(self, PoseStamped, "polled", 1, lambda message: self._note("polled", message))
        self.watches = {"pose": InputWatch(self, pose, 0.25), "polled": InputWatch(self, self._polled.subscription)}
        self.create_timer(0.05, self._polled.poll)

    def _note(self, topic, message):
        self.taken[topic].append((message.header.frame_id, self.watches[topic].refusal(stamp_ns(message))))


def test_nothing_of_publishers_that_live_for_an_instant_is_accepted(rig):
    listener = rig.add(Listener)
    own = {topic: rig.node.create_publisher(PoseStamped, topic, 1) for topic in listener.taken}

    def publish():
        for publisher in own.values():
            publisher.publish(PoseStamped(header=header(time.time_ns(), "own")))

    def accepted(since=0):
        return all(("own", "") in taken[since:] for taken in listener.taken.values())

    rig.until(lambda: publish() or accepted(), "the one publisher's messages")
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=rig.domain)
    stranger = Node("stranger", context=context, start_parameter_services=False)
    sent = dict.fromkeys(own, 0)

    def intrude():
        for i in range(20):
            for topic in own:
                publisher = stranger.create_publisher(PoseStamped, topic, 1)
                deadline = time.monotonic() + 2.0
                while not publisher.get_subscription_count() and time.monotonic() < deadline:
                    time.sleep(0.0005)
                for _ in range(3):
                    publisher.publish(PoseStamped(header=header(time.time_ns(), "stranger")))
                    sent[topic] += 1
                stranger.destroy_publisher(publisher)
            time.sleep(QUIET + 0.1 if i in (3, 7) else 0.01)  # also when the quiet is over

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        rig.until(lambda: publish() or not thread.is_alive(), "the end of the intrusion")
    finally:
        thread.join()
        stranger.destroy_node()
        rclpy.shutdown(context=context)
    for topic, taken in listener.taken.items():
        strange = [refusal for sender, refusal in taken if sender == "stranger"]
        assert len(strange) > 3 and set(strange) == {"several_publishers"}, (topic, sent)
        level, text = listener.watches[topic].finding()
        assert level == DiagnosticStatus.ERROR and topic in text
    since = max(map(len, listener.taken.values()))
    rig.until(lambda: publish() or accepted(since), "the one publisher's messages again")


def test_two_that_stay_are_refused_both_and_named(rig):
    listener = rig.add(Listener)
    first, second = (rig.node.create_publisher(PoseStamped, "pose", 1) for _ in range(2))
    watch, taken = listener.watches["pose"], listener.taken["pose"]
    rig.until(lambda: watch.finding(), "the finding")
    rig.until(lambda: first.publish(PoseStamped()) or second.publish(PoseStamped()) or len(taken) > 10, "messages")
    assert {refusal for _, refusal in taken} == {"several_publishers"}
    assert watch.finding()[1].startswith("2 nodes publish pose (/test_rig, /test_rig)")


def test_stamps_of_1970_and_of_tomorrow_are_refused_and_said(rig):
    listener = rig.add(Listener)
    publisher = rig.node.create_publisher(PoseStamped, "pose", 1)
    for stamp, reason in ((lambda: 0, "old"), (lambda: time.time_ns() + NANOSECONDS, "from_the_future"), (time.time_ns, "")):
        have = len(listener.taken["pose"])

        def said(stamp=stamp, reason=reason, have=have):
            publisher.publish(PoseStamped(header=header(stamp())))
            return ("", reason) in listener.taken["pose"][have:]

        rig.until(said, reason)
        assert reason == "" or "clocks" in listener.watches["pose"].finding()[1]
