"""Publishes the targets of an arm and its hand, for all nodes that drive one."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState

from onedp_ros.contract import Contract
from onedp_ros.control.chunk import Target
from onedp_ros.messages.encode import header, pose_message


class TargetPublisher:
    """Publishes on the topics of a one-arm contract: geometry_msgs/PoseStamped in the base frame, and sensor_msgs/JointState."""

    def __init__(self, node: Node, contract: Contract) -> None:
        self._node, self._base_frame = node, contract.base_frame
        self._pose = node.create_publisher(PoseStamped, contract.arm.target_topic, 1)
        self._opening = node.create_publisher(JointState, contract.arm.gripper_topic, 1)

    def publish(self, target: Target, stamp: int, with_opening: bool = True) -> None:
        """Publish a target with ``stamp`` (ns); ``with_opening``: also the hand's."""
        self._pose.publish(pose_message(target.position, target.quaternion, stamp, self._base_frame))
        if with_opening:
            self._opening.publish(JointState(header=header(stamp), name=["gripper"], position=[target.opening]))

    def destroy(self) -> None:
        """Destroy both publishers."""
        self._node.destroy_publisher(self._pose)
        self._node.destroy_publisher(self._opening)
