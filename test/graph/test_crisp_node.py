"""What keeps CRISP from following is heard. Its controllers and franka_msgs are not installed here; others take their place."""

import importlib.util
import sys
import time
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from onedp_ros.geometry import gripper_down
from onedp_ros.messages.encode import header, pose_message
from onedp_ros.nodes.crisp_node import CrispNode, FrankaGripper
from onedp_ros.resources import resource
from onedp_ros.robot.settings import RobotSettings

NODE = "crisp_node"


class Requests:
    """Takes the place of franka_ros2's gripper: notes the requests."""

    def __init__(self, node, name, settings):
        self.requests, self.problem = [], ""

    def request(self, request):
        self.requests.append(request)


def test_without_franka_msgs_the_hand_is_said_to_be_missing(rig):
    if importlib.util.find_spec("franka_msgs"):
        pytest.skip("franka_msgs is installed")
    rig.add(CrispNode)
    rig.until(lambda: rig.error(NODE, "install franka_msgs"), "the error")


def test_what_crisp_lacks_is_said_one_after_the_other(rig):
    rig.add(partial(CrispNode, Requests))
    rig.until(lambda: rig.error(NODE, "has no subscriber") and rig.error(NODE, "current_pose: no messages"), "both errors")
    rig.node.create_subscription(PoseStamped, "target_pose", lambda message: None, 1)
    poses = rig.node.create_publisher(PoseStamped, "current_pose", 1)

    def say():
        poses.publish(pose_message([0.5, 0.0, 0.3], gripper_down(0.0), rig.node.get_clock().now().nanoseconds, "base"))

    rig.until(lambda: say() or rig.level(NODE, b"\x00", "running"), "all that CRISP needs")
    for _ in range(2):
        rig.node.create_publisher(PoseStamped, "target_pose", 1)
    rig.until(lambda: say() or rig.error(NODE, "2 nodes publish"), "the error")


def test_openings_become_requests_with_hysteresis(rig):
    node = rig.add(partial(CrispNode, Requests))
    publisher = rig.node.create_publisher(JointState, "gripper_target", 1)
    for opening, request in ((0.08, "open"), (0.04, "open"), (0.01, "closed"), (0.04, "closed"), (0.06, "open")):

        def heard(opening=opening, request=request):
            publisher.publish(JointState(header=header(time.time_ns()), name=["gripper"], position=[opening]))
            return node._gripper.requests and node._gripper.requests[-1] == request

        rig.until(heard, f"{request} for {opening}")


def test_openings_of_1970_and_of_two_publishers_do_not_move_the_hand(rig):
    node = rig.add(partial(CrispNode, Requests))
    publisher = rig.node.create_publisher(JointState, "gripper_target", 1)

    def send(stamp):
        publisher.publish(JointState(header=header(stamp), name=["gripper"], position=[0.0]))

    rig.until(lambda: send(0) or rig.value(NODE, "gripper_refused.old") > 3, "refusals")
    rig.node.create_publisher(JointState, "gripper_target", 1)
    rig.until(lambda: send(time.time_ns()) or rig.value(NODE, "gripper_refused.several_publishers") > 3, "refusals")
    rig.until(lambda: rig.error(NODE, "2 nodes publish gripper_target"), "the error")
    assert not node._gripper.requests


class Server:
    """Takes the place of franka_ros2's gripper actions: notes the goals and answers when the test says."""

    def __init__(self):
        self.goals, self.answers = [], []

    def server_is_ready(self):
        return True

    def send_goal_async(self, goal):
        accepted, result = Future(), Future()
        accepted.set_result(SimpleNamespace(accepted=True, get_result_async=lambda: result))
        self.goals.append(goal)
        self.answers.append(result)
        return accepted


class Goal(SimpleNamespace):
    def __init__(self, **fields):
        super().__init__(epsilon=SimpleNamespace(), **fields)


@pytest.fixture
def gripper(monkeypatch):
    """franka_ros2's gripper, whose two actions have one server."""
    server, action = Server(), SimpleNamespace(Goal=Goal)
    monkeypatch.setitem(sys.modules, "franka_msgs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "franka_msgs.action", SimpleNamespace(Grasp=action, Move=action))
    monkeypatch.setattr("rclpy.action.ActionClient", lambda *_: server)
    return FrankaGripper(
        None, "franka_gripper", RobotSettings.from_yaml(resource("config", "robot", "franka.yaml")).gripper
    ), server


def test_the_newest_request_follows_when_the_command_has_ended(gripper):
    hand, server = gripper
    for request in ("closed", "open", "open"):
        hand.request(request)
    assert len(server.goals) == 1
    server.answers[0].set_result(SimpleNamespace(result=SimpleNamespace(success=True, error="")))
    hand.request("open")
    hand.request("open")
    assert len(server.goals) == 2 and hand.problem == ""


def test_a_command_whose_answer_was_lost_is_sent_anew(gripper, monkeypatch):
    hand, server = gripper
    hand.request("closed")
    server.answers[0].set_exception(RuntimeError("the server has gone"))
    hand.request("closed")
    assert len(server.goals) == 2 and "the server has gone" in hand.problem
    monkeypatch.setattr("onedp_ros.nodes.crisp_node.FINISH", 0.0)
    hand.request("closed")
    assert len(server.goals) == 3 and "no answer" in hand.problem
    monkeypatch.undo()
    server.answers[1].set_result(SimpleNamespace(result=SimpleNamespace(success=True, error="")))  # of the one given up
    hand.request("open")
    assert len(server.goals) == 3, "the newest command is still under way"
