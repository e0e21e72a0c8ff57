"""One pass over a bag: when each topic's messages came, some frames of each camera, and the curves of the motion."""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from onedp_ros.contract import Arm, Contract, ContractError
from onedp_ros.data.bags.reader import PARTIAL, BagError, Refusals, read_bag, read_messages
from onedp_ros.data.timing import StreamTiming
from onedp_ros.geometry import quaternion_to_matrix
from onedp_ros.messages.decode import bare_name, decode_image, pose_arrays

KEPT_FRAMES = 64  # per camera, however long the recording
KEPT_WIDTH = 320  # pixels

_TARGET, _GRIPPER_TARGET = "target_pose", "gripper_target"  # for a recording without a contract
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_POSE, _JOINTS = "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/JointState"


class _Frames:
    """Frames spread evenly over a stream of unknown length; of a long one, between half of ``KEPT_FRAMES`` and that many."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, NDArray[np.uint8]]] = []
        self._every = 1
        self._seen = 0

    def wants(self) -> bool:
        """Whether the next frame of the stream should be kept."""
        self._seen += 1
        return (self._seen - 1) % self._every == 0

    def keep(self, stamp: int, image: NDArray[np.uint8]) -> None:
        if len(self.kept) == KEPT_FRAMES:
            del self.kept[1::2]
            self._every *= 2
        scale = min(1.0, KEPT_WIDTH / image.shape[1])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        self.kept.append((stamp, np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)))


class _Curve:
    """A time series with ``width`` values per stamp, stored compactly."""

    def __init__(self, width: int) -> None:
        self._width, self._stamps, self._values = width, array("q"), array("d")

    def add(self, stamp: int, *values: float) -> None:
        self._stamps.append(stamp)
        self._values.extend(values)

    def since(self, begin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times (N,) s after ``begin`` ns, values (N, width)."""
        return (np.array(self._stamps, dtype=np.int64) - begin) * 1e-9, np.array(self._values).reshape(-1, self._width)


class BagReading:
    """The result of one pass over a bag: timing and type of every topic, some frames of each camera, and the curves to plot.

    Other images are released as they are read. Raises BagError if the bag cannot be read or holds no message.
    """

    def __init__(self, bag: Path, contract: Contract | None) -> None:
        self.timing: dict[str, StreamTiming] = {}
        self.types: dict[str, str] = {}
        self.images: dict[str, Counter[str]] = {}  # by topic, how many of each encoding and size
        self.frames: dict[str, _Frames] = {}
        self._lags: dict[str, array[int]] = {}
        self.position, self.target_position, self.opening, self.target_opening = _Curve(3), _Curve(3), _Curve(1), _Curve(1)
        arm = _one_arm(contract)
        positions = {bare_name(arm.target_topic if arm else _TARGET): self.target_position}
        if arm:
            positions[bare_name(arm.pose_topic)] = self.position
        self.refusals = Refusals()
        messages = read_messages(bag, None, self.refusals)
        for topic, stamp, logged, message in tqdm(messages, unit=" messages", desc=bag.name, leave=False, delay=2):
            if topic not in self.timing:
                self.timing[topic], self.types[topic] = StreamTiming(), message.__msgtype__
                self._lags[topic] = array("q")
            self.timing[topic].add(stamp)
            self._lags[topic].append(logged - stamp)
            kind = message.__msgtype__
            if kind in _IMAGES:
                self._image(topic, stamp, message, contract)
            elif kind == _POSE and topic in positions:
                positions[topic].add(stamp, *pose_arrays(message.pose)[0])
            elif kind == _JOINTS and (which := _opening(topic, message, arm)):
                (self.target_opening if which[0] == "target" else self.opening).add(stamp, which[1])
        if not self.timing:
            reasons = "; ".join(self.refusals.counts())
            raise BagError(f"{bag} holds no message of a standard type; {reasons or 'look for a copy where it was recorded'}")
        stamps = [t.stamps for t in self.timing.values()]
        self.begin, self.end = min(int(s[0]) for s in stamps), max(int(s[-1]) for s in stamps)  # ns

    def _image(self, topic: str, stamp: int, message: Any, contract: Contract | None) -> None:
        kinds, frames = self.images.setdefault(topic, Counter()), self.frames.setdefault(topic, _Frames())
        raw = hasattr(message, "encoding")
        # The size of a compressed image is known only once it is decoded, as the first one is.
        seen = [kind for kind in kinds if not kind.endswith("unreadable")]
        kind = f"{message.encoding} {message.width}x{message.height}" if raw else next(reversed(seen), "")
        wanted = frames.wants()
        if wanted or kind not in kinds:
            cameras = contract.cameras.values() if contract else ()
            camera = next((c for c in cameras if bare_name(c.topic) == bare_name(topic)), None)
            try:
                image = decode_image(message, topic)
                kind = kind if raw else f"{message.format} {image.shape[1]}x{image.shape[0]}"
                if camera:
                    camera.fit(image)
                if wanted:
                    frames.keep(stamp, image)
            except ContractError:  # reported with what the converter drops
                kind = kind if raw else f"{message.format} unreadable"
        kinds[kind] += 1

    def lag_ms(self, topic: str) -> dict[str, float] | None:
        """Delay from a topic's header stamps to its log times, ms: median, minimum and maximum. None when it has no stamps."""
        lags = np.frombuffer(self._lags[topic], np.int64) * 1e-6
        if self.refusals.unstamped[topic] == len(lags) or not np.any(lags):
            return None
        return {"p50": float(np.median(lags)), "min": float(lags.min()), "max": float(lags.max())}

    def find(self, topic: str) -> str | None:
        """The name under which a topic of the contract was recorded, with or without "/compressed"; None when it was not."""
        return next((t for t in self.timing if bare_name(t) == bare_name(topic)), None)

    def cameras(self, contract: Contract | None) -> dict[str, str]:
        """Image topics by name of the camera; a camera that is not in the contract goes by its topic."""
        names = {} if contract is None else {bare_name(camera.topic): name for name, camera in contract.cameras.items()}
        found = {names.get(bare_name(topic), topic): topic for topic in self.images}
        return {name: found[name] for name in [*names.values(), *found] if name in found}


