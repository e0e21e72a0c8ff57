"""From ROS messages to an ObservationAssembler; the same lines serve the live node and the bag converter.

Messages are used by their fields alone, so those of rclpy and those of rosbags both do.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS, ContractError, ObservationAssembler
from onedp_ros.ros_standins import CvBridge, CvBridgeError

_BRIDGE = CvBridge()


def stamp_ns(message: Any) -> int:
    """Header stamp of a message, ns."""
    return int(message.header.stamp.sec) * NANOSECONDS + int(message.header.stamp.nanosec)


def decode_image(message: Any, topic: str) -> NDArray[np.uint8]:
    """sensor_msgs/Image or CompressedImage -> (height, width, 3) uint8 RGB. ContractError names the topic."""
    decode = _BRIDGE.imgmsg_to_cv2 if hasattr(message, "encoding") else _BRIDGE.compressed_imgmsg_to_cv2
    try:
        return np.asarray(decode(message, "rgb8"))
    except (CvBridgeError, TypeError, cv2.error) as error:  # the last: real cv_bridge, of no bytes
        raise ContractError(f"{topic}: {error}") from error


def pose_arrays(pose: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """geometry_msgs/Pose -> position (3,) m, quaternion xyzw (4,)."""
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def feed(assembler: ObservationAssembler, topic: str, message: Any) -> bool:
    """Hand a message of one of the contract's topics (with or without leading "/", images raw or "/compressed") over.

    Returns:
        Whether the topic is one of the contract's.

    Raises:
        ContractError: a message that the contract forbids, such as a wrong encoding or missing joints.
    """
    contract = assembler.contract
    topic = topic.lstrip("/").removesuffix("/compressed")
    if topic == contract.joint_states_topic.lstrip("/"):
        assembler.add_joints(stamp_ns(message), list(message.name), message.position)
    elif topic == contract.pose_topic.lstrip("/"):
        if message.header.frame_id != contract.base_frame:
            raise ContractError(
                f"{contract.pose_topic} is in frame '{message.header.frame_id}', expected '{contract.base_frame}'; "
                f"publish it in that frame or set base_frame in the task file"
            )
        assembler.add_pose(stamp_ns(message), *pose_arrays(message.pose))
    else:
        for name, camera in contract.cameras.items():
            if topic == camera.topic.lstrip("/").removesuffix("/compressed"):
                assembler.add_image(name, stamp_ns(message), decode_image(message, camera.topic))
                return True
        return False
    return True
