"""Encodes arrays as ROS messages. Stamps are integer nanoseconds."""

from __future__ import annotations

import array
import math

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, Transform, TransformStamped
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint

from onedp_ros.contract import NANOSECONDS, Contract
from onedp_ros.contract.features import JOINTS, POSE
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.decode import CHUNK_JOINTS

MESSAGES = {POSE: PoseStamped, JOINTS: JointState}
"""By type name, the message classes that features come from."""


def header(stamp: int, frame_id: str = "") -> Header:
    """std_msgs/Header with ``stamp`` (ns)."""
    message = Header(frame_id=frame_id)
    message.stamp.sec, message.stamp.nanosec = divmod(stamp, NANOSECONDS)
    return message


def image_message(image: NDArray[np.uint8], stamp: int, frame_id: str = "") -> Image:
    """(H, W, 3) uint8 RGB -> sensor_msgs/Image, rgb8."""
    height, width = image.shape[:2]
    message = Image(header=header(stamp, frame_id), height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = array.array("B", image.tobytes())  # a NumPy array would be checked element by element
    return message


def camera_info(height: int, width: int, fovy: float) -> CameraInfo:
    """sensor_msgs/CameraInfo, without a stamp, of a camera without distortion whose vertical field of view is ``fovy`` (rad)."""
    f, cx, cy = height / (2.0 * math.tan(fovy / 2.0)), (width - 1) / 2.0, (height - 1) / 2.0  # pixel centres are integers
    message = CameraInfo(height=height, width=width, distortion_model="plumb_bob", d=[0.0] * 5)
    message.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def transform_message(position: ArrayLike, quaternion: ArrayLike, parent: str, child: str, stamp: int) -> TransformStamped:
    """Position (3,) m and orientation (4,) xyzw of the frame ``child`` in ``parent`` -> geometry_msgs/TransformStamped."""
    message = TransformStamped(header=header(stamp, parent), child_frame_id=child)
    p, q = message.transform.translation, message.transform.rotation
    p.x, p.y, p.z = (float(v) for v in np.asarray(position))
    q.x, q.y, q.z, q.w = (float(v) for v in np.asarray(quaternion))
    return message


def pose_message(position: ArrayLike, quaternion: ArrayLike, stamp: int, frame_id: str) -> PoseStamped:
    """Position (3,) m and quaternion xyzw (4,) in ``frame_id`` -> geometry_msgs/PoseStamped."""
    message = PoseStamped(header=header(stamp, frame_id))
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(v) for v in np.asarray(position))
    q.x, q.y, q.z, q.w = (float(v) for v in np.asarray(quaternion))
    return message


def opening_of(message: JointState) -> float | None:
    """The opening that a gripper target requests; None when it does not hold exactly one finite number."""
    if len(message.position) != 1 or not math.isfinite(message.position[0]):
        return None
    return float(message.position[0])


def state_message(contract: Contract, state: ArrayLike, stamp: int) -> JointState:
    """State (state_dim,) -> sensor_msgs/JointState with the contract's names of its values."""
    position = np.asarray(state, np.float64).tolist()
    return JointState(header=header(stamp, contract.base_frame), name=list(contract.state_names), position=position)


def chunk_message(chunk: ActionChunk, frame_id: str) -> MultiDOFJointTrajectory:
    """Chunk -> trajectory: its stamp is the observation's; each point has a transform of the end effector in the base frame and
    one of the gripper, whose translation.x is the opening (m). Times before the stamp have negative seconds."""
    message = MultiDOFJointTrajectory(header=header(chunk.stamp, frame_id), joint_names=CHUNK_JOINTS)
    points = []
    rows = zip(
        (chunk.stamps - chunk.stamp).tolist(),
        chunk.positions.tolist(),
        chunk.quaternions.tolist(),
        chunk.openings.tolist(),
        strict=True,
    )
    for after, position, quaternion, opening in rows:
        hand, gripper = Transform(), Transform()
        hand.translation.x, hand.translation.y, hand.translation.z = position
        hand.rotation.x, hand.rotation.y, hand.rotation.z, hand.rotation.w = quaternion
        gripper.translation.x = opening
        seconds, nanoseconds = divmod(after, NANOSECONDS)
        points.append(
            MultiDOFJointTrajectoryPoint(transforms=[hand, gripper], time_from_start=Duration(sec=seconds, nanosec=nanoseconds))
        )
    message.points = points
    return message
