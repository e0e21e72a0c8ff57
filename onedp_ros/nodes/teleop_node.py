"""An operator's device -> targets for the arm, kept within the same limits as a policy's.

One thread: a timer polls the device, moves the target and publishes it. Nothing is published before the dead-man switch is first
held, nor, after this process was suspended, until it is pressed again. Devices: see ``teleop.devices.base``. No message crashes the
node: those that cannot be used are counted in /diagnostics.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections import Counter
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from onedp_ros import clock
from onedp_ros.contract import LARGEST, NANOSECONDS, ContractError
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.control.safety import pose_fault
from onedp_ros.graph.client import name_within
from onedp_ros.messages.decode import decode_image, pose_arrays, stamp_ns
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, Rate, RecentProblem, counted, worst
from onedp_ros.nodes.lib.input_watch import POSE_TIMEOUT, InputWatch
from onedp_ros.nodes.lib.parameters import (
    declare,
    declare_cameras,
    declare_contract,
    declare_robot_file,
    declare_speed,
    declare_within,
)
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.nodes.lib.targets import TargetPublisher
from onedp_ros.resources import resource
from onedp_ros.settings import values_and_expected
from onedp_ros.teleop.devices import DEVICES, read_settings
from onedp_ros.teleop.devices.base import Command, Setup
from onedp_ros.teleop.session import Motion, Session

RATE = 60.0  # Hz of targets
PREVIEW_RATE, PREVIEW_SIZE, PREVIEW_QUALITY = 12.0, 320, 70  # of the operator's camera previews: Hz, pixels, JPEG quality
RECENT = 3.0  # s for which a problem is shown
MAX_NAMES, LONGEST_TEXT = 64, 300  # other nodes on /diagnostics, and characters of their messages, that are kept
RECORDER_EVENTS = ("start", "stop", "fail", "discard")


class TeleopNode(Node):
    """A device, the measured pose -> target_pose, gripper_target. Service ``~/home``: go home while the dead-man switch is held."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("teleop_node", **kwargs)
        self.contract = declare_contract(self)
        path, speed = declare_robot_file(self, "twin"), declare_speed(self)
        kind = declare(self, "device", "phone", f"One of {', '.join(DEVICES.names())}")
        file = declare(self, "teleop", "", "Path of a file like config/teleop.yaml; empty: that one")
        host = declare(self, "host", "127.0.0.1", "Address at which phones reach this machine; 0.0.0.0: any")
        port = declare(self, "port", 8443, "Port at which phones reach this machine", 1, 65535)
        image, cameras = declare_cameras(self, self.contract)
        recorder = declare(self, "recorder", "recorder_node", "Name of the recorder node, for the recording buttons")
        file = file or str(resource("config", "teleop.yaml"))
        motion = values_and_expected(Motion.from_yaml(file))
        given = {name: declare_within(self, name, *settings, f"See {file}") for name, settings in motion.items()}
        limits = SafetyLimits.from_yaml(path).slowed(speed)
        self._session = Session(Motion.from_dict(given).slowed(speed), limits, self.contract.arm.opening_range)
        self._recorder, self._kind = recorder, kind

        self._pose: PoseStamped | None = None
        self._opening: float | None = None
        self._others: dict[str, tuple[float, Any]] = {}
        self._refused: Counter[str] = Counter()
        self._problem = RecentProblem(self, seconds=RECENT)
        self._targets, self._rate = 0, Rate()
        tell = functools.partial(print, flush=True)
        setup = Setup(read_settings(file, kind), list(self.contract.cameras), host, port, tell)
        self._device = DEVICES.get(kind)(setup)

        self._target_publisher = TargetPublisher(self, self.contract)
        self._measured = [
            PolledSubscriber(self, PoseStamped, self.contract.arm.pose_topic, 1, self._on_pose),
            PolledSubscriber(self, JointState, self.contract.arm.joint_states_topic, 1, self._on_joints),
        ]
        self._pose_watch = InputWatch(self, self._measured[0].subscription, POSE_TIMEOUT)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._recorder_clients = {event: self.create_client(Trigger, f"{recorder}/{event}") for event in RECORDER_EVENTS}
        self.create_service(Trigger, "~/home", self._on_home)
        if self._device.joy_topic:
            self.create_subscription(Joy, self._device.joy_topic, self._on_joy, 1)
        if self._device.shows_frames:
            self._previews = [
                PolledSubscriber(self, image, topic, 1, functools.partial(self._on_frame, name)) for name, topic in cameras.items()
            ]
            self.create_timer(1.0 / PREVIEW_RATE, self._show_frames)
        self._stepped = clock.now()
        self.create_timer(1.0 / RATE, self._step)
        self._diagnostics = Diagnostics(self, self._report)

    def destroy_node(self) -> None:
        self._device.close()
        super().destroy_node()

    # inputs

    def _on_pose(self, message: PoseStamped) -> None:
        reason = self._pose_watch.refusal(stamp_ns(message)) or pose_fault(*pose_arrays(message.pose))
        if not reason and np.abs(pose_arrays(message.pose)[0]).max() > LARGEST:
            reason = "out_of_reach"
        if not reason and message.header.frame_id != self.contract.base_frame:
            reason = "in_another_frame"
        if reason:
            self._refused[f"{self.contract.arm.pose_topic} {reason}"] += 1
        else:
            self._pose = message

    def _on_joy(self, message: Joy) -> None:
        self._device.feed(message.axes, message.buttons)

    def _on_joints(self, message: JointState) -> None:
        arm, named = self.contract.arm, dict(zip(message.name, message.position, strict=False))
        fingers = [named.get(name, math.inf) for name in arm.finger_joints]
        if np.all(np.abs(fingers) <= LARGEST):  # False for NaN, too
            self._opening = arm.opening(fingers)
        else:
            self._refused[f"{self.contract.arm.joint_states_topic} without fingers"] += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        """Keep the newest reports of other nodes, of at most :data:`MAX_NAMES`."""
        now = time.monotonic()
        for status in message.status[:MAX_NAMES]:
            name = name_within(status.name, self.get_namespace())
            if name not in self._others and len(self._others) >= MAX_NAMES:
                self._others = {n: other for n, other in self._others.items() if now - other[0] < RECENT}
            if name in self._others or len(self._others) < MAX_NAMES or name == self._recorder:
                if name != self.get_name():
                    self._others[name] = now, status
            else:
                self._refused["diagnostics of too many names"] += 1
        self._refused["diagnostics of too many names"] += max(len(message.status) - MAX_NAMES, 0)

    def _on_home(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._session.home()
        response.message = "going home while the dead-man switch is held" if response.success else "hold the dead-man switch first"
        return response

    def _pose_now(self) -> tuple[Any, Any] | None:
        """The measured pose; None if it is unknown."""
        for subscriber in self._measured:
            subscriber.poll()
        pose = self._pose
        if pose is None or abs(self._now() - stamp_ns(pose)) > POSE_TIMEOUT * NANOSECONDS:
            return None
        return pose_arrays(pose.pose) if self._pose_watch.alone() else None

    # outputs

    def _step(self) -> None:
        command, events = self._device.poll(), self._device.events()
        now = clock.now()
        dt, self._stepped = now - self._stepped, now
        measured = self._pose_now()
        if command.engaged and measured is None:
            frame = self.contract.base_frame
            self._problem.report(
                f"no valid {self.contract.arm.pose_topic} in frame '{frame}' stamped within {POSE_TIMEOUT} s; start the robot's "
                f"node, synchronise the clocks"
            )
        elif command.engaged and self._opening is None:
            self._problem.report(
                f"{self.contract.arm.joint_states_topic} has not reported the fingers yet; see finger_joints in the task file"
            )
        try:
            target = self._session.step(command, measured, self._opening, dt)
        except ValueError as error:
            self._problem.report(str(error))
            target = self._session.step(Command(), measured, self._opening, dt)
        if self._session.must_release:
            if command.engaged or events:
                self._problem.report(
                    "this process was suspended, and the arm released; let go of the dead-man switch, then press it again"
                )
            events = []
        for event in events:
            self._on_event(event)
        if target is not None:
            self._target_publisher.publish(target, self._now())
            self._targets += 1
            self._rate.tick()
        self._device.show(self._status())

    def _on_event(self, event: str) -> None:
        if event == "start" and self._status()["recorder"] == "recording":
            event = "stop"  # for devices with few buttons
        if event == "gripper":
            self._session.turn_gripper()
        elif event == "home":
            if not self._session.home():
                self._problem.report("hold the dead-man switch to go home")
        elif not self._recorder_clients[event].service_is_ready():
            self._problem.report(
                f"{self._recorder} is not running, so nothing is recorded; start it with onedp record or record.launch.py"
            )
        else:
            self._recorder_clients[event].call_async(Trigger.Request()).add_done_callback(self._on_answer)

    def _on_answer(self, future: Any) -> None:
        if not future.result().success:
            self._problem.report(future.result().message[:LONGEST_TEXT])

    def _on_frame(self, camera: str, message: Any) -> None:
        try:
            image = decode_image(message, self.contract.cameras[camera].topic)
        except ContractError as error:
            self._refused[f"{self.contract.cameras[camera].topic} no image"] += 1
            self._problem.report(str(error)[:LONGEST_TEXT])
            return
        scale = PREVIEW_SIZE / max(image.shape[:2])
        height, width = (max(round(scale * side), 1) for side in image.shape[:2])
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])
        if ok:
            self._device.show_frame(camera, jpeg.tobytes())

    def _show_frames(self) -> None:
        for subscriber in self._previews:
            subscriber.poll()

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    # reports

    def _problems(self) -> str:
        """Problems of this node, and errors that other nodes report."""
        now = time.monotonic()
        own = self._problem.text or self._device.problem
        others = [
            f"{name}: {status.message}"[:LONGEST_TEXT]
            for name, (heard, status) in sorted(self._others.items())
            if status.level == DiagnosticStatus.ERROR and now - heard < RECENT
        ]
        return "; ".join(filter(None, [own, *others]))

    def _status(self) -> dict[str, Any]:
        """The status that the device shows to the operator."""
        heard, report = self._others.get(self._recorder, (float("-inf"), None))
        values = {v.key: v.value for v in report.values} if report is not None and time.monotonic() - heard < RECENT else {}
        return {
            "arm": self._session.state,
            "gripper": "open" if self._session.opening == self._session.opened else "closed",
            "recorder": values.get("state", "off"),
            "episode": values.get("episode", ""),
            "seconds": _number(values.get("seconds", "")),
            "problem": self._problems(),
        }

    def _report(self) -> DiagnosticReport:
        self._pose_now()
        several = self.count_publishers(self.contract.arm.target_topic) > 1
        gate = self._session.gate
        level, text = worst(
            (DiagnosticStatus.ERROR, "another node, such as action_node, also publishes target_pose; stop all but one")
            if several
            else None,
            self._pose_watch.finding(),
            self._problem.finding(),
            (DiagnosticStatus.ERROR, self._device.problem) if self._device.problem else None,
            fine=self._session.state,
        )
        values = {
            "device": self._kind,
            "state": self._session.state,
            "engaged": self._session.engaged,
            "target_hz": round(self._rate.hz(), 2),
            "targets": self._targets,
            "limited": sum(gate.limited.values()),
            **counted("limited", gate.limited),
        }
        refused = Counter(self._refused)
        refused.update(self._device.refused)
        return level, text, values | {"refused": sum(refused.values()), **counted("refused", refused)}


def _number(text: str) -> float:
    """A number that another node reported, to a tenth; 0 for anything else."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return round(value, 1) if math.isfinite(value) else 0.0


def main(args: list[str] | None = None) -> int:
    return run_node(TeleopNode, args)


if __name__ == "__main__":
    sys.exit(main())
