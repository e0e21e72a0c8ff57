"""The arm behind the twin's topics, from ROS messages to the robot's protocol and back."""

import os
import signal

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, WrenchStamped
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from stopping import Driving, Process

from onedp_ros.geometry import gripper_down
from onedp_ros.messages.encode import header, pose_message
from onedp_ros.nodes.action_node import ActionNode
from onedp_ros.nodes.franka_node import FrankaNode, make_node
from onedp_ros.robot.fake_franka import FakeFranka, read_log

NODE = "franka_node"
CONFIGURE, ACTIVATE, DEACTIVATE = 1, 3, 4  # lifecycle_msgs/Transition


class Arm:
    """A fake robot, its node, and what they say."""

    def __init__(self, rig, fake, **parameters):
        self.rig, self.fake = rig, fake
        self.poses, self.joints = rig.listen(PoseStamped, "current_pose"), rig.listen(JointState, "joint_states")
        self.wrenches, self.modes = rig.listen(WrenchStamped, "franka/state/wrench"), rig.listen(String, "franka/state/robot_mode")
        self.target = rig.node.create_publisher(PoseStamped, "target_pose", 1)
        self.gripper = rig.node.create_publisher(JointState, "gripper_target", 1)
        parameters = {"robot_ip": fake.address, "realtime": "ignore", "autostart": True, **parameters}
        self.node = rig.add(make_node if parameters["autostart"] else FrankaNode, **parameters)

    def call(self, service, kind=Trigger, **fields):
        client = self.rig.node.create_client(kind, f"{NODE}/{service}")
        self.rig.until(client.service_is_ready, f"the service {service}")
        future = client.call_async(kind.Request(**fields))
        return self.rig.until(lambda: future.done() and future.result(), f"the answer of {service}")

    def transition(self, number):
        request = ChangeState.Request()
        request.transition.id = number
        return self.call("change_state", ChangeState, transition=request.transition).success

    def position(self):
        p = self.poses[-1].pose.position
        return np.array([p.x, p.y, p.z])

    def send(self, position, quaternion=None, frame="base", publisher=None):
        now = self.rig.node.get_clock().now().nanoseconds
        quaternion = gripper_down(0.0) if quaternion is None else quaternion
        (publisher or self.target).publish(pose_message(position, quaternion, now, frame))

    def grip(self, opening, stamp=None):
        stamp = self.rig.node.get_clock().now().nanoseconds if stamp is None else stamp
        self.gripper.publish(JointState(header=header(stamp), name=["gripper"], position=[opening]))

    def reach(self, goal):
        """Send a target again and again until the arm is there."""
        self.rig.until(lambda: self.send(goal) or np.linalg.norm(self.position() - goal) < 0.005, f"the arm at {goal}")


@pytest.fixture
def fake():
    with FakeFranka("--object", "0.05") as made:
        yield made


