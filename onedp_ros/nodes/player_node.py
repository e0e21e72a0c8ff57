"""A recording -> the topics of cameras and robot, byte for byte, with /clock: for nodes with use_sim_time.

In lockstep the recording waits: a camera frame is published once every earlier observation has its chunk, however slow the policy
is. In real time messages are published at their recorded times. The nodes must receive the very first message, so connections are
probed beforehand, with the first messages stamped after the recording's end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, ContractError, ObservationAssembler
from onedp_ros.contract.camera_check import CameraCheck
from onedp_ros.data.bags.reader import BagError, read_serialized
from onedp_ros.messages.decode import feed, restamped, stamp_ns
from onedp_ros.messages.encode import MESSAGES
from onedp_ros.nodes.lib.parameters import declare, declare_cameras, declare_contract
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import report_failure

DEPTH = 100  # messages in a queue
LOOK_PERIOD = 0.0005  # s, polling period while waiting
TRY_PERIOD = 0.2  # s per probe of the connections
TRIES_AFTER = 100 * NANOSECONDS  # ns after the recording's end: when the clock goes back that far, the nodes reset
AROUND = 5_000_000  # ns from a probe's frames to the robot states before and after them
QUIET = 1.0  # s without a chunk after which a recording played in real time is over


class PlayerNode(Node):
    """Plays the cameras, joint states and poses of a bag.

    Args:
        sink: called with topic and message of the nodes' output: observation/*, action/chunk.
        check: called while waiting; raises if a node has died.

    Attributes:
        late: observations without a chunk within ``timeout``.

    Raises:
        BagError: the bag cannot be read, or lacks one of the contract's topics.
    """

    def __init__(
        self,
        sink: Callable[[str, Any], None] = lambda topic, message: None,
        check: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ) -> None:
        super().__init__("player_node", **kwargs)
        self._sink, self._check = sink, check
        self.contract = declare_contract(self)
        self._bag = Path(declare(self, "bag", "", "Bag to play"))
        kind, cameras = declare_cameras(self, self.contract)
        self._real_time = declare(self, "real_time", False, "Play at the recorded speed instead of waiting for the policy")
        self._timeout = declare(self, "timeout", 10.0, "How long to wait for an observation's chunk, s", 0.1, 600.0)
        self._start_time = declare(self, "start_time", 120.0, "How long to wait for the nodes, s", 1.0, 3600.0)

        self._cameras = list(cameras.values())
        self._robot = {topic: MESSAGES[name] for topic, name in self.contract.state_topics.items()}
        self._kinds: dict[str, Any] = {**dict.fromkeys(self._cameras, kind), **self._robot}
        self.late = 0
        self._answered: set[int] = set()  # stamps of the received chunks
        self._heard = 0.0  # arrival of the last one
        self._first, self._end = self._look_through()

        qos = {topic: qos_profile_sensor_data if topic in self._cameras else DEPTH for topic in self._kinds}
        self._senders = {topic: self.create_publisher(kind, topic, qos[topic]) for topic, kind in self._kinds.items()}
        self._clock_sender = self.create_publisher(Clock, "/clock", DEPTH)
        outputs: dict[str, Any] = {f"observation/{name}/image": Image for name in self.contract.cameras}
        outputs |= {"observation/state": JointState, "action/chunk": MultiDOFJointTrajectory}
        self._answers = [PolledSubscriber(self, k, t, DEPTH, partial(self._on_answer, t)) for t, k in outputs.items()]

    def _look_through(self) -> tuple[dict[str, bytes], int]:
        """The first message of each topic, and the end of the recording (ns)."""
        first: dict[str, bytes] = {}
        end = 0
        for end, topic, data in self._messages():  # noqa: B007
            first.setdefault(topic, data)
        if missing := sorted(set(self._kinds) - set(first)):
            raise BagError(f"{self._bag} lacks the topics {missing}; a policy cannot run on it")
        return first, end

    def _messages(self) -> Iterator[tuple[int, str, bytes]]:
        """Log time (ns), topic and serialized message of each message to play, in log order."""
        for message in read_serialized(self._bag, self._kinds):
            yield message.logged, message.topic.lstrip("/"), message.data

    def connect(self) -> None:
        """Wait for the nodes until a probe observation results in a chunk. RuntimeError if none does."""
        deadline = time.monotonic() + self._start_time
        stamp = self._end + TRIES_AFTER
        while True:
            stamp += NANOSECONDS
            self._tick(stamp)
            for at, topics in ((stamp - AROUND, self._robot), (stamp, self._cameras), (stamp + AROUND, self._robot)):
                for topic in topics:
                    self._senders[topic].publish(restamped(self._first[topic], at))
            if self._wait(lambda: stamp in self._answered, TRY_PERIOD):  # noqa: B023
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no chunk within {self._start_time:.0f} s; do observation_node and policy_node run, with use_sim_time?"
                )

    def play(self) -> None:
        """Publish the recording."""
        assembler, check = ObservationAssembler(self.contract), CameraCheck(self.contract)
        due: set[int] = set()
        begin: tuple[float, int] | None = None
        for logged, topic, data in self._messages():
            if self._real_time:
                begin = begin or (time.monotonic(), logged)
                at = begin[0] + (logged - begin[1]) / NANOSECONDS
                self._wait(lambda: time.monotonic() >= at, float("inf"))  # noqa: B023
            elif topic in self._cameras:
                self._await(due)
            self._senders[topic].publish(data)
            self._tick(logged)  # after it: the nodes poll when their clock advances
            if not self._real_time:
                with suppress(ContractError):  # the node rejects it, too
                    feed(assembler, topic, deserialize_message(data, self._kinds[topic]))
                due |= {observation.stamp for observation in assembler.pop() if not check.faults(observation)}
        self._await(due)
        if self._real_time:
            self._wait(lambda: time.monotonic() - self._heard > QUIET, self._timeout)

    def _await(self, due: set[int]) -> None:
        """Wait for the chunks with these stamps."""
        if not self._wait(lambda: due <= self._answered, self._timeout):
            self.late += len(due - self._answered)
        due.clear()

    def _wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Poll the nodes' output until ``done()``; False after ``timeout`` (s)."""
        deadline = time.monotonic() + timeout
        while True:
            for subscriber in self._answers:
                subscriber.poll()
            if done():
                return True
            if time.monotonic() > deadline:
                return False
            self._check()
            time.sleep(LOOK_PERIOD)

    def _tick(self, now: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now, NANOSECONDS)
        self._clock_sender.publish(message)

    def _on_answer(self, topic: str, message: Any) -> None:
        stamp = stamp_ns(message)
        if topic == "action/chunk":
            self._answered.add(stamp)
            self._heard = time.monotonic()
        if stamp < self._end + TRIES_AFTER:
            self._sink(topic, message)


def main(args: list[str] | None = None) -> int:
    """Play a bag once. Exit status: 0 on success."""
    rclpy.init(args=args)
    node = None
    try:
        node = PlayerNode()
        node.connect()
        node.play()
        print(f"played, {node.late} observations without a chunk in time", flush=True)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        report_failure(node, error)
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
