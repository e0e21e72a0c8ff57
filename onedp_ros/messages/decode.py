"""Decodes ROS messages to arrays; the same code serves the live nodes, the bag converter and a replay.

Only the fields of messages are used, so that messages of rclpy and of rosbags both work.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, Observation, ObservationAssembler
from onedp_ros.contract.features import POSE
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.standins import CvBridge, CvBridgeError

CHUNK_JOINTS = ["end_effector", "gripper"]

_BRIDGE = CvBridge()
_STAMP_AT = 4  # bytes of a serialized message before its header's stamp


def bare_name(topic: str) -> str:
    """The name of a topic without leading "/" and without "/compressed"."""
    return topic.lstrip("/").removesuffix("/compressed")


def stamp_ns(message: Any) -> int:
    """Header stamp of a message, ns."""
    return int(message.header.stamp.sec) * NANOSECONDS + int(message.header.stamp.nanosec)


def header_stamp(data: bytes) -> int:
    """:func:`stamp_ns` of a serialized message (CDR) that begins with a header."""
    seconds, nanoseconds = struct.unpack_from(_stamp(data), data, _STAMP_AT)
    return int(seconds) * NANOSECONDS + int(nanoseconds)


def restamped(data: bytes, stamp: int) -> bytes:
    """The same serialized message with another stamp (ns)."""
    changed = bytearray(data)
    struct.pack_into(_stamp(data), changed, _STAMP_AT, *divmod(stamp, NANOSECONDS))
    return bytes(changed)


def _stamp(data: bytes) -> str:
    return "<iI" if data[1] & 1 else ">iI"


_TO_RGB = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
_JPEG = b"\xff\xd8\xff"


def decode_image(message: Any, topic: str) -> NDArray[np.uint8]:
    """sensor_msgs/Image or CompressedImage -> (height, width, 3) uint8 RGB. ContractError names the topic."""
    raw = hasattr(message, "encoding")
    if raw:  # for these the real cv_bridge raises NumPy's errors, or none
        size = f"{message.encoding} image of {message.width}x{message.height}"
        if not (message.width and message.height):
            raise ContractError(f"{topic}: {size} has no pixels; check the camera's driver")
        if len(message.data) < (expected := message.height * message.step):
            raise ContractError(
                f"{topic}: {size} with step {message.step} holds {len(message.data)} bytes, expected {expected}; check the "
                f"camera's driver"
            )
    try:
        return np.asarray(_BRIDGE.imgmsg_to_cv2(message, "rgb8")) if raw else _decompress_image(bytes(message.data), message.format)
    except (CvBridgeError, TypeError, ValueError, RuntimeError, cv2.error) as error:  # all but the first: the real cv_bridge's
        raise ContractError(f"{topic}: {error}") from error


def _decompress_image(data: bytes, format: str) -> NDArray[np.uint8]:
    """Decompress an image in colour, grey or with alpha; cv_bridge takes colour only."""
    if data.startswith(_JPEG) and b"\xff\xd9" not in data[-1024:]:
        raise ValueError(f"JPEG image of {len(data)} bytes lacks its end; it was cut short on the way, check the transport")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise ValueError(f"compressed image of format '{format}' with {len(data)} bytes cannot be decoded; record jpeg or png")
    channels = 1 if image.ndim < 3 else image.shape[2]
    if image.dtype != np.uint8 or channels not in _TO_RGB:
        raise ValueError(
            f"compressed image of format '{format}' is {image.dtype} with {channels} channels, as depth is; expected 8 bits: give "
            f"the topic of the colour image"
        )
    return np.asarray(cv2.cvtColor(image, _TO_RGB[channels]), dtype=np.uint8)


def pose_arrays(pose: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """geometry_msgs/Pose -> position (3,) m, quaternion xyzw (4,)."""
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def feed(assembler: ObservationAssembler, topic: str, message: Any, stamp: int | None = None) -> bool:
    """Pass a message of one of the contract's topics (with or without leading "/", images raw or "/compressed") to the assembler.

    ``stamp`` (ns) stands in for the message's own.

    Returns:
        Whether the topic is one of the contract's.

    Raises:
        ContractError: a message that the contract forbids, such as a wrong encoding or missing joints.
    """
    contract, topic = assembler.contract, bare_name(topic)
    at = stamp_ns(message) if stamp is None else stamp
    for name, camera in contract.cameras.items():
        if topic == bare_name(camera.topic):
            assembler.add_image(name, at, decode_image(message, camera.topic))
            return True
    for known, kind in contract.state_topics.items():
        if topic == bare_name(known):
            if kind == POSE:
                check_frame(contract, known, message)
                assembler.add_pose(known, at, *pose_arrays(message.pose))
            else:
                assembler.add_joints(known, at, list(message.name), message.position)
            return True
    return False


def check_frame(contract: Contract, topic: str, message: Any) -> None:
    """ContractError for a pose that is not in the contract's base frame."""
    if message.header.frame_id != contract.base_frame:
        raise ContractError(
            f"{topic} is in frame '{message.header.frame_id}', expected '{contract.base_frame}'; publish it in that frame, or set "
            f"base_frame in the task file"
        )


def observation_from_messages(contract: Contract, images: dict[str, Any], state: Any) -> Observation:
    """The messages of one observation, as observation_node publishes them under one stamp -> the observation.

    Raises:
        ContractError: other names or sizes than the contract's, or NaN.
    """
    names = contract.state_names
    if list(state.name) != list(names) or len(state.position) != len(names):
        raise ContractError(f"observation/state has {len(state.position)} values named {list(state.name)}, expected {names}")
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


def chunk_from_message(message: Any, frame_id: str) -> ActionChunk:
    """Inverse of :func:`onedp_ros.messages.encode.chunk_message`. Values are not checked here: the safety gate does.

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