def _one_arm(contract: Contract | None) -> Arm | None:
    """The contract's arm, if it has exactly one; else None."""
    with contextlib.suppress(ContractError):
        return contract.arm if contract else None
    return None


def _opening(topic: str, message: Any, arm: Arm | None) -> tuple[str, float] | None:
    """("measured" or "target", opening of the gripper) from a joint state; None when it does not hold that."""
    try:
        if topic == bare_name(arm.gripper_topic if arm else _GRIPPER_TARGET):
            return "target", float(message.position[0])
        if arm and topic == bare_name(arm.joint_states_topic):
            return "measured", arm.opening([message.position[message.name.index(joint)] for joint in arm.finger_joints])
    except (ValueError, IndexError):
        pass  # other joints, or no positions; the converter reports that
    return None


def write_rerun(bag: Path, contract: Contract | None, path: Path) -> None:
    """Write a bag's images, poses and openings as a recording for https://rerun.io, on the timeline of their header stamps.

    Raises:
        RuntimeError: the rerun SDK is not installed.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise RuntimeError(
            f"--rerun needs the rerun SDK ({error}); pip install rerun-sdk==0.23.1 (newer ones need NumPy 2)"
        ) from error
    arm = _one_arm(contract)
    rr.set_strict_mode(True)  # raise errors instead of only warning
    stream = rr.RecordingStream("onedp_inspect", recording_id=bag.name)
    partial = path.with_name(path.name + PARTIAL)
    stream.save(partial)
    for topic, stamp, message in read_bag(bag):
        stream.set_time("stamp", timestamp=np.datetime64(stamp, "ns"))
        kind = message.__msgtype__
        if kind in _IMAGES:
            with contextlib.suppress(ContractError):  # depth, for example
                stream.log(topic, rr.Image(decode_image(message, topic)).compress(jpeg_quality=90))
        elif kind == _POSE:
            position, quaternion = pose_arrays(message.pose)
            # As a matrix: this SDK cannot take quaternions under NumPy 1.
            stream.log(topic, rr.Transform3D(translation=position, mat3x3=quaternion_to_matrix(quaternion), axis_length=0.05))
            for axis, value in zip("xyz", position, strict=True):
                stream.log(f"position/{axis}/{topic}", rr.Scalars(value))
        elif kind == _JOINTS and (which := _opening(topic, message, arm)):
            stream.log(f"opening/{which[0]}", rr.Scalars(which[1]))
    stream.disconnect()
    partial.replace(path)
