"""An operator's device in a real graph."""

import functools

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from onedp_ros.contract import MAX_OPENING
from onedp_ros.data.messages import pose_arrays, stamp_ns
from onedp_ros.nodes.teleop_node import TeleopNode
from onedp_ros.teleop.device import Command

NODE = "teleop_node"


class Hands:
    """A device whose hands the test moves."""

    def __init__(self):
        self.command, self.asked, self.shown, self.frames = Command(), [], {}, {}

    def poll(self):
        return self.command

    def events(self):
        asked, self.asked = self.asked, []
        return asked

    def show(self, status):
        self.shown = dict(status)

    def show_frame(self, camera, jpeg):
        self.frames[camera] = jpeg

    def close(self):
        pass


def obey(source, targets):
    """Make the source's arm be where it was told to."""

    def follow(message):
        if targets:
            message.pose = targets[-1].pose

    source.change_pose = follow


@pytest.fixture
def hands(rig):
    made = Hands()
    made.targets, made.openings = rig.listen(PoseStamped, "target_pose"), rig.listen(JointState, "gripper_target")
    made.source = rig.source()
    obey(made.source, made.targets)
    rig.add(functools.partial(TeleopNode, made), operator_yaw=0.0)
    rig.until(lambda: NODE in rig.status, "the node")
    return made


def positions(messages):
    return np.array([pose_arrays(m.pose)[0] for m in messages])


def push(hands, **shares):
    hands.command = Command(True, tuple(float(shares.get(axis, 0.0)) for axis in ("x", "y", "z", "roll", "pitch", "yaw")))


def test_the_dead_man_starts_and_stops_the_target(rig, hands):
    rig.more(rig.listen(PoseStamped, "current_pose"), 5, "measured poses")
    assert not hands.targets and hands.shown["arm"] == "waiting"
    push(hands, y=1.0)
    rig.more(hands.targets, 30, "targets")
    assert hands.shown["arm"] == "moving"
    first, *_, last = hands.targets
    assert abs(pose_arrays(first.pose)[0][1]) < 0.01, "it begins where the arm is"
    assert pose_arrays(last.pose)[0][1] > 0.05 and first.header.frame_id == "base"
    assert np.all(np.diff([stamp_ns(m) for m in hands.targets]) > 0)
    hands.command = Command()
    rig.until(lambda: hands.shown["arm"] == "holding", "the hold")
    held = positions(rig.more(hands.targets, 10, "targets of the hold"))
    assert np.ptp(held, axis=0).max() < 1e-6
    assert rig.value(NODE, "target_hz") > 20


def test_an_arm_that_was_taken_away_is_not_drawn_back(rig, hands):
    push(hands, y=1.0)
    rig.more(hands.targets, 20, "targets")
    hands.command = Command()
    rig.until(lambda: hands.shown["arm"] == "holding", "the hold")
    hands.source.change_pose = lambda message: setattr(message.pose.position, "z", 0.1)
    rig.until(lambda: hands.shown["arm"] == "waiting", "the end of the hold")
    count = len(hands.targets)
    rig.more(rig.listen(PoseStamped, "current_pose"), 40, "measured poses")
    assert len(hands.targets) <= count + 1
    push(hands, y=1.0)
    rig.more(hands.targets, 5, "targets from where the arm is")
    assert abs(positions(hands.targets[-1:])[0, 2] - 0.1) < 1e-6


def test_buttons_turn_the_gripper_and_ask_the_recorder(rig, hands):
    push(hands)
    rig.more(hands.openings, 3, "openings")
    assert hands.openings[-1].position[0] == 0.0, "a hand that is half open may hold something"
    hands.asked = ["gripper"]
    rig.until(lambda: hands.openings[-1].position[0] == pytest.approx(MAX_OPENING), "the open hand")
    assert hands.shown["gripper"] == "open"
    hands.asked = ["start"]
    rig.until(lambda: "recorder_node is not there" in hands.shown["problem"], "the answer")

    recorder = Node("recorder_node", context=rig.context)
    rig._executor.add_node(recorder)
    calls = []

    def answer(name, _request, response):
        calls.append(name)
        response.success, response.message = name != "stop", "" if name != "stop" else "nothing is recorded"
        return response

    for name in ("start", "stop", "fail", "discard"):
        recorder.create_service(Trigger, f"~/{name}", functools.partial(answer, name))
    for name in ("start", "fail", "stop"):
        rig.until(lambda name=name: hands.asked.append(name) or name in calls, f"the call of {name}")
    rig.until(lambda: "nothing is recorded" in hands.shown["problem"], "the recorder's refusal")
    recorder.destroy_node()


