"""Between this package's data and ROS messages. Stamps are int nanoseconds."""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, Transform
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint

from onedp_ros.contract import NANOSECONDS, STATE_NAMES, Contract, ContractError, Observation
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.data.messages import stamp_ns

CHUNK_JOINTS = ["end_effector", "gripper"]


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


def pose_message(position: ArrayLike, quaternion: ArrayLike, stamp: int, frame_id: str) -> PoseStamped:
    """Position (3,) m and quaternion xyzw (4,) in ``frame_id`` -> geometry_msgs/PoseStamped."""
    message = PoseStamped(header=header(stamp, frame_id))
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(v) for v in np.asarray(position))
    q.x, q.y, q.z, q.w = (float(v) for v in np.asarray(quaternion))
    return message


def opening_of(message: JointState) -> float | None:
    """The opening (m) that ``gripper_target`` asks for; None when it does not say one finite number."""
    if len(message.position) != 1 or not math.isfinite(message.position[0]):
        return None
    return float(message.position[0])


def state_message(state: ArrayLike, stamp: int, frame_id: str) -> JointState:
    """State (9,) -> sensor_msgs/JointState with the names of ``STATE_NAMES``."""
    return JointState(header=header(stamp, frame_id), name=list(STATE_NAMES), position=np.asarray(state, np.float64).tolist())


def observation_from_messages(contract: Contract, images: dict[str, Image], state: JointState) -> Observation:
    """A set that observation_node published, one stamp in all -> the observation it was made from.

    Raises:
        ContractError: other names or sizes than the contract's, or NaN.
    """
    if list(state.name) != list(STATE_NAMES) or len(state.position) != len(STATE_NAMES):
        raise ContractError(f"observation/state has {len(state.position)} values named {list(state.name)}, expected {STATE_NAMES}")
    values = np.array(state.position, dtype=np.float32)
    if not np.all(np.isfinite(values)):
        raise ContractError("observation/state holds NaN or infinity; check the robot's state publisher")
    arrays = {}
    for name, camera in contract.cameras.items():
        image, shape = images[name], (camera.height, camera.width, 3)
        if image.encoding != "rgb8" or (image.height, image.width, image.step) != (shape[0], shape[1], 3 * shape[1]):
            raise ContractError(
                f"observation/{name}/image is {image.encoding} {image.width}x{image.height}, expected rgb8 {shape[1]}x{shape[0]}; "
                f"run observation_node with the policy's task file"
            )
        if len(image.data) != image.height * image.step:
            raise ContractError(
                f"observation/{name}/image holds {len(image.data)} bytes, expected {image.height * image.step}; check its publisher"
            )
        arrays[name] = np.frombuffer(image.data, dtype=np.uint8).reshape(shape)
    stamp = stamp_ns(state)
    return Observation(stamp, arrays, dict.fromkeys(arrays, stamp), values)


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


def chunk_from_message(message: MultiDOFJointTrajectory, frame_id: str) -> ActionChunk:
    """Inverse of :func:`chunk_message`. Values are not checked; that is the safety gate's.

    Raises:
        ContractError: another frame, other joints, or a point without its two transforms.
    """
    if message.header.frame_id != frame_id:
        raise ContractError(f"action/chunk is in frame '{message.header.frame_id}', expected '{frame_id}'; set base_frame")
    if list(message.joint_names) != CHUNK_JOINTS or any(len(p.transforms) != 2 for p in message.points):
        raise ContractError(f"action/chunk has joints {list(message.joint_names)}, expected {CHUNK_JOINTS} with a transform each")
    stamp = stamp_ns(message)
    rows, times = [], []
    for point in message.points:
        hand, gripper = point.transforms
        p, q = hand.translation, hand.rotation
        rows.append((p.x, p.y, p.z, q.x, q.y, q.z, q.w, gripper.translation.x))
        times.append(stamp + point.time_from_start.sec * NANOSECONDS + point.time_from_start.nanosec)
    values: NDArray[Any] = np.array(rows, dtype=np.float64).reshape(-1, 8)
    return ActionChunk(stamp, np.array(times, dtype=np.int64), values[:, :3], values[:, 3:7], values[:, 7])
