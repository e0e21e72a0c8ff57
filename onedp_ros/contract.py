"""What a policy sees and says: cameras, state, action, rates, normalisation.

The same code turns messages into a policy's input in the live node, in the bag converter and in a replay, so that a
converted bag equals what the live policy saw. No ROS here: stamps are integer nanoseconds, images are arrays.

State (9,): position of the end effector in the base frame (m), its orientation as a quaternion x, y, z, w in the
half-space of "tool down" (1, 0, 0, 0) so that q and -q are one state, and the positions of the two fingers (m).
Action (10,): position (m), 6D rotation, gripper opening between the fingers (m). All absolute, in the base frame.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.config import ConfigError, check_name, check_topic, read_yaml, shown
from onedp_ros.geometry import (
    matrix_to_quaternion,
    matrix_to_rotation_6d,
    quaternion_to_matrix,
    rotation_6d_to_matrix,
    slerp,
)

NANOSECONDS = 1_000_000_000
MAX_OPENING = 0.08  # m between the fingers of the Franka hand
LARGEST = (
    1e4  # of any measured position: larger ones are no measurement in whatever unit, and would overflow what is computed of them
)

# What no cell needs more of; beyond them a few bytes of a task file would cost a machine its memory.
MAX_HZ, MAX_SLOP = 1000.0, 10.0  # 1/s, s
MAX_STEPS = 1000  # of observations or actions in a window
MAX_CAMERAS, MAX_PIXELS = 16, 8192  # a task, a side of an image
_MAX_TEXT = 200  # characters
MIN_SCALE, MAX_SCALE = 1e-4, 1000.0  # of a normaliser
RESERVED = frozenset({"state", "action", "timestamp", "robot_eef_pose", "robot_gripper_width"})
"""Arrays of a replay buffer beside the cameras'."""

STATE_NAMES = (
    *(f"position.{a}" for a in "xyz"),
    *(f"orientation.{a}" for a in "xyzw"),
    "finger.1",
    "finger.2",
)
ACTION_NAMES = (*(f"position.{a}" for a in "xyz"), *(f"rotation.{i}" for i in range(6)), "opening")

Floats = NDArray[np.floating[Any]]
Image = NDArray[np.uint8]


