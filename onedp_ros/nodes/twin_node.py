"""The simulated cell as a robot and its cameras, with the same topics as the real ones.

A thread advances physics in real time, polls targets when it needs them and publishes states at 200 Hz; a child process renders and
publishes the camera frames, so that physics never waits for rendering; the executor's thread handles services.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty
from std_srvs.srv import SetBool, Trigger

from onedp_ros import clock
from onedp_ros.clock import PauseWatch
from onedp_ros.contract import NANOSECONDS
from onedp_ros.control.chunk import Target
from onedp_ros.control.joints import ARM_JOINTS
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import header, opening_of, pose_message, transform_message
from onedp_ros.nodes.lib.diagnostics import Diagnostics, Rate, counted, worst
from onedp_ros.nodes.lib.input_watch import InputWatch
from onedp_ros.nodes.lib.parameters import declare_contract, declare_robot_file, declare_within
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.nodes.lib.targets import TargetPublisher
from onedp_ros.nodes.lib.twin_cameras import OPTICAL_FRAME, draw_frames
from onedp_ros.settings import values_and_expected
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import TaskOptions
from onedp_ros.twin.cell import FINGER_JOINTS, camera_frames
from onedp_ros.twin.settings import TwinSettings
from onedp_ros.twin.stepped import SETTLING, Frame, TimedCell

LINKS = {"hand": "fr3_hand"}  # MuJoCo body -> link name in franka_description
LONGEST_PAUSE = 3.0  # s: after a longer suspension the expert does not continue by itself
STALE_AFTER = 0.25  # s without a target: decelerate and hold
LATE = 0.1  # s that physics may lag behind the clock before the lost time is skipped
RECENT = 5.0  # s for which lost time is reported
IGNORED_AFTER_RESET = 0.3  # s after a reset in which targets are ignored: they are for the arm's earlier pose


class TwinNode(Node):
    """Services ``~/reset`` (places objects and arm for the parameter ``seed``, then increments it), ``~/success`` (whether the task
    is accomplished; if not, why the episode would fail if it ended now) and ``~/expert`` (std_srvs/SetBool: lets the scripted
    expert drive instead of an operator). The task's options are parameters with the same names."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("twin_node", **kwargs)
        contract = declare_contract(self)
        settings = TwinSettings.from_yaml(declare_robot_file(self, "twin"))
        task = TASKS.get(contract.task)
        if task.scene is None:
            raise ValueError(f"task {contract.task} has no scene in the twin's cell; evaluate it with onedp evaluate")
        options = {
            name: declare_within(self, name, default, expected, "Option of the task")
            for name, (default, expected) in values_and_expected(task.options()).items()
        }
        chosen = task.choose(options)
        assert isinstance(chosen, TaskOptions)
        scene = task.scene(chosen)
        seeds = IntegerRange(from_value=0, to_value=2**31 - 1, step=1)
        description = "Seed of the next ~/reset; counts up with every reset"
        self.declare_parameter("seed", 100000, ParameterDescriptor(description=description, integer_range=[seeds]))
        self._base_frame = contract.base_frame
        self._lock = threading.Lock()
        self._pauses = PauseWatch(LONGEST_PAUSE)
        self._target: tuple[np.ndarray, np.ndarray] | None = None
        self._opening: float | None = None
        self._target_time = 0.0
        self._control_step = contract.dt_ns
        self._expert = False
        self._expert_due = 0
        self._deaf_until = 0.0
        self._target_publisher: TargetPublisher | None = None  # the expert's, while it drives
        self._resting: TargetPublisher | None = None  # the expert's, to be destroyed after it drove
        self._reset: threading.Event | None = None
        self._asked: threading.Event | None = None
        self._answer = (False, "")
        self._closing = threading.Event()
        self._epoch = 0

        self._timed = TimedCell(contract, scene, settings, self._on_state, self._on_frame, chosen.variation)
        self._joint_publisher = self.create_publisher(JointState, contract.arm.joint_states_topic, 10)
        self._pose_publisher = self.create_publisher(PoseStamped, contract.arm.pose_topic, 10)
        self._commands = [
            PolledSubscriber(self, PoseStamped, contract.arm.target_topic, 1, self._on_target),
            PolledSubscriber(self, JointState, contract.arm.gripper_topic, 1, self._on_gripper),
            PolledSubscriber(self, Empty, "target_stop", 1, self._on_stop),
        ]
        self._watches = [InputWatch(self, command.subscription, STALE_AFTER) for command in self._commands[:2]]
        self._refused: Counter[str] = Counter()
        self._far_at = self._settled_at = float("-inf")
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/success", self._on_success)
        self.create_service(SetBool, "~/expert", self._on_expert)

        self._publish_camera_frames()
        topics = {name: self.resolve_topic_name(camera.topic) for name, camera in contract.cameras.items()}
        spawn = multiprocessing.get_context("spawn")
        self._frames = spawn.Queue(maxsize=2)
        self._sent = spawn.Array("q", len(topics), lock=False)
        arguments = (self._frames, dict(contract.cameras), topics, self._sent, scene, chosen.variation)
        self._cameras = spawn.Process(target=draw_frames, args=arguments, daemon=True)
        self._cameras.start()

        self._state_rate, self._holds, self._skipped = Rate(), 0, 0
        self._lost, self._lost_at = 0.0, float("-inf")
        self._camera_names = list(topics)
        self._diagnostics = Diagnostics(self, self._report, "twin")
        self._thread = threading.Thread(target=self._run, name="physics")
        self._thread.start()

    def _publish_camera_frames(self) -> None:
        """Static transforms of the cameras, for RViz."""
        try:
            from tf2_msgs.msg import TFMessage  # not among the wheels
        except ImportError:
            return
        lasting = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._frames_publisher = self.create_publisher(TFMessage, "/tf_static", lasting)
        transforms = [
            transform_message(position, quaternion, LINKS.get(body, self._base_frame), OPTICAL_FRAME.format(name), self._now())
            for name, (body, position, quaternion) in camera_frames(self._timed.cell.model).items()
        ]
        self._frames_publisher.publish(TFMessage(transforms=transforms))

    def destroy_node(self) -> None:
        self._closing.set()
        self._thread.join()
        if self._cameras.is_alive():
            try:
                self._frames.put(None, timeout=0.2)
            except queue.Full:
                self._cameras.terminate()
            self._cameras.join(0.8)
        if self._cameras.is_alive():
            self._cameras.kill()
        self._frames.cancel_join_thread()
        super().destroy_node()

    # thread of physics

    def _on_target(self, message: PoseStamped) -> None:
        if self._expert or clock.now() < self._deaf_until:
            return
        p, q = message.pose.position, message.pose.orientation
        position, quaternion = np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])
        length = float(np.linalg.norm(quaternion))
        whole = np.all(np.isfinite(position)) and abs(length - 1.0) < 0.01  # a NaN length fails too
        if not whole or message.header.frame_id != self._base_frame:
            self._refused["malformed"] += 1
            return
        if refusal := self._watches[0].refusal(stamp_ns(message)):
            self._refused[refusal] += 1
            return
        cell = self._timed.cell
        if clock.now() < self._settled_at or (cell.stopping and not cell.filter.at_rest):
            self._refused["braking"] += 1
            return
        if self._target is None and not self._timed.may_follow(position, quaternion / length):
            self._refused["far"] += 1
            self._far_at = clock.now()
            return
        self._target, self._target_time = (position, quaternion / length), clock.now()
        cell.stopping = False

    def _on_stop(self, _message: Empty) -> None:
        if not self._expert:
            self._settled_at = clock.now() + SETTLING
            self._brake()

    def _brake(self) -> None:
        """Decelerate as fast as the servo's limits allow, and hold. Targets are followed again once the arm is at rest."""
        if self._target is not None:
            self._holds += 1
            self._target = None
            self._timed.cell.brake()

    def _on_gripper(self, message: JointState) -> None:
        if self._expert or clock.now() < self._deaf_until:
            return
        opening = opening_of(message)
        if opening is None:
            self._refused["gripper"] += 1
        elif refusal := self._watches[1].refusal(stamp_ns(message)):
            self._refused[f"gripper_{refusal}"] += 1
        else:
            self._opening = opening

    # executor's thread

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        done = threading.Event()
        with self._lock:
            self._reset = done
        response.success = done.wait(2.0)
        response.message = f"seed {self._seed}" if response.success else "physics did not answer within 2 s"
        return response

    def _on_success(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        asked = threading.Event()
        with self._lock:
            self._asked = asked
        answered = asked.wait(2.0)
        response.success, response.message = self._answer if answered else (False, "physics did not answer within 2 s")
        return response

    def _on_expert(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        made = None
        if request.data and not self._expert:  # before taking the lock, which would block physics
            made = TargetPublisher(self, self._timed.contract)
        with self._lock:
            self._expert, self._expert_due = request.data, 0
            if made is not None:
                self._resting, self._target_publisher = self._target_publisher, made
        response.success, response.message = True, "the expert drives" if request.data else "the expert rests"
        return response

    # thread of physics

    def _run(self) -> None:
        try:
            self._place()
            while not self._closing.is_set():
                self._advance()
        except Exception:  # a publisher fails when the context goes down first
            if self.context.ok():
                raise

    def _advance(self) -> None:
        """Apply the newest command and advance to the next state sample or exposure."""
        if self._pauses.check():
            with self._lock:
                self._expert = False  # after a suspension nobody expects it to continue
        for subscriber in self._commands:
            subscriber.poll()
        self._watches[0].alone()
        with self._lock:
            reset, self._reset = self._reset, None
            asked, self._asked = self._asked, None
            if self._target_publisher is None:  # it was destroyed while it was requested again
                self._expert = False
            expert = self._expert
            if not expert:
                self._resting, self._target_publisher = self._target_publisher or self._resting, None
            resting, self._resting = self._resting, None
        if resting is not None:  # other nodes count the publishers of targets
            resting.destroy()
        if expert and reset is None and self._timed.stamp >= self._expert_due:
            self._demonstrate()
        target, opening = self._target, self._opening
        stale = clock.now() - self._target_time > STALE_AFTER
        if reset is not None:
            self._deaf_until = clock.now() + IGNORED_AFTER_RESET
            self._place()
            reset.set()
            return
        cell = self._timed.cell
        if target is not None and (stale or (not expert and not self._watches[0].publishers)):
            self._brake()
            target = None
        if target is None and cell.stopping:
            self._hold = (self._timed.set_point, cell.filter.quaternion)
        position, quaternion = self._hold if target is None else target
        self._timed.command(position, quaternion, cell.target_opening if opening is None else opening)
        self._timed.advance()
        if asked is not None:
            success = self._timed.success()
            self._answer = (success, "success" if success else self._timed.failure())
            asked.set()
        ahead = (self._epoch + self._timed.stamp - self._now()) / NANOSECONDS
        if ahead > 0:
            self._closing.wait(ahead)
        elif ahead < -LATE:
            self._lost -= ahead
            self._lost_at = clock.now()
            self._epoch -= round(ahead * NANOSECONDS)

    def _demonstrate(self) -> None:
        """Command the expert's next target, and publish it like an operator's."""
        assert self._target_publisher is not None
        self._expert_due = self._timed.stamp + self._control_step
        self._timed.cell.stopping = False
        position, quaternion, opening = self._timed.expert()
        self._target, self._target_time, self._opening = (position, quaternion), clock.now(), opening
        stamp = self._epoch + self._timed.stamp
        self._target_publisher.publish(Target(position, quaternion, opening), stamp)

    def _place(self) -> None:
        seed = self._seed = int(self.get_parameter("seed").value)
        self._target, self._opening, self._expert_due = None, None, 0
        self._epoch = self._now()
        self._timed.reset(np.random.default_rng(seed))
        self._hold = (self._timed.position, self._timed.cell.quaternion)
        self.set_parameters([rclpy.parameter.Parameter("seed", value=seed + 1)])

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _on_state(self, stamp: int) -> None:
        data, stamp = self._timed.cell.data, self._epoch + stamp
        joints = JointState(header=header(stamp), name=[*ARM_JOINTS, *FINGER_JOINTS])
        joints.position, joints.velocity = data.qpos[:9].tolist(), data.qvel[:9].tolist()
        self._joint_publisher.publish(joints)
        self._pose_publisher.publish(pose_message(self._timed.position, self._timed.cell.quaternion, stamp, self._base_frame))
        self._state_rate.tick()

    def _on_frame(self, frame: Frame) -> None:
        if frame.stamp < 0:
            return
        try:
            self._frames.put_nowait((frame, self._epoch + frame.stamp))
        except queue.Full:
            self._skipped += 1

    def _report(self) -> tuple[Any, str, dict[str, Any]]:
        values = {
            "state_hz": round(self._state_rate.hz(), 1),
            **{f"frames_sent_{name}": self._sent[i] for i, name in enumerate(self._camera_names)},
            "frames_skipped": self._skipped,
            "targets_refused": sum(self._refused.values()),
            **counted("targets_refused", self._refused),
            "holds": self._holds,
            "time_lost_s": round(self._lost, 3),
        }
        if not self._thread.is_alive():
            return DiagnosticStatus.ERROR, "physics stopped; see the log above", values
        if not self._cameras.is_alive():
            return DiagnosticStatus.ERROR, "camera process died: is OpenGL (EGL) installed? see the log above", values
        level, text = worst(
            *(None if self._expert else watch.finding() for watch in self._watches),
            (DiagnosticStatus.WARN, "the target is too far from the arm to begin with; disable and enable action_node")
            if clock.now() - self._far_at < RECENT
            else None,
            (DiagnosticStatus.WARN, "physics loses time: the machine is overloaded")
            if clock.now() - self._lost_at < RECENT
            else None,
            fine="running",
        )
        return level, text, values


def main(args: list[str] | None = None) -> int:
    return run_node(TwinNode, args)


if __name__ == "__main__":
    sys.exit(main())
