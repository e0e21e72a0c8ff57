"""Action chunks -> targets for the arm, sampled by time and kept within the safety limits.

One thread: each new chunk triggers a target at once, and a timer sends one whenever ``1 / target_rate`` has passed without, so that
the arm also gets targets between late chunks. Enabling starts at rest at the measured pose. Disabling brakes the arm and then stops
publishing, as does shutdown. After holding, or being suspended, for some seconds, the node disables itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from std_msgs.msg import Empty
from std_srvs.srv import SetBool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros import clock
from onedp_ros.clock import REQUEST_DOUBT, SHORTEST_PAUSE, PauseWatch
from onedp_ros.contract import NANOSECONDS, ContractError
from onedp_ros.control.chunk import Target
from onedp_ros.control.handover import DEFAULT, describe_handovers
from onedp_ros.control.limits import LONGEST_STOP, SafetyLimits
from onedp_ros.control.safety import MeasuredPose, SafetyGate, jump, pose_fault
from onedp_ros.control.schedule import ChunkSchedule
from onedp_ros.messages.decode import chunk_from_message, pose_arrays, stamp_ns
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, Percentiles, Rate, RecentProblem, counted, worst
from onedp_ros.nodes.lib.input_watch import POSE_TIMEOUT, InputWatch
from onedp_ros.nodes.lib.parameters import declare, declare_contract, declare_dynamic, declare_robot_file, declare_speed
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.nodes.lib.targets import TargetPublisher

BRAKING_AGE = 0.1  # s: a stop does not follow a measured pose older than this
LONGEST_HOLD = 3.0  # s: an arm that has held for longer does not start by itself
PAUSE = 1.0  # s: after a longer one a request to enable may predate it
DOUBT = 0.3  # s for which a measured pose is not trusted after a jump
SILENT = ("disabled", "given up")  # states in which nothing is published


class ActionNode(Node):
    """action/chunk, the measured pose -> target_pose, gripper_target, target_stop. Service ``~/enable`` (std_srvs/SetBool).

    A stop is published in two ways: by target_stop, for nodes that support it and then brake as hard as their limits allow, and by
    targets that come to rest with the arm, for controllers that only follow targets.

    The hand gets no target until a chunk is followed, so that enabling never drops what it holds.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("action_node", **kwargs)
        self.contract = declare_contract(self)
        path, speed = declare_robot_file(self, "twin"), declare_speed(self)
        target_rate = declare(
            self, "target_rate", 50.0, "Lowest rate of targets, Hz; each new chunk gives one at once", 20.0, 1000.0
        )
        self._lead = declare_dynamic(self, "lead", 0.18, "How far ahead of the clock chunks are sampled, s", 0.0, 0.5)
        self._handover = declare(self, "handover", DEFAULT, f"How a new chunk replaces the last: {describe_handovers()}")
        self._enable_pending = declare(self, "enabled", False, "Enable at start, as soon as the measured pose is known")

        self._limits = SafetyLimits.from_yaml(path).slowed(speed)
        self._gate = SafetyGate(self._limits)
        self._schedule = ChunkSchedule(self._lead(), self._limits.stale_after, self._handover)
        self._pose: MeasuredPose | None = None
        self._pose_frame = ""
        self._jumped_at = float("-inf")
        self._enabled = False
        self._at_start = False  # whether it was enabled at start: then it waits for the policy to load
        self._followed = False  # whether a chunk has been followed since the arm was enabled
        self._restart = False  # whether to restart at the measured pose, after a suspension
        self._state, self._state_since = "disabled", clock.now()
        self._silence = "disabled"  # the state to enter after a stop
        self._gave_up = ""
        self._sent_time = clock.now()
        self._resumed_at, self._paused = float("-inf"), 0.0
        self._measured_stamp = 0
        self._chunks = self._targets = self._holds = 0
        self._refused: Counter[str] = Counter()
        self._problem = RecentProblem(self)
        self._rate, self._latency = Rate(), Percentiles()

        self._target_publisher = TargetPublisher(self, self.contract)
        self._stop_publisher = self.create_publisher(Empty, "target_stop", 1)
        chunks = self.create_subscription(MultiDOFJointTrajectory, "action/chunk", self._on_chunk, 1)
        self._measured = PolledSubscriber(self, PoseStamped, self.contract.arm.pose_topic, 1, self._on_pose)
        self._chunk_watch, self._pose_watch = InputWatch(self, chunks), InputWatch(self, self._measured.subscription, POSE_TIMEOUT)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self._timer = self.create_timer(1.0 / target_rate, self._send)
        self._diagnostics = Diagnostics(self, self._report)
        self._pauses = PauseWatch(max(self._limits.stale_after, SHORTEST_PAUSE))

    # inputs

    def _on_pose(self, message: PoseStamped) -> None:
        stamp, (position, quaternion) = stamp_ns(message), pose_arrays(message.pose)
        refusal = self._pose_watch.refusal(stamp) or pose_fault(position, quaternion)
        if refusal:
            self._refused[f"pose_{refusal}"] += 1
            return
        pose, before = MeasuredPose(stamp, position, quaternion / np.linalg.norm(quaternion)), self._pose
        self._pose, self._pose_frame = pose, message.header.frame_id
        if before is not None and (impossible := jump(before, pose)):
            self._refused["pose_jump"] += 1
            self._jumped_at = clock.now()
            text = f"{self.contract.arm.pose_topic} {impossible}; stop any other publisher of it, or wait for a reset to end"
            self._problem.report(text)
            if self._enabled:
                self._stop("given up", text)  # the cycle that polled the pose sends the stop's first target

    def _pose_now(self) -> MeasuredPose | None:
        """The measured pose; None if it is unknown."""
        self._measured.poll()
        pose = self._pose
        if pose is None or abs(self._now() - pose.stamp) > POSE_TIMEOUT * NANOSECONDS or clock.now() - self._jumped_at < DOUBT:
            return None
        return pose if self._pose_frame == self.contract.base_frame else None

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._notice_pause()
        self._enable_pending = self._at_start = False
        try:
            if not request.data:
                self._stop("disabled")
                self._send()
            elif not self._enabled:
                if clock.now() - self._resumed_at < REQUEST_DOUBT:
                    raise ValueError(
                        f"action_node did not run for {self._paused:.1f} s, and this request may be that old; repeat it in a few s"
                    )
                self._enable()
            response.success, response.message = True, "enabled" if request.data else "disabled"
        except ValueError as error:
            response.success, response.message = False, str(error)
        return response

    def _enable(self) -> None:
        """Start at rest at the measured pose. ValueError if it is unknown or cannot be started from."""
        topic, pose = self.contract.arm.pose_topic, self._pose_now()
        if pose is None:
            if self._pose is not None and self._pose_frame != self.contract.base_frame:
                raise ValueError(f"{topic} is in frame '{self._pose_frame}', expected '{self.contract.base_frame}'")
            finding = self._pose_watch.finding()
            raise ValueError(
                finding[1]
                if finding is not None
                else f"{topic} has just jumped; try again"
                if clock.now() - self._jumped_at < DOUBT
                else f"no {topic} stamped within {POSE_TIMEOUT} s; start the robot's node, check the topic's name and the clocks"
            )
        target = self._gate.start(pose.position, pose.quaternion, self.contract.arm.opening_range[1])
        self._schedule.clear()
        self._enabled, self._followed, self._restart, self._sent_time = True, False, False, clock.now()
        self._enter("waiting")
        self._publish(target, self._now())

    def _enable_at_start(self) -> None:
        if self._pose_now() is not None:
            self._enable_pending, self._at_start = False, True
            try:
                self._enable()
            except ValueError as error:
                self._problem.report(f"not enabled: {error}")

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
            self._problem.report(str(error))
            return
        if not self._gate.check(chunk, now):
            self._problem.report(f"action/chunk rejected, so far: {dict(self._gate.rejected)}; see policy_node")
            return
        self._schedule.add(chunk, now, self._gate.target)
        if self._enabled:
            self._timer.reset()
            self._send()

    # outputs

    def _notice_pause(self) -> None:
        """After a suspension of the process or the machine (SIGSTOP, swap, sleep), do not continue the earlier motion."""
        gap = self._pauses.check()
        if gap > PAUSE:
            self._resumed_at, self._paused = clock.now(), gap
        if not gap or not self._enabled:
            return
        self._schedule.clear()
        self._restart = True
        if gap > LONGEST_HOLD:
            self._give_up(f"it did not run for {gap:.1f} s; find what stopped this process or machine")

    def _send(self) -> None:
        self._notice_pause()
        if self._enable_pending:
            self._enable_at_start()
        pose = self._pose_now()
        if self._state in SILENT:
            return
        now, time_now = self._now(), clock.now()
        if self._restart and not self._begin_anew(pose):
            return
        dt, self._sent_time = time_now - self._sent_time, time_now
        if not self._chunk_watch.alone() or not self._chunk_watch.publishers:
            self._schedule.clear()
        self._schedule.lead = self._lead()
        wanted = self._schedule.sample(now) if self._enabled and pose is not None else None
        if wanted is not None:
            target = self._gate.limit(wanted, dt)
            self._followed = True
            self._enter("following")
        else:
            fresh = pose is not None and now - pose.stamp < BRAKING_AGE * NANOSECONDS
            target, before = self._gate.stop(dt, pose if fresh else None), self._state
            if not self._hold():
                return
            if self._state == "stopping" and (before == "following" or not self._enabled):
                self._stop_publisher.publish(Empty())
        self._publish(target, now)
        chunk = self._schedule.chunk
        if wanted is not None and chunk is not None and chunk.stamp != self._measured_stamp:
            self._measured_stamp = chunk.stamp
            self._latency.add((self._now() - chunk.stamp) / 1e6)

    def _begin_anew(self, pose: MeasuredPose | None) -> bool:
        """After a suspension, restart at rest at the measured pose. Returns False while that is unknown; then nothing is sent, and
        the arm's own watchdog holds it."""
        if self._followed:
            self._enter("holding")
        if pose is None:
            self._hold()
            return False
        try:
            self._gate.start(pose.position, pose.quaternion)
        except ValueError as error:
            self._give_up(str(error))
            return False
        self._restart = False
        return True

    def _hold(self) -> bool:
        """Keep track of a stop or a hold. Returns False once it has ended and nothing more is to be sent."""
        for_seconds = clock.now() - self._state_since
        if not self._enabled:
            if self._gate.moving and for_seconds < LONGEST_STOP:
                return True
            self._enter(self._silence)
            return True  # the last target is the pose at which the arm rests
        if self._followed:
            self._holds += self._state == "following"
            self._enter("stopping" if self._gate.moving else "holding")
        waits = self._state == "holding" or (self._state == "waiting" and not self._at_start)
        if waits and clock.now() - self._state_since > LONGEST_HOLD:
            self._give_up(f"{LONGEST_HOLD:.0f} s {self._missing_input()}")
            return False
        return True

    def _stop(self, silence: str, why: str = "") -> None:
        """Bring the arm to rest, from the next cycle on, then stop publishing."""
        self._gave_up, self._silence, self._enabled = why, silence, False
        self._enter(silence if self._state in SILENT else "stopping")

    def _give_up(self, why: str) -> None:
        """Stop publishing; the arm is at rest."""
        self._enabled, self._gave_up = False, why
        self._enter("given up")

    def come_to_rest(self) -> None:
        """Stop the arm, because the process is about to exit."""
        self._enable_pending = False
        self._stop("disabled")
        self._send()

    @property
    def at_rest(self) -> bool:
        """Whether the arm is at rest and publishing has stopped."""
        return self._state in SILENT

    def _missing_input(self) -> str:
        """The missing input, with the remedy."""
        if self._pose_now() is None:
            return f"without {self.contract.arm.pose_topic}; see the robot's node"
        return "without a valid chunk; see policy_node"

    def _publish(self, target: Target, stamp: int) -> None:
        """Publish a target with the time (ns) that it was sampled at, however long the thread was delayed since."""
        self._target_publisher.publish(target, stamp, with_opening=self._followed)
        self._targets += 1
        self._rate.tick()

    def _enter(self, state: str) -> None:
        if state != self._state:
            self._state, self._state_since = state, clock.now()

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _report(self) -> DiagnosticReport:
        pose_known = self._pose_now() is not None
        now = clock.now()
        for_seconds = now - self._state_since
        stopped = self._enabled and self._state in ("stopping", "holding")
        level, text = worst(
            self._chunk_watch.finding(),
            self._pose_watch.finding(),
            (DiagnosticStatus.ERROR, f"arm {self._state} for {for_seconds:.1f} s {self._missing_input()}") if stopped else None,
            (DiagnosticStatus.ERROR, f"disabled itself: {self._gave_up}; then call ~/enable")
            if self._state == "given up"
            else None,
            (DiagnosticStatus.WARN, f"{self.contract.arm.pose_topic}: no messages; start the robot's node")
            if not pose_known
            else None,
            self._problem.finding(),
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
                "handover": self._handover,
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
    return run_node(ActionNode, args, rest=True)


if __name__ == "__main__":
    sys.exit(main())
