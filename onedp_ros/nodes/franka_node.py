"""A Franka FR3 and its hand, with the same topics as the twin. A lifecycle node: configure connects, activate lets the arm move.

Three processes: this one, the arm's 1 kHz loop and the hand's (``onedp_ros.robot``). One thread here: targets are passed on as they
arrive, and a timer publishes states at 200 Hz.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty, String
from std_srvs.srv import Trigger

from onedp_ros import clock
from onedp_ros.clock import REQUEST_DOUBT, PauseWatch
from onedp_ros.control.joints import ARM_JOINTS
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import header, opening_of, pose_message
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, Rate, counted, worst
from onedp_ros.nodes.lib.input_watch import InputWatch
from onedp_ros.nodes.lib.lifecycle import LifecycleNode
from onedp_ros.nodes.lib.parameters import declare, declare_contract, declare_robot_file, declare_speed, declare_within
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.robot import MODES, memory
from onedp_ros.robot.arm import percentile
from onedp_ros.robot.faults import Fault, pause_fault
from onedp_ros.robot.franka import Franka
from onedp_ros.robot.settings import RobotSettings

LOOK_RATE = 400.0  # Hz of polling: states arrive at 200 Hz, on another clock
WATCH_EVERY = 20  # polls between checks for faults
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # compatible with any publisher
LASTING = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
FLANGE = 0.05  # m: a tool center point closer to the flange means that no tool is configured
LONGEST_PAUSE = 3.0  # s: an arm whose node was suspended for longer does not continue by itself
LATE_RATE = 0.95  # success rate of commands below which the diagnostics warn


class FrankaNode(LifecycleNode):
    """target_pose, gripper_target -> the arm; joint_states, current_pose, franka/state/wrench and franka/state/robot_mode from it.

    Services ``~/recover`` (after a fault: recovers arm and hand and resumes control, at rest) and ``~/home_gripper``
    (std_srvs/Trigger). The values of the robot file are also parameters, such as ``impedance.linear_stiffness``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("franka_node", **kwargs)
        self.contract = declare_contract(self)
        path, speed = declare_robot_file(self, "franka"), declare_speed(self)
        self._address = declare(self, "robot_ip", "", "Address of the robot")
        mode = declare(self, "mode", "", f"One of {', '.join(MODES)}; empty: the robot file's")
        realtime = declare(self, "realtime", "enforce", "enforce: fail without real-time scheduling; ignore: run without it")
        self._cpu = declare(self, "cpu", -1, "CPU core dedicated to the control loop; -1: any", -1, 1023)
        self._autostart = declare(self, "autostart", False, "Configure and activate at start; ~/recover tries again")
        if realtime not in ("enforce", "ignore"):
            raise ValueError(f"parameter realtime is '{realtime}', expected enforce or ignore")
        self._enforce = realtime == "enforce"
        settings = RobotSettings.from_yaml(path)
        given = {name: declare_within(self, name, *given, f"See {path}") for name, given in settings.parameters().items()}
        if mode:
            given["arm.mode"] = mode
        self.settings = settings.replaced(given).slowed(speed)

        self._franka: Franka | None = None
        self._pauses = PauseWatch(LONGEST_PAUSE)
        self._failed = ""
        self._stamp = self._count = self._far = 0
        self._far_at = float("-inf")
        self._targets = 0
        self._mode = ""
        self._states, self._target_rate = Rate(), Rate()
        self._fingers = self.contract.arm.finger_joints
        self._joint_publisher = self.create_publisher(JointState, self.contract.arm.joint_states_topic, 10)
        self._pose_publisher = self.create_publisher(PoseStamped, self.contract.arm.pose_topic, 10)
        self._wrench_publisher = self.create_publisher(WrenchStamped, "franka/state/wrench", 10)
        self._mode_publisher = self.create_publisher(String, "franka/state/robot_mode", LASTING)
        targets = self.create_subscription(PoseStamped, self.contract.arm.target_topic, self._on_target, NEWEST)
        openings = self.create_subscription(JointState, self.contract.arm.gripper_topic, self._on_gripper, NEWEST)
        self.create_subscription(Empty, "target_stop", self._on_stop, NEWEST)
        self._target_watch, self._gripper_watch = (
            InputWatch(self, subscription, self.settings.arm.stale_after) for subscription in (targets, openings)
        )
        self.create_service(Trigger, "~/recover", self._on_recover)
        self.create_service(Trigger, "~/home_gripper", self._on_home)
        self.create_timer(1.0 / LOOK_RATE, self._tick)
        self._diagnostics = Diagnostics(self, self._report, f"Franka at {self._address}")

    def start(self) -> None:
        """Configure and activate. Raises Fault if that fails; the node keeps running and reports why."""
        self._pauses = PauseWatch(LONGEST_PAUSE)
        success = TransitionCallbackReturn.SUCCESS
        if self.trigger_configure() == success:
            if self.trigger_activate() == success:
                return
            failed = self._failed
            self.trigger_cleanup()  # so that ~/recover starts over
            self._failed = failed
        raise Fault(self._failed, ("not_configured",))

    # transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._failed = ""
        self._release()
        try:
            if not self._address:
                raise Fault("parameter robot_ip is empty; give the address of the robot, for example 172.16.0.2", ("no_address",))
            self._franka = Franka(self._address, self.settings, self._enforce, self._cpu, self._publish)
            self._franka.connect()
        except (Fault, OSError) as error:
            self._failed = str(error)
            self.get_logger().error(f"not connected: {error}")
            self._release()
            return TransitionCallbackReturn.FAILURE
        granted, tool = self._franka.arm.notes
        self.get_logger().info(f"connected to {self._address}; real-time: {granted}; tool {tool[14]:.4f} m from the flange")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._franka is not None
        if self._paused():
            self._failed = f"{self._stale_request()}; activate again"
            self.get_logger().error(self._failed)
            return TransitionCallbackReturn.FAILURE
        try:
            self._franka.activate()
        except OSError as error:
            self._failed = f"the mark of an arm under control cannot be written: {error}; free space in the temporary directory"
            self.get_logger().error(self._failed)
            return TransitionCallbackReturn.FAILURE
        if self._franka.fault is not None:
            self.get_logger().error(str(self._franka.fault))
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._franka is not None
        self._franka.deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._autostart = False
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._failed = "a transition failed; see the log"
        self._release(wanted=False)
        return super().on_error(state)

    def destroy_node(self) -> None:
        self._release(wanted=not self.context.ok())  # else something failed
        super().destroy_node()

    def _release(self, wanted: bool = True) -> None:
        if self._franka is not None:
            self._franka.close(wanted)
        self._franka = None

    # inputs

    def _paused(self) -> bool:
        """Whether this process was suspended just now: then requests may be old, and the arm waits for ``~/recover``."""
        if (seconds := self._pauses.check()) and self._franka is not None:
            fault = pause_fault("franka_node", seconds)
            self._franka.give_up(fault)
            if self._franka.fault is fault:
                self.get_logger().error(str(fault))
        return self._pauses.ended_within(REQUEST_DOUBT)

    def _on_target(self, message: PoseStamped) -> None:
        arrived = clock.now_ns()
        self._paused()
        self._targets += 1
        self._target_rate.tick()
        if self._franka is None:
            return
        if message.header.frame_id != self.contract.base_frame:
            self._franka.refused["frame"] += 1
        elif refusal := self._target_watch.refusal(stamp_ns(message)):
            self._franka.refused[refusal] += 1
        else:
            p, q = message.pose.position, message.pose.orientation
            self._franka.target((p.x, p.y, p.z), (q.x, q.y, q.z, q.w), arrived)

    def _on_stop(self, _message: Empty) -> None:
        if self._franka is not None:
            self._franka.brake()

    def _on_gripper(self, message: JointState) -> None:
        self._paused()
        if self._franka is None:
            return
        opening = opening_of(message)
        if opening is None:
            self._franka.refused["gripper"] += 1
        elif refusal := self._gripper_watch.refusal(stamp_ns(message)):
            self._franka.refused[f"gripper_{refusal}"] += 1
        else:
            self._franka.opening(opening)

    def _on_recover(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            if self._paused():
                raise Fault(f"{self._stale_request()}; call again", ("paused",))
            if self._franka is not None:
                self._franka.recover()
            elif self._autostart:
                self.start()
                if self._franka is not None and self._franka.fault is not None:
                    self._franka.recover()
            else:
                raise Fault("not configured; configure and activate first", ("not_configured",))
            response.success, response.message = True, "recovered" if self._is_active() else "recovered; not active"
        except Fault as fault:
            response.success, response.message = False, str(fault)
        return response

    def _stale_request(self) -> str:
        return "franka_node was paused until just now, and this request may be from before that; check the arm"

    def _is_active(self) -> bool:
        return self._franka is not None and self._franka.active

    def _on_home(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        paused = self._paused()
        response.success = self._is_active() and self._franka is not None and self._franka.fault is None and not paused
        response.message = "homing" if response.success else "not active, or in a fault; see /diagnostics"
        if paused:
            response.message = f"{self._stale_request()}; call again"
        if response.success and self._franka is not None:
            self._franka.hand.home()
        return response

    # outputs

    def _tick(self) -> None:
        self._count += 1
        self._publish()
        if self._franka is not None and self._count % WATCH_EVERY == 0:
            self._target_watch.alone()  # to tell a publisher that takes over from a second one
            self._gripper_watch.alone()
            if not self._target_watch.publishers and self._franka.arm.phase == "following":
                self._franka.brake()  # no publisher is left to send the next target
            before = self._franka.fault
            self._franka.watch()
            if self._franka.fault is not None and self._franka.fault is not before:
                self.get_logger().error(str(self._franka.fault))
                self._diagnostics.publish()

    def _publish(self) -> None:
        """Publish the robot's newest state; each state once."""
        self._paused()
        if self._franka is None:
            return
        state = self._franka.arm.state()
        stamp = int(state["stamp"])
        if stamp in (0, self._stamp):
            return
        self._stamp = stamp
        self._states.tick()
        finger = 0.5 * self._franka.hand.width
        joints = JointState(header=header(stamp), name=[*ARM_JOINTS, *self._fingers])
        joints.position = [*state["q"].tolist(), finger, finger]
        joints.velocity = [*state["dq"].tolist(), 0.0, 0.0]
        joints.effort = [*state["torque"].tolist(), 0.0, 0.0]
        self._joint_publisher.publish(joints)
        base = self.contract.base_frame
        self._pose_publisher.publish(pose_message(state["position"], state["quaternion"], stamp, base))
        wrench = WrenchStamped(header=header(stamp, base))
        f, t = wrench.wrench.force, wrench.wrench.torque
        f.x, f.y, f.z, t.x, t.y, t.z = state["wrench"].tolist()
        self._wrench_publisher.publish(wrench)
        mode = memory.ROBOT_MODES[int(state["robot_mode"])]
        if mode != self._mode:
            self._mode = mode
            self._mode_publisher.publish(String(data=mode))

    def _report(self) -> DiagnosticReport:
        now, franka = clock.now(), self._franka
        if franka is None:
            text = f"not connected: {self._failed}" if self._failed else "not configured"
            level = DiagnosticStatus.ERROR if self._failed else DiagnosticStatus.OK
            return level, text, {"phase": "unconfigured", "robot_ip": self._address}
        arm, hand = franka.arm, franka.hand
        state, phase = arm.state(), arm.phase
        far = int(state["far"])
        if far > self._far:
            self._far_at = now
        self._far = far
        controlled = franka.active and franka.fault is None
        level, text = worst(
            (DiagnosticStatus.ERROR, str(franka.fault)) if franka.fault is not None else None,
            self._target_watch.finding(),
            self._gripper_watch.finding(),
            (DiagnosticStatus.ERROR, "user stop pressed; release it, then call ~/recover")
            if self._mode == "user_stopped"
            else None,
            (DiagnosticStatus.WARN, "the target is too far from the arm to begin with; disable and enable action_node")
            if now - self._far_at < 2.0
            else None,
            (DiagnosticStatus.WARN, "the tool point is the flange; select the hand in Desk") if arm.notes[1][14] < FLANGE else None,
            (DiagnosticStatus.WARN, f"no fresh target_pose, arm {phase}; see action_node")
            if controlled and self._targets and phase in ("holding", "stopping") and self._target_rate.hz() == 0.0
            else None,
            (
                DiagnosticStatus.WARN,
                f"the robot received {100 * float(state['success_rate']):.0f} % of the commands in time; "
                "see docs/reference/diagnostics.md",
            )
            if controlled and phase == "following" and state["success_rate"] < LATE_RATE
            else None,
            (DiagnosticStatus.WARN, hand.problem) if hand.problem else None,
            (DiagnosticStatus.WARN, f"real-time: {arm.notes[0]}") if self._enforce and "refused" in arm.notes[0] else None,
            fine=phase,
        )
        work, gap = arm.memory.arrays["work"], arm.memory.arrays["gap"]
        values = {
            "phase": phase,
            "active": franka.active,
            "fault": " ".join(franka.fault.names) if franka.fault is not None else "",
            "robot_mode": self._mode,
            "mode": self.settings.arm.mode,
            "robot_ip": self._address,
            "realtime": arm.notes[0],
            "state_hz": round(self._states.hz(), 1),
            "target_hz": round(self._target_rate.hz(), 1),
            "success_rate": round(float(state["success_rate"]), 3),
            "cycles": int(state["cycles"]),
            "cycles_lost": int(state["lost"]),
            **{f"work_us_{name}": percentile(work, fraction) for name, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
            **{f"gap_ms_{name}": percentile(gap, fraction) / 100 for name, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
            "joint_fraction": round(float(state["fraction"]), 3),
            "targets": self._targets,
            "targets_far": far,
            "refused": sum(franka.refused.values()),
            **counted("refused", franka.refused),
            "gripper": hand.intent.request or "not requested",
            "gripper_width": round(hand.width, 4),
            "gripper_commands": int(hand.state()["done"]),
            "gripper_failed": int(hand.state()["failed"]),
            "recoveries": franka.recoveries,
        }
        return level, text, values


def make_node(**kwargs: Any) -> FrankaNode:
    """The node, started if its parameter ``autostart`` is set."""
    node = FrankaNode(**kwargs)
    if node.get_parameter("autostart").value:
        with suppress(Fault):  # reported in the log and on /diagnostics; ~/recover tries again
            node.start()
    return node


def main(args: list[str] | None = None) -> int:
    return run_node(make_node, args)


if __name__ == "__main__":
    sys.exit(main())