class ContractError(ValueError):
    """Data that a contract forbids; the message names the thing, the value and the remedy."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera: where it publishes and the size (pixels) of the rgb8 image that the policy sees."""

    topic: str
    height: int
    width: int

    def fit(self, image: Image) -> Image:
        """(H, W, 3) uint8 of this camera's size or a larger one of the same shape -> (height, width, 3) uint8.

        Raises:
            ContractError: not uint8 RGB, smaller than the contract's image, or of another aspect ratio.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ContractError(f"{self.topic}: image is {image.dtype} {image.shape}, expected uint8 (H, W, 3); publish rgb8")
        height, width = image.shape[:2]
        if (height, width) == (self.height, self.width):
            return image
        if height < self.height or height * self.width != width * self.height:
            raise ContractError(
                f"{self.topic}: image is {width}x{height}, expected {self.width}x{self.height} or a larger image of that aspect "
                f"ratio; set the camera to such a mode, or the task file, before data are recorded, to "
                f"{self._fields_like(width, height)}"
            )
        return np.asarray(cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    @staticmethod
    def _fields_like(width: int, height: int) -> str:
        """What to write into a task file for a camera of this size."""
        step = height // max(math.gcd(width, height), 1)  # heights with a whole width to them
        if not step:
            return "its height, width and crop"
        fitted = min(max(step * max(round(120 / step), 1), step), height)
        other = fitted * width // height
        return f"height: {fitted}, width: {other} (each camera) and crop: [{-(-fitted * 9 // 10)}, {-(-other * 9 // 10)}]"


def _camera(name: str, data: object) -> Camera:
    fields = [f.name for f in dataclasses.fields(Camera)]
    if not isinstance(data, Mapping) or set(data) != set(fields):
        found = shown(sorted(data, key=str) if isinstance(data, Mapping) else data)
        raise ContractError(f"camera {shown(name)} holds {found}, expected exactly {fields}")
    return Camera(**data)


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        quotes = "; remove the quotes" if isinstance(value, str) and value.isdecimal() else ""
        raise ContractError(f"{name} is {shown(value)}, expected a whole number, at least 1 and at most {most}{quotes}")


@dataclasses.dataclass(frozen=True)
class Contract:
    """The agreement between a task's data, its policies and the nodes. Frozen; read from ``config/tasks/<task>.yaml``."""

    task: str
    base_frame: str
    control_hz: float
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    slop: float
    cameras: Mapping[str, Camera]
    crop: tuple[int, int]
    joint_states_topic: str
    pose_topic: str
    finger_joints: tuple[str, ...]

    def __post_init__(self) -> None:
        try:
            check_name("task", self.task)
            for name in self.cameras:
                check_name("camera", name)
            for name in ("joint_states_topic", "pose_topic"):
                check_topic(name, getattr(self, name))
        except ValueError as error:
            raise ContractError(f"{error}; correct it in the task file") from error
        if not isinstance(self.base_frame, str) or not 0 < len(self.base_frame) <= _MAX_TEXT:
            raise ContractError(f"base_frame is {shown(self.base_frame)}, expected the name of a frame, such as base")
        for name, most in (("control_hz", MAX_HZ), ("slop", MAX_SLOP)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= most:
                raise ContractError(f"{name} is {shown(value)}, expected a positive number, {most:g} at most")
        for name, most in (("n_obs_steps", MAX_STEPS), ("horizon", MAX_STEPS), ("n_action_steps", MAX_STEPS)):
            _check_count(name, getattr(self, name), most)
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise ContractError(
                f"n_action_steps {self.n_action_steps} after {self.n_obs_steps} observations exceeds the horizon {self.horizon}"
            )
        if not 0 < len(self.cameras) <= MAX_CAMERAS:
            raise ContractError(
                f"cameras is {'empty' if not self.cameras else f'a list of {len(self.cameras)}'}, expected one to {MAX_CAMERAS}"
            )
        if taken := sorted(RESERVED & {*self.cameras}):
            raise ContractError(f"camera name '{taken[0]}' is that of another array in data sets; name the camera otherwise")
        if len(self.finger_joints) != 2 or not all(isinstance(n, str) and 0 < len(n) <= _MAX_TEXT for n in self.finger_joints):
            raise ContractError(f"finger_joints is {shown(list(self.finger_joints))}, expected two joint names")
        if len(self.crop) != 2:
            raise ContractError(f"crop is {shown(list(self.crop))}, expected height and width in pixels")
        for value in self.crop:
            _check_count("crop", value, MAX_PIXELS)
        for name, camera in self.cameras.items():
            try:
                check_topic(f"the {name} camera's topic", camera.topic)
            except ValueError as error:
                raise ContractError(f"{error}; correct it in the task file") from error
            for side in ("height", "width"):
                _check_count(f"the {name} camera's {side}", getattr(camera, side), MAX_PIXELS)
            if not (self.crop[0] <= camera.height and self.crop[1] <= camera.width):
                raise ContractError(f"crop {self.crop} does not fit the {name} camera's {camera.height}x{camera.width} image")

    @property
    def dt(self) -> float:
        """Training step, s."""
        return 1.0 / self.control_hz

    @property
    def dt_ns(self) -> int:
        """Training step, ns."""
        return round(NANOSECONDS / self.control_hz)

    @property
    def least_camera_hz(self) -> float:
        """Frames a second that each camera must send: a new one at every step, those of two never farther apart than ``slop``."""
        return max(self.control_hz, 1.0 / (2.0 * self.slop) if len(self.cameras) > 1 else 0.0)

    @property
    def state_dim(self) -> int:
        return len(STATE_NAMES)

    @property
    def action_dim(self) -> int:
        return len(ACTION_NAMES)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Contract:
        """Read a task file. ContractError for a file that is not a valid contract."""
        try:
            return cls.from_dict(read_yaml(path))
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error
        except ConfigError as error:
            raise ContractError(str(error)) from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contract:
        """Inverse of :meth:`to_dict`. ContractError names a missing or unknown field."""
        if not isinstance(data, Mapping):
            raise ContractError(f"contract is {shown(data)}, expected a mapping")
        fields = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - fields, key=str):
            raise ContractError(f"contract has unknown fields {shown(unknown)}; known are {sorted(fields)}")
        if missing := sorted(fields - set(data)):
            raise ContractError(f"contract lacks the fields {missing}")
        values = dict(data)
        for name in ("crop", "finger_joints"):
            if not isinstance(data[name], Sequence) or isinstance(data[name], str):
                raise ContractError(f"{name} is {shown(data[name])}, expected a list of two")
            values[name] = tuple(data[name])
        if not isinstance(data["cameras"], Mapping):
            raise ContractError(f"cameras is {shown(data['cameras'])}, expected a mapping from name to topic, height and width")
        values["cameras"] = {name: _camera(name, camera) for name, camera in data["cameras"].items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML."""
        data = dataclasses.asdict(self)
        data["crop"] = list(self.crop)
        data["finger_joints"] = list(self.finger_joints)
        return data

    def require_same(self, other: Contract, ours: str, theirs: str) -> None:
        """ContractError that names the first field in which ``other`` (called ``theirs``) differs."""
        mine, its = self.to_dict(), other.to_dict()
        for name, value in mine.items():
            if its[name] != value:
                raise ContractError(
                    f"{ours} and {theirs} differ in '{name}': {value!r} against {its[name]!r}; use the task file the data and the "
                    f"checkpoint were made with, or make them again"
                )

    def action_stamps(self, stamp: int) -> NDArray[np.int64]:
        """Times (ns) that a chunk's (horizon,) actions are meant for: ``stamp + (i - (n_obs_steps - 1)) * dt``."""
        return stamp + (np.arange(self.horizon, dtype=np.int64) - (self.n_obs_steps - 1)) * self.dt_ns

    def history_stamps(self, stamp: int) -> list[int]:
        """Times (ns), oldest first, at which the observations of one policy input are wanted; the last is ``stamp``."""
        return [stamp - (self.n_obs_steps - 1 - i) * self.dt_ns for i in range(self.n_obs_steps)]


def encode_state(position: Floats, quaternion: Floats, fingers: Sequence[float]) -> Floats:
    """End-effector position (3,) m, quaternion xyzw (4,), finger positions (2,) m -> state (9,) float32.

    Raises:
        ContractError: a value that is not finite, or a quaternion that is not a rotation.
    """
    state = np.concatenate([position, quaternion, fingers]).astype(np.float64)
    if not np.all(np.isfinite(state)):
        raise ContractError(
            f"state holds NaN or infinity in {[n for n, v in zip(STATE_NAMES, state, strict=True) if not np.isfinite(v)]}"
        )
    length = np.linalg.norm(state[3:7])
    if abs(length - 1.0) > 0.05:
        raise ContractError(f"orientation has length {length:.3f}, expected a unit quaternion")
    state[3:7] /= length if state[3] >= 0 else -length
    return state.astype(np.float32)


def encode_action(position: Floats, quaternion: Floats, opening: float) -> Floats:
    """Target position (3,) m, quaternion xyzw (4,), opening m -> action (10,) float32."""
    rotation = matrix_to_rotation_6d(quaternion_to_matrix(quaternion))
    return np.concatenate([position, rotation, [opening]]).astype(np.float32)


def decode_action(action: Floats) -> tuple[Floats, Floats, Floats]:
    """Actions (..., 10) -> positions (..., 3) m, unit quaternions xyzw (..., 4), openings (...) m.

    Raises:
        ContractError: a value that is not finite, a rotation that is not one, or a wrong shape.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape[-1:] != (len(ACTION_NAMES),):
        raise ContractError(f"action has shape {action.shape}, expected (..., {len(ACTION_NAMES)})")
    if not np.all(np.isfinite(action)):
        raise ContractError("action holds NaN or infinity; the policy or its input is broken")
    try:
        quaternion = matrix_to_quaternion(rotation_6d_to_matrix(action[..., 3:9]))
    except ValueError as error:
        raise ContractError(f"action: {error}") from error
    return action[..., :3], quaternion, action[..., 9]


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Affine maps ``normal = (value - offset) / scale`` of state and action, so that positions and opening span [-1, 1].

    Rotations keep offset 0 and scale 1, as in Diffusion Policy. Arrays are float32: state (9,), action (10,).
    """

    state_offset: Floats
    state_scale: Floats
    action_offset: Floats
    action_scale: Floats

    @classmethod
    def fit(cls, state: Floats, action: Floats) -> Normalizer:
        """States (N, 9) and actions (N, 10) of a data set -> the normaliser of its range. ContractError: an implausible range."""
        state_offset, state_scale = np.zeros(state.shape[1]), np.ones(state.shape[1])
        action_offset, action_scale = np.zeros(action.shape[1]), np.ones(action.shape[1])
        for offset, scale, data in ((state_offset, state_scale, state), (action_offset, action_scale, action)):
            low, high = data[:, :3].min(0), data[:, :3].max(0)
            offset[:3], scale[:3] = (low + high) / 2, np.maximum((high - low) / 2, 0.01)
        state_offset[7:], state_scale[7:] = MAX_OPENING / 4, MAX_OPENING / 4
        action_offset[9], action_scale[9] = MAX_OPENING / 2, MAX_OPENING / 2
        made = cls(*(a.astype(np.float32) for a in (state_offset, state_scale, action_offset, action_scale)))
        return cls.from_dict(made.to_dict())  # which refuses what could not be loaded again

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]]) -> Normalizer:
        """Inverse of :meth:`to_dict`. ContractError for a field that is missing, of another size, or implausible."""
        names = [f.name for f in dataclasses.fields(cls)]
        if set(data) != {*names}:
            raise ContractError(f"normalizer has the fields {shown(sorted(data, key=str))}, expected {names}")
        for name, values in data.items():
            size, low = len(STATE_NAMES if name.startswith("state") else ACTION_NAMES), MIN_SCALE if "scale" in name else -MAX_SCALE
            if not isinstance(values, Sequence) or len(values) != size:
                raise ContractError(f"normalizer.{name} is {shown(values)}, expected {size} numbers")
            for value in values:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= MAX_SCALE:
                    raise ContractError(
                        f"normalizer.{name} holds {shown(value)}, expected numbers from {low:g} to {MAX_SCALE:g}: what is "
                        f"normalised are metres and parts of rotations"
                    )
        return cls(**{name: np.asarray(data[name], dtype=np.float32) for name in names})

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data for JSON; float32 values survive the trip exactly."""
        return {f.name: [float(v) for v in getattr(self, f.name)] for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Observation:
    """One set under one stamp (ns): an image (height, width, 3) uint8 for each camera and the state (9,) at the stamp.

    ``image_stamps`` (ns) are those of each camera's frame.
    """

    stamp: int
    images: Mapping[str, Image]
    image_stamps: Mapping[str, int]
    state: Floats


class _Samples:
    """Values by stamp, in order, of the last two seconds; read between two of them."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.values: list[Any] = []

    def add(self, stamp: int, value: Any) -> None:
        self.stamps.append(stamp)
        self.values.append(value)
        if stamp - self.stamps[0] > 2 * NANOSECONDS:
            old = bisect.bisect_left(self.stamps, stamp - NANOSECONDS)
            del self.stamps[:old], self.values[:old]

    def around(self, stamp: int) -> tuple[Any, Any, float]:
        """The samples before and after ``stamp`` and how far (0..1) it lies between them."""
        i = bisect.bisect_right(self.stamps, stamp) - 1
        if i + 1 == len(self.stamps):
            return self.values[i], self.values[i], 0.0
        return self.values[i], self.values[i + 1], (stamp - self.stamps[i]) / (self.stamps[i + 1] - self.stamps[i])