@pytest.fixture
def arm(rig, fake, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Arm(rig, fake)
    rig.until(lambda: made.poses and rig.level(NODE, b"\x00", "holding"), "a node that holds the arm")
    return made


def test_the_arm_looks_and_moves_as_the_twin(rig, arm):
    start = arm.position()
    assert len(arm.joints[0].name) == len(arm.joints[0].position) == 9
    assert arm.joints[0].name[-2:] == ["fr3_finger_joint1", "fr3_finger_joint2"]
    assert arm.poses[0].header.frame_id == "base" and arm.wrenches and arm.modes[-1].data == "move"
    rig.until(lambda: rig.value(NODE, "state_hz") > 50, "states, 200 a second unless the fake robot is slower")
    arm.reach(start + np.array([0.0, 0.06, 0.03]))
    arm.grip(0.0)
    rig.until(lambda: abs(sum(arm.joints[-1].position[-2:]) - 0.05) < 1e-3, "fingers on the object")
    rig.until(lambda: rig.value(NODE, "gripper_commands") == 1, "one command")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_none_are_refused_and_counted(rig, arm, value):
    start = arm.position()
    rig.until(lambda: arm.send(start * [1, 1, value]) or rig.value(NODE, "refused.not_finite") > 5, "refusals")
    arm.send(start, quaternion=np.array([0.5, 0.0, 0.0, 0.0]))
    rig.until(lambda: rig.value(NODE, "refused.not_a_rotation") == 1, "another")
    arm.send(start, frame="world")
    rig.until(lambda: rig.value(NODE, "refused.frame") == 1, "another")
    assert np.linalg.norm(arm.position() - start) < 1e-3


def test_a_target_that_was_stamped_long_ago_is_refused(rig, arm):
    start = arm.position()
    old = rig.node.get_clock().now().nanoseconds - 400_000_000
    rig.until(
        lambda: arm.target.publish(pose_message(start, gripper_down(0.0), old, "base")) or rig.value(NODE, "refused.old") > 3,
        "refusals",
    )
    rig.until(lambda: rig.level(NODE, b"\x01", "clocks"), "the warning")
    arm.reach(start + np.array([0.0, 0.03, 0.0]))


def test_two_publishers_of_targets_are_followed_neither(rig, arm):
    start = arm.position()
    other = rig.node.create_publisher(PoseStamped, "target_pose", 1)
    rig.until(lambda: rig.error(NODE, "2 nodes publish target_pose"), "the error")
    for side, publisher in ((1, arm.target), (-1, other)):
        before = rig.value(NODE, "refused.several_publishers")
        goal = start + np.array([0.0, 0.05 * side, 0.0])
        rig.until(
            lambda goal=goal, publisher=publisher, before=before: (
                arm.send(goal, publisher=publisher) or rig.value(NODE, "refused.several_publishers") > before + 3
            ),
            "refusals",
        )
    assert np.linalg.norm(arm.position() - start) < 1e-3
    rig.node.destroy_publisher(other)
    rig.until(lambda: not rig.error(NODE, "target_pose"), "one publisher again")
    arm.reach(start + np.array([0.0, 0.05, 0.0]))


def test_openings_of_1970_and_of_two_publishers_do_not_move_the_hand(rig, arm):
    rig.until(lambda: arm.grip(0.0, stamp=0) or rig.value(NODE, "refused.gripper_old") > 3, "refusals")
    rig.node.create_publisher(JointState, "gripper_target", 1)
    rig.until(lambda: arm.grip(0.0) or rig.value(NODE, "refused.gripper_several_publishers") > 3, "refusals")
    rig.until(lambda: rig.error(NODE, "2 nodes publish gripper_target"), "the error")
    assert rig.value(NODE, "gripper_commands") == 0


def test_a_reflex_is_said_and_the_arm_waits_for_recover(rig, arm):
    start = arm.position()
    arm.reach(start + np.array([0.0, 0.03, 0.0]))
    arm.fake.tell("reflex")
    rig.until(lambda: rig.error(NODE, "cartesian_reflex"), "the error")
    rig.until(lambda: arm.modes[-1].data == "reflex", "the robot's mode")
    there = arm.position()
    rig.until(lambda: arm.send(start) or rig.value(NODE, "refused.fault") > 5, "refusals")
    assert np.linalg.norm(arm.position() - there) < 0.01
    answer = arm.call("recover")
    assert answer.success, answer.message
    arm.reach(start)


def test_the_user_stop_keeps_recover_from_succeeding(rig, arm):
    arm.fake.tell("press")
    rig.until(lambda: rig.error(NODE, "user stop"), "the error")
    answer = arm.call("recover")
    assert not answer.success and "release" in answer.message
    arm.fake.tell("release")
    assert arm.call("recover").success


@pytest.mark.parametrize("part", ["arm", "hand"])
def test_a_process_that_was_killed_is_said_and_started_anew(rig, arm, part):
    start = arm.position()
    arm.reach(start + np.array([0.0, 0.03, 0.0]))
    os.kill(getattr(arm.node._franka, part).child.pid, signal.SIGKILL)
    rig.until(lambda: rig.error(NODE, "SIGKILL"), "the error")
    assert arm.call("recover").success
    arm.reach(start)


def test_the_lifecycle_brings_the_arm_to_rest(rig, fake, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arm = Arm(rig, fake, autostart=False)
    assert not arm.call("recover").success
    assert arm.transition(CONFIGURE)
    rig.until(lambda: arm.poses and arm.modes and arm.modes[-1].data == "idle", "states before the arm may move")
    start = arm.position()
    rig.until(lambda: arm.send(start + 0.01) or rig.value(NODE, "refused.inactive") > 3, "refusals")
    assert arm.transition(ACTIVATE)
    arm.reach(start + np.array([0.0, 0.03, 0.0]))
    assert arm.transition(DEACTIVATE)
    rig.until(lambda: arm.modes[-1].data == "idle", "the end of the motion")


def test_a_robot_that_is_not_there_is_said_and_recover_tries_again(rig, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nobody = FakeFranka(address="127.0.0.5")
    arm = Arm(rig, nobody)
    rig.until(lambda: rig.error(NODE, "127.0.0.5") and rig.error(NODE, "FCI"), "the error", timeout=5.0)
    assert not arm.call("recover").success
    with nobody:
        answer = arm.call("recover")
        assert answer.success, answer.message
        rig.until(lambda: rig.level(NODE, b"\x00", "holding"), "a node that holds the arm")


def test_settings_are_parameters_and_senseless_ones_are_named(rig, fake):
    for parameters, words in (
        ({"mode": "dance"}, r"arm\.mode is 'dance', expected one of cartesian_pose"),
        ({"arm.stale_after": 9.0}, r"arm\.stale_after.*9\.0.*from 0\.02 to 1 s: less holds"),
        ({"arm.stale_after": float("nan")}, r"arm\.stale_after.*nan.*from 0\.02 to 1 s"),
        ({"arm.stale_after": "long"}, r"arm\.stale_after.*long.*from 0\.02 to 1 s"),
        ({"arm.collision_force": [40.0] * 5 + [1e9]}, r"arm\.collision_force.*6 numbers, each from 1 to 100"),
        ({"workspace_max": [0.6, 0.2, float("inf")]}, r"workspace_max.*inf.*reaches 1\.4 m"),
    ):
        with pytest.raises(ValueError, match=words):
            rig.add(FrankaNode, **parameters)
    node = rig.add(FrankaNode, **{"impedance.linear_stiffness": 300.0, "speed": 0.1, "workspace_max": [0.6, 0.2, 0.5]})
    assert node.settings.impedance.linear_stiffness == 300.0
    assert node.settings.servo.linear_speed == pytest.approx(0.06)
    assert node.settings.safety.workspace_max == (0.6, 0.2, 0.5)
    described = node.describe_parameter("impedance.linear_stiffness")
    assert (described.floating_point_range[0].from_value, described.floating_point_range[0].to_value) == (10.0, 3000.0)
    assert "FR3's own" in described.additional_constraints


@pytest.mark.parametrize("mode", ["cartesian_pose", "cartesian_impedance"])
def test_disabled_in_motion_the_arm_brakes_as_its_limits_allow(rig, tmp_path, monkeypatch, mode):
    """In the robot's own time: a fake one may be three times slower than real time on a busy machine, and the arm thus faster. The
    bounds are those of test/control/test_arm.py and what targets that stall before the stop add; left to its watchdog, the arm
    goes 12 cm."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))
    log = tmp_path / "log"
    with FakeFranka("--object", "0.05", log=log) as fake:
        arm = Arm(rig, fake, mode=mode)
        rig.until(lambda: arm.poses and rig.level(NODE, b"\x00", "holding"), "a node that holds the arm")
        rig.node.destroy_publisher(arm.target)
        rig.node.destroy_publisher(arm.gripper)
        with Process("action_node", robot="franka"), Driving(rig, arm.poses, pace=0.15) as driving:
            driving.drive()
            driving.way_to_rest(lambda: driving.ask(False))
            fake.tell("flush")
            rest, before = arm.position(), len(arm.poses)
            rig.until(lambda: len(arm.poses) > before + 100, "chunks to go on in vain")
            assert np.linalg.norm(arm.position() - rest) < 0.001
    positions = read_log(log)["pose"][:, 12:15]
    speeds = np.linalg.norm(positions[10:] - positions[:-10], axis=1) / 0.01
    end = np.nonzero(speeds > 0.02)[0][-1]
    fast = speeds[end - 300 : end].max()
    begin = np.nonzero(speeds > 0.9 * fast)[0][-1]
    brake = arm.node.settings.servo.linear_acceleration
    assert fast > 0.1 and end - begin < 1000 * (fast / brake + 0.3), (fast, end - begin)
    assert np.linalg.norm(positions[end] - positions[begin]) < fast**2 / (2 * brake) + 0.04, fast


def test_action_node_enables_at_the_arm_and_the_arm_follows_its_hold(rig, arm):
    rig.node.destroy_publisher(arm.target)
    rig.node.destroy_publisher(arm.gripper)
    rig.add(ActionNode, robot="franka")
    client = rig.node.create_client(SetBool, "action_node/enable")
    rig.until(client.service_is_ready, "action_node")

    def enabled():
        future = client.call_async(SetBool.Request(data=True))
        return rig.until(lambda: future.done() and future.result(), "the answer").success

    rig.until(enabled, "action_node to hear the arm and to be enabled")
    rig.until(lambda: rig.level(NODE, b"\x00", "following"), "an arm that follows")
