"""Cameras and robot state -> observations: one stamp for each set of images, with the state interpolated to it.

One thread: each frame, and then the robot's state, goes to an ObservationAssembler, and completed observations are published,
unless a camera is faulty (``camera_check``) or the observation is stale, for example after this process was suspended: then the arm
holds. Bad input never escapes a callback; it is counted in /diagnostics and logged with the remedy.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState

from onedp_ros.contract import NANOSECONDS, ContractError, Observation, ObservationAssembler
from onedp_ros.contract.camera_check import CameraCheck
from onedp_ros.messages.decode import feed, stamp_ns
from onedp_ros.messages.encode import MESSAGES, image_message, state_message
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, Percentiles, Rate, RecentProblem, counted, worst
from onedp_ros.nodes.lib.input_watch import InputWatch
from onedp_ros.nodes.lib.parameters import declare, declare_cameras, declare_contract
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node

STATE_DEPTH = 100  # robot states between two frames: at 1 kHz, 100 ms
SETTLING = 3.0  # s after a camera's first frame until its rate is checked
LONGEST_TEXT = 500  # characters of an error that are reported
POLL_PERIOD, POLLS = 0.002, 10  # s, and number of polls for the robot's state after a frame


class ObservationNode(Node):
    """Camera, joint and pose topics of the contract -> observation/{camera}/image, observation/state."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("observation_node", **kwargs)
        self.contract = declare_contract(self)
        kind, self._cameras = declare_cameras(self, self.contract)
        self._timeout = declare(self, "timeout", 0.5, "Silence after which a topic counts as stopped, s", 0.05, 10.0)
        self._tolerance = declare(self, "future_tolerance", 0.05, "How far a stamp may lie ahead of this clock, s", 0.0, 1.0)
        self._max_age = declare(
            self, "max_observation_age", 0.5, "Age from which messages are refused and observations not published, s", 0.05, 1000.0
        )

        self._assembler, self._check = ObservationAssembler(self.contract), CameraCheck(self.contract)
        self._blind: dict[str, str] = {}  # by camera, the fault of the newest image
        self._started = time.monotonic()
        self._heard: dict[str, float] = {}
        self._received: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._problem = RecentProblem(self)
        self._published, self._last_published = 0, self._started
        self._rate, self._latency = Rate(), Percentiles()
        self._frame_rates = {topic: Rate() for topic in self._cameras.values()}
        self._first_frame: dict[str, float] = {}

        self._image_publishers = {
            name: self.create_publisher(Image, f"observation/{name}/image", qos_profile_sensor_data)
            for name in self.contract.cameras
        }
        self._state_publisher = self.create_publisher(JointState, "observation/state", qos_profile_sensor_data)
        self._watches = {}
        for topic in self._cameras.values():
            subscription = self.create_subscription(kind, topic, functools.partial(self._on_frame, topic), qos_profile_sensor_data)
            self._watches[topic] = InputWatch(self, subscription)
        self._robot = []
        for topic, name in self.contract.state_topics.items():
            self._robot.append(PolledSubscriber(self, MESSAGES[name], topic, STATE_DEPTH, functools.partial(self._take, topic)))
            self._watches[topic] = InputWatch(self, self._robot[-1].subscription)
        self._topics = [*self._cameras.values(), *self.contract.state_topics]
        self._polls = 0
        self._poller = self.create_timer(POLL_PERIOD, self._poll)
        self._diagnostics = Diagnostics(self, self._report)

    def _on_frame(self, topic: str, message: Any) -> None:
        self._frame_rates[topic].tick()
        self._first_frame.setdefault(topic, time.monotonic())
        self._take(topic, message)
        self._polls = 0
        self._poller.reset()
        self._poll()

    def _poll(self) -> None:
        """Poll the robot's states and publish the observations that they complete; repeat every 2 ms while one is pending, up to
        20 ms."""
        for subscriber in self._robot:
            subscriber.poll()
        for observation in self._assembler.pop():
            self._publish(observation)
        self._polls += 1
        if not self._assembler.pending or self._polls >= POLLS:
            self._poller.cancel()

    def _take(self, topic: str, message: Any) -> None:
        self._heard[topic] = time.monotonic()
        self._received[topic] += 1
        if reason := self._watches[topic].refusal(0):
            self._refused[f"{topic} {reason}"] += 1
            return
        ahead = (stamp_ns(message) - self.get_clock().now().nanoseconds) / NANOSECONDS
        remedy = "synchronise the clocks (chrony, use_sim_time)"
        if ahead > self._tolerance:
            self._refuse(topic, "from_the_future", f"{topic}: stamp is {ahead:.3f} s ahead; {remedy}")
            return
        if -ahead > self._max_age:
            self._refuse(topic, "too_old", f"{topic}: stamp is {-ahead:.3f} s old; {remedy}, or find what delays the messages")
            return
        try:
            feed(self._assembler, topic, message)
        except ContractError as error:
            self._refuse(topic, "against_the_contract", str(error)[:LONGEST_TEXT])

    def _refuse(self, topic: str, reason: str, text: str) -> None:
        self._refused[f"{topic} {reason}"] += 1
        self._problem.report(text)

    def _publish(self, observation: Observation) -> None:
        faults = self._check.faults(observation)
        self._blind = {name: text for name, (_, text) in faults.items()}
        for name, (reason, text) in faults.items():
            self._refuse(self._cameras[name], reason, text)
        if faults:
            return
        for name, publisher in self._image_publishers.items():
            publisher.publish(image_message(observation.images[name], observation.stamp, f"{name}_camera_color_optical_frame"))
        # As late as possible: an observation counts once its state is published.
        age = (self.get_clock().now().nanoseconds - observation.stamp) / NANOSECONDS
        if age > self._max_age:
            self._refuse("observation", "too_old", f"an observation {age:.1f} s old was not published; was this process suspended?")
            return
        self._state_publisher.publish(state_message(self.contract, observation.state, observation.stamp))
        self._published += 1
        self._last_published = time.monotonic()
        self._rate.tick()
        self._latency.add((self.get_clock().now().nanoseconds - observation.stamp) / 1e6)

    def _report(self) -> DiagnosticReport:
        for subscriber in self._robot:
            subscriber.poll()
        now = time.monotonic()
        silent = [t for t in self._topics if now - self._heard.get(t, self._started) > self._timeout]
        idle = now - self._last_published > 2 * self._timeout
        recent_problem = self._problem.text
        missing = [
            f"{topic}: "
            + (f"no message for {now - self._heard[topic]:.1f} s" if topic in self._heard else "no message yet")
            + "; check that its driver runs and publishes under this name (ros2 topic hz)"
            for topic in silent
        ]
        needed = self.contract.least_camera_hz
        slow = [
            f"{topic} arrives at {rate.hz():.1f} Hz, expected {needed:.3g} Hz or more (by control_hz and slop of the task file); "
            f"raise the camera's frame rate, and check whether a long exposure lowers it"
            for topic, rate in self._frame_rates.items()
            if 0.0 < rate.hz() < 0.9 * needed and topic not in silent and now - self._first_frame[topic] > SETTLING
        ]
        level, text = worst(
            *(watch.finding() for watch in self._watches.values()),
            (DiagnosticStatus.ERROR, "; ".join(missing)) if missing else None,
            (DiagnosticStatus.ERROR, "; ".join(self._blind.values())) if self._blind else None,
            (DiagnosticStatus.WARN, "; ".join(slow)) if slow else None,
            (DiagnosticStatus.ERROR if idle else DiagnosticStatus.WARN, recent_problem)
            if recent_problem and not self._blind
            else None,
            (
                DiagnosticStatus.ERROR,
                f"messages arrive, but no observation is complete: {dict(self._assembler.dropped)}; check stamps and slop",
            )
            if idle and not missing and not recent_problem
            else None,
            fine="running",
        )
        rates = {f"frames_hz_{name}": round(self._frame_rates[topic].hz(), 1) for name, topic in self._cameras.items()}
        frames = {f"frames_received_{name}": self._received[topic] for name, topic in self._cameras.items()}
        return (
            level,
            text,
            {
                "observation_hz": round(self._rate.hz(), 1),
                "observations": self._published,
                "frames_received": sum(frames.values()),
                **frames,
                **rates,
                **self._latency.values("observation_latency_ms"),
                "dropped": sum(self._assembler.dropped.values()),
                **counted("dropped", self._assembler.dropped),
                "refused": sum(self._refused.values()),
                **counted("refused", self._refused),
            },
        )


def main(args: list[str] | None = None) -> int:
    return run_node(ObservationNode, args)


if __name__ == "__main__":
    sys.exit(main())