class ObservationAssembler:
    """Pairs camera frames and interpolates the state at their stamp.

    A new frame makes a set together with the other cameras' nearest frame within ``slop``; the set is stamped with the newest
    frame's time and leaves as soon as pose and joint samples enclose that time. ``dropped`` counts, by reason, what did not
    become part of a set. A stamp that jumps back by more than a second empties the buffers: the source started again.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.dropped: Counter[str] = Counter()
        self._clear()

    def _clear(self) -> None:
        self._frames: dict[str, deque[tuple[int, Image]]] = {name: deque(maxlen=16) for name in self.contract.cameras}
        self._poses = _Samples()
        self._fingers = _Samples()
        self._pending: deque[tuple[int, dict[str, Image], dict[str, int]]] = deque()
        self._last_set = -math.inf  # stamp of the newest set

    def add_image(self, camera: str, stamp: int, image: Image) -> None:
        """Take a frame (already rgb8, any size that the contract admits). ContractError for a wrong image."""
        image = self.contract.cameras[camera].fit(image)
        if not self._follows(stamp, [s for s, _ in self._frames[camera]], f"{camera} image"):
            return
        self._frames[camera].append((stamp, image))
        chosen: dict[str, tuple[int, Image]] = {}
        for name, frames in self._frames.items():
            best = min(frames, key=lambda frame: abs(frame[0] - stamp), default=None)
            if best is None or abs(best[0] - stamp) > self.contract.slop * NANOSECONDS:
                self.dropped[f"no {name} frame within slop"] += 1
                return
            chosen[name] = best
        stamp = max(s for s, _ in chosen.values())
        if stamp <= self._last_set:
            self.dropped[f"{camera} frame late"] += 1  # a set as new as this one left already
            return
        self._last_set = stamp
        self._pending.append((stamp, {n: f for n, (_, f) in chosen.items()}, {n: s for n, (s, _) in chosen.items()}))

    def add_pose(self, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Take an end-effector pose in the base frame: (3,) m, (4,) xyzw. ContractError for NaN, a huge number or no rotation."""
        p, q = np.asarray(position, np.float64), np.asarray(quaternion, np.float64)
        if np.abs([*p, *q]).max() > LARGEST:
            raise ContractError(
                f"{self.contract.pose_topic}: position {p.tolist()} m is out of reach; check the robot's state publisher"
            )
        encode_state(p, q, (0.0, 0.0))
        if self._follows(stamp, self._poses.stamps, "pose"):
            self._poses.add(stamp, (p, q))

    def add_joints(self, stamp: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """Take a joint state. ContractError when a finger joint is missing, not finite or huge."""
        try:
            fingers = np.array([positions[names.index(j)] for j in self.contract.finger_joints], dtype=np.float64)
        except (ValueError, IndexError) as error:
            raise ContractError(
                f"{self.contract.joint_states_topic} has joints {list(names)[:16]} with {len(positions)} positions, expected "
                f"{list(self.contract.finger_joints)} among them; set finger_joints in the task file to the hand's joint names"
            ) from error
        if not np.all(np.isfinite(fingers)):
            raise ContractError(f"{self.contract.joint_states_topic}: finger positions {fingers.tolist()} are not finite")
        if np.abs(fingers).max() > LARGEST:
            raise ContractError(
                f"{self.contract.joint_states_topic}: finger positions {fingers.tolist()} are no measurement; check the hand"
            )
        if self._follows(stamp, self._fingers.stamps, "joint state"):
            self._fingers.add(stamp, fingers)

    def pop(self) -> list[Observation]:
        """The sets that have become complete, oldest first. Raises nothing: of sound samples and otherwise, a set is dropped."""
        ready: list[Observation] = []
        while self._pending and self._poses.stamps and self._fingers.stamps:
            stamp, images, image_stamps = self._pending[0]
            waiting = min(self._poses.stamps[-1], self._fingers.stamps[-1]) < stamp
            if waiting and len(self._pending) <= 8:
                break
            self._pending.popleft()
            if waiting or max(self._poses.stamps[0], self._fingers.stamps[0]) > stamp:
                self.dropped["no state at the stamp"] += 1
                continue
            (p0, q0), (p1, q1), a = self._poses.around(stamp)
            f0, f1, b = self._fingers.around(stamp)
            try:
                state = encode_state(p0 + a * (p1 - p0), slerp(q0, q1, a), f0 + b * (f1 - f0))
            except ContractError:
                self.dropped["state against the contract"] += 1
                continue
            ready.append(Observation(stamp, images, image_stamps, state))
        return ready

    @property
    def pending(self) -> bool:
        """Whether a set waits for the robot's state at its stamp."""
        return bool(self._pending)

    def _follows(self, stamp: int, earlier: Sequence[int], source: str) -> bool:
        """Whether the sample may be used: it is newer than the last, or its clock went back and everything starts again."""
        if not earlier or stamp > earlier[-1]:
            return True
        if earlier[-1] - stamp < NANOSECONDS:
            self.dropped[f"{source} out of order"] += 1
            return False
        self.dropped[f"{source} stamp jumped back"] += 1
        self._clear()
        return True


class ObservationHistory:
    """Keeps recent observations and picks those spaced by ``dt``, whatever rate they come at."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._observations: deque[Observation] = deque(maxlen=64)

    def add(self, observation: Observation) -> None:
        """Take a newer observation; one that is older than the last empties the history (the clock went back)."""
        if self._observations and observation.stamp <= self._observations[-1].stamp:
            self._observations.clear()
        self._observations.append(observation)

    def add_distant(self, observation: Observation) -> None:
        """Take a newer observation only when none is within half a step before it."""
        if not self._observations or observation.stamp - self._observations[-1].stamp >= self.contract.dt_ns // 2:
            self.add(observation)

    def window(self) -> list[Observation] | None:
        """``n_obs_steps`` observations, oldest first, the last the newest; None before the first.

        For each wanted time the nearest observation is taken. At the start, and after a gap longer than ``dt``, when none lies
        within half a step, the following one stands in, as the first step is repeated in training.
        """
        if not self._observations:
            return None
        chosen = [self._observations[-1]]
        for wanted in reversed(self.contract.history_stamps(chosen[-1].stamp)[:-1]):
            best = min(self._observations, key=lambda o: abs(o.stamp - wanted))
            chosen.append(best if abs(best.stamp - wanted) <= self.contract.dt_ns // 2 else chosen[-1])
        return chosen[::-1]
