"""Action chunks -> targets for the arm, sampled by time and kept within the safety limits.

One thread: a fresh chunk sends at once; a timer sends when that was not for ``1 / target_rate``, so that the arm is told what
comes next between late chunks too.
Disabled, nothing is published. Enabling begins at rest at the measured pose. After a hold of some seconds the node disables itself.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import MAX_OPENING, NANOSECONDS, ContractError
from onedp_ros.control.chunk import ChunkSchedule, Target
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.control.safety import SafetyGate
from onedp_ros.data.messages import chunk_from_message, pose_arrays, stamp_ns
from onedp_ros.nodes.diagnostics import Diagnostics, Percentiles, Rate, Report, counted, worst
from onedp_ros.nodes.input_watch import InputWatch
from onedp_ros.nodes.messages import header, pose_message
from onedp_ros.nodes.parameters import declare, declare_contract, declare_robot_file, declare_speed
from onedp_ros.nodes.polled import PolledSubscriber
from onedp_ros.nodes.process import main_of

POSE_TIMEOUT = 0.5  # s: a measured pose older than this is no place to begin from
LONGEST_HOLD = 3.0  # s: an arm that has stood still for so long does not start by itself


class ActionNode(Node):
    """action/chunk, the measured pose -> target_pose, gripper_target. Service ``~/enable`` (std_srvs/SetBool).

    The hand is told nothing until a chunk says what it shall do, so that enabling never lets go of what it holds.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("action_node", **kwargs)
        self.contract = declare_contract(self)
        path, speed = declare_robot_file(self, "twin"), declare_speed(self)
        target_rate = declare(self, "target_rate", 50.0, "Least targets a second; a fresh chunk gives one at once", 1.0, 1000.0)
        lead = declare(self, "lead", 0.18, "How far ahead of the clock chunks are sampled, s", 0.0, 0.5)
        self._enable_pending = declare(self, "enabled", False, "Enable at start, as soon as the measured pose is known")

        self._limits = SafetyLimits.from_yaml(path).slowed(speed)
        self._gate = SafetyGate(self._limits)
        self._schedule = ChunkSchedule(lead, self._limits.stale_after)
        self._pose: PoseStamped | None = None
        self._pose_time = float("-inf")
        self._enabled = False
        self._at_start = False  # whether that enabled it: then it waits for the policy to load
        self._followed = False  # whether a chunk has been followed since the arm was enabled
        self._state = "disabled"
        self._state_since = time.monotonic()
        self._sent_time = 0.0
        self._measured_stamp = 0
        self._chunks = self._targets = self._holds = 0
        self._refused: Counter[str] = Counter()
        self._problem: tuple[float, str] = (float("-inf"), "")
        self._rate, self._latency = Rate(), Percentiles()

        self._pose_publisher = self.create_publisher(PoseStamped, "target_pose", 1)
        self._gripper_publisher = self.create_publisher(JointState, "gripper_target", 1)
        chunks = self.create_subscription(MultiDOFJointTrajectory, "action/chunk", self._on_chunk, 1)
        self._measured = PolledSubscriber(self, PoseStamped, self.contract.pose_topic, 1, self._on_pose)
        self._chunk_watch, self._pose_watch = InputWatch(self, chunks), InputWatch(self, self._measured.subscription, POSE_TIMEOUT)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self._timer = self.create_timer(1.0 / target_rate, self._send)
        self._diagnostics = Diagnostics(self, self._report)

    def _on_pose(self, message: PoseStamped) -> None:
        if refusal := self._pose_watch.refusal(stamp_ns(message)):
            self._refused[f"pose_{refusal}"] += 1
            return
        self._pose, self._pose_time = message, time.monotonic()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enable_pending = self._at_start = False
        try:
            if not request.data:
                self._enabled = False
                self._enter("disabled")
            elif not self._enabled:
                self._enable()
            response.success, response.message = True, "enabled" if request.data else "disabled"
        except ValueError as error:
            response.success, response.message = False, str(error)
        return response

    def _enable(self) -> None:
        """Begin at rest at the measured pose. ValueError when it is not known or not a place to begin."""
        topic = self.contract.pose_topic
        self._measured.poll()
        if self._pose is None or abs(self._now() - stamp_ns(self._pose)) > POSE_TIMEOUT * NANOSECONDS:
            raise ValueError(
                f"no {topic} stamped within {POSE_TIMEOUT} s; start the robot's node, check the topic's name and the clocks"
            )
        if self._pose.header.frame_id != self.contract.base_frame:
            raise ValueError(f"{topic} is in frame '{self._pose.header.frame_id}', expected '{self.contract.base_frame}'")
        target = self._gate.start(*pose_arrays(self._pose.pose), MAX_OPENING)
        self._enabled, self._followed, self._sent_time = True, False, time.monotonic()
        self._enter("waiting")
        self._publish(target)

    def _enable_at_start(self) -> None:
        self._measured.poll()
        if self._pose is not None:
            self._enable_pending, self._at_start = False, True
            try:
                self._enable()
            except ValueError as error:
                self._warn(f"not enabled: {error}")

    def _on_chunk(self, message: MultiDOFJointTrajectory) -> None:
        self._chunks += 1
        if refusal := self._chunk_watch.refusal(stamp_ns(message)):
            self._gate.rejected[refusal] += 1
            return
        now = self._now()
        try:
            chunk = chunk_from_message(message, self.contract.base_frame)
        except ContractError as error:
            self._gate.rejected["malformed"] += 1
            self._warn(str(error))
            return
        if not self._gate.check(chunk, now):
            self._warn(f"action/chunk rejected, so far: {dict(self._gate.rejected)}; see policy_node")
            return
        self._schedule.add(chunk, now)
        if self._enabled:
            self._timer.reset()
            self._send()

    def _send(self) -> None:
        if self._enable_pending:
            self._enable_at_start()
        if not self._enabled:
            return
        now, clock = self._now(), time.monotonic()
        dt, self._sent_time = clock - self._sent_time, clock
        wanted = self._schedule.sample(now)
        if wanted is not None:
            target = self._gate.limit(wanted, dt)
            self._followed = True
            self._enter("following")
        else:
            target = self._gate.stop(dt)
            if self._followed:
                self._holds += self._state == "following"
                self._enter("stopping" if self._gate.moving else "holding")
            waits = self._state == "holding" or (self._state == "waiting" and not self._at_start)
            if waits and clock - self._state_since > LONGEST_HOLD:
                self._enabled = False
                self._enter("given up")
                return
        self._publish(target)
        chunk = self._schedule.chunk
        if wanted is not None and chunk is not None and chunk.stamp != self._measured_stamp:
            self._measured_stamp = chunk.stamp
            self._latency.add((self._now() - chunk.stamp) / 1e6)

    def _publish(self, target: Target) -> None:
        stamp = self._now()
        self._pose_publisher.publish(pose_message(target.position, target.quaternion, stamp, self.contract.base_frame))
        if self._followed:
            self._gripper_publisher.publish(JointState(header=header(stamp), name=["gripper"], position=[target.opening]))
        self._targets += 1
        self._rate.tick()

    def _enter(self, state: str) -> None:
        if state != self._state:
            self._state, self._state_since = state, time.monotonic()

    def _warn(self, text: str) -> None:
        self._problem = (time.monotonic(), text)
        self.get_logger().warning(text, throttle_duration_sec=2.0)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _report(self) -> Report:
        self._measured.poll()
        now = time.monotonic()
        for_seconds = now - self._state_since
        stopped = self._state in ("stopping", "holding")
        level, text = worst(
            self._chunk_watch.finding(),
            self._pose_watch.finding(),
            (DiagnosticStatus.ERROR, f"no valid chunk, arm {self._state} for {for_seconds:.1f} s; see policy_node")
            if stopped
            else None,
            (
                DiagnosticStatus.ERROR,
                f"disabled itself after {LONGEST_HOLD:.0f} s without a valid chunk; see policy_node, then call ~/enable",
            )
            if self._state == "given up"
            else None,
            (DiagnosticStatus.WARN, f"{self.contract.pose_topic}: not heard; start the robot's node")
            if now - self._pose_time > POSE_TIMEOUT
            else None,
            (DiagnosticStatus.WARN, self._problem[1]) if now - self._problem[0] < 2.0 else None,
            (DiagnosticStatus.WARN, "enabled, but no chunk yet; see policy_node")
            if self._state == "waiting" and for_seconds > 1.0
            else None,
            fine=self._state,
        )
        return (
            level,
            text,
            {
                "state": self._state,
                "enabled": self._enabled,
                "target_hz": round(self._rate.hz(), 2),
                "targets": self._targets,
                "chunks": self._chunks,
                **self._latency.values("latency_ms"),
                "holds": self._holds,
                "rejected": sum(self._gate.rejected.values()),
                **counted("rejected", self._gate.rejected),
                "limited": sum(self._gate.limited.values()),
                **counted("limited", self._gate.limited),
                **counted("refused", self._refused),
            },
        )


def main(args: list[str] | None = None) -> int:
    return main_of(ActionNode, args)


if __name__ == "__main__":
    sys.exit(main())
