"""For labs that run franka_ros2 with CRISP: commands the hand, and checks CRISP's preconditions.

CRISP's ``cartesian_impedance_controller`` follows action_node's ``target_pose`` directly; if it ignores targets it only logs that,
so this node checks for the reasons. The hand is franka_ros2's, commanded by the actions of franka_msgs.

Written from these sources, not tested with them: crisp_controllers 2.3 (src/cartesian_controller.cpp), franka_ros2 3.4
(franka_gripper).
"""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState

from onedp_ros.control.gripper import GripperIntent, GripperSettings
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import opening_of
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, counted, worst
from onedp_ros.nodes.lib.input_watch import InputWatch
from onedp_ros.nodes.lib.parameters import declare, declare_contract, declare_robot_file
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.robot.settings import RobotSettings

HEARD = 1.0  # s
RETRY = 1.0  # s after a refusal
FINISH = 10.0  # s that a command of the hand may take


class FrankaGripper:
    """Sends the newest request to franka_ros2's gripper actions once the last command has ended.

    Raises:
        ImportError: franka_msgs is not installed.
    """

    def __init__(self, node: Node, name: str, settings: GripperSettings) -> None:
        from franka_msgs.action import Grasp, Move
        from rclpy.action import ActionClient

        s, half = settings, 0.5 * settings.width
        grasp = Grasp.Goal(width=half, speed=s.speed, force=s.force)
        grasp.epsilon.inner, grasp.epsilon.outer = half - s.empty_width, half
        move = Move.Goal(width=s.width, speed=s.speed)
        self._goals = {
            "closed": (ActionClient(node, Grasp, f"{name}/grasp"), grasp),
            "open": (ActionClient(node, Move, f"{name}/move"), move),
        }
        self._sent = ""
        self._busy_since: float | None = None
        self.problem = ""

    def request(self, request: str) -> None:
        """Carry out a request, ``open`` or ``closed``; call it regularly."""
        waited = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
        if waited > FINISH and self._sent:
            self._lost(f"no answer within {FINISH:.0f} s")
        if not request or request == self._sent or (self._busy_since is not None and waited < FINISH):
            return
        client, goal = self._goals[request]
        if not client.server_is_ready():
            self.problem = "the gripper's action server is not available; start franka_gripper, or set the parameter gripper"
            return
        self._sent, self._busy_since = request, time.monotonic()
        client.send_goal_async(goal).add_done_callback(functools.partial(self._on_answer, self._busy_since))

    def _on_answer(self, since: float, future: Any) -> None:
        if since != self._busy_since:  # of an abandoned command
            return
        try:
            handle = future.result()
            if not handle.accepted:
                raise RuntimeError("see franka_gripper")
        except Exception as error:  # the middleware may raise anything
            self._sent, self._busy_since = "", time.monotonic() - FINISH + RETRY
            self.problem = f"the gripper refused a command: {error}"
            return
        handle.get_result_async().add_done_callback(functools.partial(self._on_result, since))

    def _lost(self, why: str) -> None:
        """Forget the last command, whose outcome is unknown: the next request is sent again."""
        self._sent, self._busy_since = "", None
        self.problem = f"the gripper's answer was lost: {why}"

    def _on_result(self, began: float | None, future: Any) -> None:
        if began != self._busy_since:
            return  # of an abandoned command
        self._busy_since = None
        if future.exception() is not None:
            self._lost(str(future.exception()))
            return
        result = future.result().result
        self.problem = "" if result.success else f"the gripper failed: {result.error or 'the grasp closed on nothing'}"


class CrispNode(Node):
    """gripper_target -> franka_msgs actions; reports on /diagnostics what keeps CRISP from following target_pose.

    Args:
        gripper: factory of the hand's client, such as :class:`FrankaGripper`.
    """

    def __init__(self, gripper: Callable[[Node, str, GripperSettings], Any] = FrankaGripper, **kwargs: Any) -> None:
        super().__init__("crisp_node", **kwargs)
        self.contract = declare_contract(self)
        name = declare(self, "gripper", "franka_gripper", "Name of franka_ros2's gripper node")
        settings = RobotSettings.from_yaml(declare_robot_file(self, "franka"))
        self._intent = GripperIntent(settings.gripper)
        self._missing = ""
        self._gripper: Any = None
        try:
            self._gripper = gripper(self, name, settings.gripper)
        except ImportError as error:
            self._missing = f"the hand cannot be commanded: {error}; install franka_msgs of franka_ros2"
        self._heard = float("-inf")
        self._pose = PolledSubscriber(self, PoseStamped, self.contract.arm.pose_topic, 1, self._on_pose)
        self._target = self.resolve_topic_name(self.contract.arm.target_topic)
        openings = self.create_subscription(JointState, self.contract.arm.gripper_topic, self._on_gripper, 1)
        self._gripper_watch, self._refused = InputWatch(self, openings, settings.arm.stale_after), Counter[str]()
        self._diagnostics = Diagnostics(self, self._report)

    def _on_pose(self, _message: PoseStamped) -> None:
        self._heard = time.monotonic()

    def _on_gripper(self, message: JointState) -> None:
        opening = opening_of(message)
        if opening is None:
            self._refused["malformed"] += 1
            return
        if refusal := self._gripper_watch.refusal(stamp_ns(message)):
            self._refused[refusal] += 1
            return
        self._intent.update(opening)
        if self._gripper is not None:
            self._gripper.request(self._intent.request)

    def _report(self) -> DiagnosticReport:
        self._pose.poll()
        publishers, followers = self.count_publishers(self._target), self.count_subscribers(self._target)
        level, text = worst(
            (DiagnosticStatus.ERROR, f"{publishers} nodes publish {self._target}, so CRISP ignores them all; stop all but one")
            if publishers > 1
            else None,
            (DiagnosticStatus.ERROR, f"{self._target} has no subscriber; activate CRISP's cartesian_impedance_controller")
            if not followers
            else None,
            (DiagnosticStatus.ERROR, f"{self.contract.arm.pose_topic}: no messages; activate CRISP's pose_broadcaster")
            if time.monotonic() - self._heard > HEARD
            else None,
            (DiagnosticStatus.ERROR, self._missing) if self._missing else None,
            self._gripper_watch.finding(),
            (DiagnosticStatus.WARN, self._gripper.problem) if self._gripper is not None and self._gripper.problem else None,
            fine="running",
        )
        return (
            level,
            text,
            {
                "publishers": publishers,
                "followers": followers,
                "gripper": self._intent.request or "not requested",
                "gripper_refused": sum(self._refused.values()),
                **counted("gripper_refused", self._refused),
            },
        )


def main(args: list[str] | None = None) -> int:
    return run_node(CrispNode, args)


if __name__ == "__main__":
    sys.exit(main())
