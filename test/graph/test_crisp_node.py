"""What keeps CRISP from following is said. Its controllers and franka_msgs are not installed here; their part is not tested."""

from functools import partial

import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from onedp_ros.geometry import gripper_down
from onedp_ros.nodes.crisp_node import CrispNode
from onedp_ros.nodes.messages import header, pose_message

NODE = "crisp_node"


class Wishes:
    """Takes the place of franka_ros2's gripper: notes what is wished."""

    def __init__(self, node, name, settings):
        self.wishes, self.problem = [], ""

    def wish(self, wish):
        self.wishes.append(wish)


def test_without_franka_msgs_the_hand_is_said_to_be_missing(rig):
    with pytest.raises(ImportError):
        import franka_msgs  # noqa: F401
    rig.add(CrispNode)
    rig.until(lambda: rig.error(NODE, "install franka_msgs"), "the error")


def test_what_crisp_lacks_is_said_one_after_the_other(rig):
    rig.add(partial(CrispNode, Wishes))
    rig.until(lambda: rig.error(NODE, "nobody follows") and rig.error(NODE, "current_pose: not heard"), "both errors")
    rig.node.create_subscription(PoseStamped, "target_pose", lambda message: None, 1)
    poses = rig.node.create_publisher(PoseStamped, "current_pose", 1)

    def say():
        poses.publish(pose_message([0.5, 0.0, 0.3], gripper_down(0.0), rig.node.get_clock().now().nanoseconds, "base"))

    rig.until(lambda: say() or rig.level(NODE, b"\x00", "running"), "all that CRISP needs")
    for _ in range(2):
        rig.node.create_publisher(PoseStamped, "target_pose", 1)
    rig.until(lambda: say() or rig.error(NODE, "2 nodes publish"), "the error")


def test_openings_become_wishes_with_hysteresis(rig):
    node = rig.add(partial(CrispNode, Wishes))
    publisher = rig.node.create_publisher(JointState, "gripper_target", 1)
    for opening, wish in ((0.08, "open"), (0.04, "open"), (0.01, "closed"), (0.04, "closed"), (0.06, "open")):

        def said(opening=opening, wish=wish):
            publisher.publish(JointState(header=header(0), name=["gripper"], position=[opening]))
            return node._gripper.wishes and node._gripper.wishes[-1] == wish

        rig.until(said, f"{wish} for {opening}")