def test_without_a_measured_pose_the_operator_is_told_and_nothing_moves(rig, hands):
    hands.source.silent.add("pose")
    push(hands, x=1.0)
    rig.until(lambda: "no current_pose" in hands.shown["problem"], "the reason")
    rig.until(lambda: rig.level(NODE, b"\x01", "no current_pose"), "the warning")
    rig.until(lambda: hands.shown["arm"] in ("waiting", "holding"), "rest, though the dead man is held")


def test_home_needs_the_dead_man(rig, hands):
    client = rig.node.create_client(Trigger, f"{NODE}/home")
    rig.until(client.service_is_ready, "the service")

    def home():
        future = client.call_async(Trigger.Request())
        return rig.until(lambda: future.done() and future.result(), "the answer")

    assert not home().success
    push(hands)
    rig.until(lambda: hands.shown.get("arm") == "moving", "the motion")
    assert home().success
    rig.until(lambda: hands.shown["arm"] == "homing", "the way home")


def test_the_operator_sees_both_cameras_and_what_is_wrong_elsewhere(rig, hands):
    rig.until(lambda: {"wrist", "front"} <= set(hands.frames), "pictures")
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in hands.frames.values())
    rig.add(TeleopNode, device="gamepad", recorder="none")  # a second publisher of targets
    rig.until(lambda: rig.error(NODE, "another node publishes target_pose"), "the error")


def test_a_joystick_on_its_topic_moves_the_arm(rig):
    targets = rig.listen(PoseStamped, "target_pose")
    obey(rig.source(), targets)
    rig.add(TeleopNode, device="gamepad", operator_yaw=0.0)
    joy = rig.node.create_publisher(Joy, "joy", 1)
    held = Joy(axes=[0.0, 0.0, 0.0, 1.0, 0.0, 0.0], buttons=[0, 0, 0, 0, 1, 0, 0, 0])

    def pushed():
        joy.publish(held)
        return len(targets) > 20 and positions(targets[-1:])[0, 1] > 0.03

    rig.until(pushed, "the motion")
    rig.until(lambda: rig.level(NODE, b"\x00", "holding"), "the stop when the joystick is silent")


def test_settings_that_make_no_sense_end_the_node(rig):
    for parameters, words in (({"frame": "sky"}, "frame is 'sky'"), ({"device": "wheel"}, "device is 'wheel'")):
        with pytest.raises(ValueError, match=words):
            rig.add(functools.partial(TeleopNode, None), **parameters)


def test_the_twins_expert_needs_no_operator(rig, monkeypatch):
    from std_srvs.srv import SetBool

    from onedp_ros.nodes.twin_node import TwinNode

    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))  # for the camera process
    targets, poses = rig.listen(PoseStamped, "target_pose"), rig.listen(PoseStamped, "current_pose")
    rig.add(TwinNode)
    client = rig.node.create_client(SetBool, "twin_node/expert")
    rig.until(lambda: poses and client.service_is_ready(), "the twin")
    assert rig.node.count_publishers("target_pose") == 0
    client.call_async(SetBool.Request(data=True))
    rig.more(targets, 30, "targets of the expert")
    steps = np.diff([stamp_ns(m) for m in targets]) * 1e-9
    np.testing.assert_allclose(steps, 0.05, atol=0.006)
    moved = positions(poses[-1:])[0] - positions(poses[:1])[0]
    assert np.linalg.norm(moved) > 0.02
    client.call_async(SetBool.Request(data=False))
    rig.until(lambda: rig.value("twin_node", "holds") > 0, "the rest after it")
