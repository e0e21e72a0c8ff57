"""The contract of a task as data: cameras, features of state and action, rates."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onedp_ros.config import ConfigError, check_name, check_topic, read_yaml, shown
from onedp_ros.contract.arm import MAX_OPENING, Arm
from onedp_ros.contract.features import ContractError, Feature, Floats, read_features, slices
from onedp_ros.resources import named_file

NANOSECONDS = 1_000_000_000

# More than any cell needs; without these bounds a few bytes of a task file could exhaust the memory.
MAX_HZ, MAX_SLOP = 1000.0, 10.0  # 1/s, s
MAX_STEPS = 1000  # observations or actions in a window
MAX_CAMERAS, MAX_PIXELS = 16, 8192  # per task, per side of an image
_MAX_TEXT = 200  # characters
RESERVED = frozenset({"state", "action", "timestamp", "robot_eef_pose", "robot_gripper_width"})
"""Arrays of a replay buffer besides the cameras'."""
_EARLIER = ("joint_states_topic", "pose_topic", "finger_joints")  # fields of older contracts, without features

Image = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera: its topic and the size (pixels) of the policy's rgb8 image."""

    topic: str
    height: int
    width: int

    def fit(self, image: Image) -> Image:
        """Resize an image (H, W, 3) uint8 of this size, or larger with the same aspect ratio, to (height, width, 3) uint8.

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
                f"ratio; use such a camera mode, or, before recording data, set in the task file "
                f"{self._fields_like(width, height)}"
            )
        return np.asarray(cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    @staticmethod
    def _fields_like(width: int, height: int) -> str:
        """The task file's fields for a camera of this size."""
        step = height // max(math.gcd(width, height), 1)  # heights that give a whole width
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


def _check_count(name: str, value: object, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        quotes = "; remove the quotes" if isinstance(value, str) and value.isdecimal() else ""
        raise ContractError(f"{name} is {shown(value)}, expected a whole number, at least 1 and at most {maximum}{quotes}")


@dataclasses.dataclass(frozen=True)
class Contract:
    """The agreement between a task's data, its policies and the nodes. Frozen; read from ``config/tasks/<task>.yaml``.

    ``policy`` names the task whose policies are used for this one; empty: its own.
    """

    task: str
    base_frame: str
    control_hz: float
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    slop: float
    cameras: Mapping[str, Camera]
    crop: tuple[int, int]
    state: tuple[Feature, ...]
    action: tuple[Feature, ...]
    policy: str = ""

    def __post_init__(self) -> None:
        try:
            check_name("task", self.task)
            if self.policy != "":
                check_name("policy", self.policy)
            for name in self.cameras:
                check_name("camera", name)
        except ValueError as error:
            raise ContractError(f"{error}; correct it in the task file") from error
        if not isinstance(self.base_frame, str) or not 0 < len(self.base_frame) <= _MAX_TEXT:
            raise ContractError(f"base_frame is {shown(self.base_frame)}, expected the name of a TF frame, such as base")
        for name, maximum in (("control_hz", MAX_HZ), ("slop", MAX_SLOP)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= maximum:
                raise ContractError(f"{name} is {shown(value)}, expected a positive number, {maximum:g} at most")
        for name, maximum in (("n_obs_steps", MAX_STEPS), ("horizon", MAX_STEPS), ("n_action_steps", MAX_STEPS)):
            _check_count(name, getattr(self, name), maximum)
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise ContractError(
                f"n_action_steps {self.n_action_steps} after {self.n_obs_steps} observations exceeds the horizon {self.horizon}"
            )
        if len(self.cameras) > MAX_CAMERAS:
            raise ContractError(f"cameras has {len(self.cameras)} entries, expected {MAX_CAMERAS} at most")
        if taken := sorted(RESERVED & {*self.cameras}):
            raise ContractError(f"camera name '{taken[0]}' is reserved for another array in data sets; rename the camera")
        if len(self.crop) != (2 if self.cameras else 0):
            expected = "height and width in pixels" if self.cameras else "none without cameras"
            raise ContractError(f"crop is {shown(list(self.crop))}, expected {expected}")
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
        """Control step, s."""
        return 1.0 / self.control_hz

    @property
    def dt_ns(self) -> int:
        """Control step, ns."""
        return round(NANOSECONDS / self.control_hz)

    @property
    def least_camera_hz(self) -> float:
        """Lowest rate (Hz) of each camera: one new frame per step, and frames of two cameras never farther apart than ``slop``."""
        return max(self.control_hz, 1.0 / (2.0 * self.slop) if len(self.cameras) > 1 else 0.0)

    @functools.cached_property
    def state_dim(self) -> int:
        return sum(feature.dim for feature in self.state)

    @functools.cached_property
    def action_dim(self) -> int:
        return sum(feature.dim for feature in self.action)

    @functools.cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of a state's values: ``position.x``, …"""
        return tuple(name for feature in self.state for name in feature.value_names)

    @functools.cached_property
    def action_names(self) -> tuple[str, ...]:
        """Names of an action's values."""
        return tuple(name for feature in self.action for name in feature.value_names)

    @property
    def padding(self) -> tuple[int, int]:
        """Steps by which a training window may extend beyond an episode's start and end, as live."""
        return self.n_obs_steps - 1, self.n_action_steps - 1

    @functools.cached_property
    def state_topics(self) -> dict[str, str]:
        """Topics of the measured state: topic -> message type."""
        return {feature.topic: feature.message_type for feature in self.state}

    @functools.cached_property
    def action_topics(self) -> dict[str, str]:
        """Topics of the commanded actions: topic -> message type."""
        return {feature.topic: feature.message_type for feature in self.action}

    @functools.cached_property
    def measured_joints(self) -> dict[str, tuple[str, ...]]:
        """Joint state topic -> names of the values that the state needs, each once."""
        names: dict[str, dict[str, None]] = {}
        for feature in self.state:
            if not feature.is_pose:
                names.setdefault(feature.topic, {}).update(dict.fromkeys(feature.message_names))
        return {topic: tuple(found) for topic, found in names.items()}

    @functools.cached_property
    def _places(self) -> dict[str, list[int]]:
        """Feature -> indices of its joints in :attr:`measured_joints`."""
        joints = [feature for feature in self.state if not feature.is_pose]
        return {f.name: [self.measured_joints[f.topic].index(n) for n in f.message_names] for f in joints}

    @functools.cached_property
    def arm(self) -> Arm:
        """The single arm of this contract. ContractError if it does not describe one arm with a gripper."""
        return Arm(self)

    def encode_state(self, measured: Mapping[str, Any]) -> Floats:
        """Measurements by topic -> state (state_dim,) float32.

        ``measured``: per topic a pose, (3,) m and quaternion xyzw (4,), or the values of :attr:`measured_joints`.

        Raises:
            ContractError: a value that is not finite, or an invalid quaternion.
        """
        parts = []
        for feature in self.state:
            sample = measured[feature.topic]
            if feature.is_pose:
                if feature.kind != "position":
                    _check_orientation(sample[1])
                parts.append(feature.encode_pose(*sample))
            else:
                parts.append(sample[self._places[feature.name]])
        state = np.concatenate(parts).astype(np.float64)
        if not np.all(np.isfinite(state)):
            wrong = [n for n, v in zip(self.state_names, state, strict=True) if not np.isfinite(v)]
            raise ContractError(f"state holds NaN or infinity in {wrong}")
        return state.astype(np.float32)

    def check_numbers(self, action: Floats) -> Floats:
        """:meth:`check_action` without the check of rotations."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape[-1:] != (self.action_dim,):
            raise ContractError(f"action has shape {action.shape}, expected (..., {self.action_dim})")
        if not np.all(np.isfinite(action)):
            raise ContractError("action holds NaN or infinity; the policy or its input is broken")
        return action

    def check_action(self, action: Floats) -> Floats:
        """Check actions (..., action_dim) and return them as float64.

        Raises:
            ContractError: a value that is not finite, an invalid rotation, or a wrong shape.
        """
        action, at = self.check_numbers(action), slices(self.action)
        for feature in self.action:
            if feature.kind in ("quaternion", "rotation_6d"):
                feature.quaternions(action[..., at[feature.name]])
        return action

    @classmethod
    def from_yaml(cls, path: str | Path) -> Contract:
        """Read a task file. ContractError if it is not a valid contract."""
        try:
            return cls.from_dict(read_yaml(path))
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error
        except ConfigError as error:
            raise ContractError(str(error)) from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contract:
        """Inverse of :meth:`to_dict`. Also reads older contracts, without features.

        Raises:
            ContractError: names a missing or unknown field.
        """
        if not isinstance(data, Mapping):
            raise ContractError(f"contract is {shown(data)}, expected a mapping")
        if set(_EARLIER) & set(data) and not {"state", "action"} & set(data):
            data = _with_features(data)
        fields = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - fields, key=str):
            raise ContractError(f"contract has unknown fields {shown(unknown)}; known are {sorted(fields)}")
        data = data if data.get("cameras") else {"crop": [], **data}
        if missing := sorted(fields - {"policy"} - set(data)):
            raise ContractError(f"contract lacks the fields {missing}")
        values = dict(data)
        if not isinstance(data["crop"], Sequence) or isinstance(data["crop"], str):
            raise ContractError(f"crop is {shown(data['crop'])}, expected a list of two")
        values["crop"] = tuple(data["crop"])
        if not isinstance(data["cameras"], Mapping):
            raise ContractError(f"cameras is {shown(data['cameras'])}, expected a mapping from name to topic, height and width")
        values["cameras"] = {name: _camera(name, camera) for name, camera in data["cameras"].items()}
        values |= {name: read_features(name, data[name]) for name in ("state", "action")}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML."""
        data = dataclasses.asdict(self)
        data |= {name: [feature.to_dict() for feature in getattr(self, name)] for name in ("state", "action")}
        data["crop"] = list(self.crop)
        if not self.policy:
            del data["policy"]
        return data

    def require_same(self, other: Contract, ours: str, theirs: str, any_task: bool = False) -> None:
        """Raise ContractError naming the first field in which ``other`` (called ``theirs``) differs; ``any_task``: the task's name
        may differ."""
        mine, its = self.to_dict(), other.to_dict()
        for name in {**mine, **its}:
            found, against = mine.get(name, ""), its.get(name, "")
            if found != against and not (any_task and name == "task"):
                if name in ("state", "action") and len(found) == len(against):
                    found, against = next((a, b) for a, b in zip(found, against, strict=True) if a != b)
                raise ContractError(
                    f"{ours} and {theirs} differ in '{name}': {found!r} against {against!r}; use the task file that the data "
                    f"and the checkpoint were made with, or make them again"
                )

    @property
    def policy_task(self) -> str:
        """The task whose policies are used for this one."""
        return self.policy or self.task

    def require_policy(self, policy: Contract, name: str) -> None:
        """Raise ContractError unless a policy with the contract ``policy``, called ``name``, can be used for this task."""
        if policy.task != self.policy_task:
            raise ContractError(
                f"{name} is a policy of the task {policy.task}, but {self.task} needs one of {self.policy_task}; use such a "
                f"policy, or the task file of {policy.task}"
            )
        dataclasses.replace(self, task=self.policy_task, policy="").require_same(policy, "the task", name)

    def action_stamps(self, stamp: int) -> NDArray[np.int64]:
        """Times (ns) of a chunk's actions, (horizon,): ``stamp + (i - (n_obs_steps - 1)) * dt``."""
        return stamp + (np.arange(self.horizon, dtype=np.int64) - (self.n_obs_steps - 1)) * self.dt_ns

    def history_stamps(self, stamp: int) -> list[int]:
        """Times (ns) of the observations in a policy's input, oldest first; the last is ``stamp``."""
        return [stamp - (self.n_obs_steps - 1 - i) * self.dt_ns for i in range(self.n_obs_steps)]


def _check_orientation(quaternion: Floats) -> None:
    if not np.all(np.isfinite(quaternion)):
        raise ContractError("state holds NaN or infinity in its orientation")
    if abs((length := np.linalg.norm(quaternion)) - 1.0) > 0.05:
        raise ContractError(f"orientation has length {length:.3f}, expected a unit quaternion")


def _with_features(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an older contract of one arm to one with features. ContractError names a missing field."""
    if missing := sorted(set(_EARLIER) - set(data)):
        raise ContractError(f"contract lacks the fields {missing}")
    joints = data["finger_joints"]
    if not isinstance(joints, Sequence) or isinstance(joints, str) or len(joints) != 2:
        raise ContractError(
            f"finger_joints is {shown(joints)}, expected a list of two joint names; for another gripper list the features of state "
            f"and action instead, see docs/how-to/your-own-cell.md"
        )
    pose, target = data["pose_topic"], "target_pose"
    state = [
        {"name": "position", "kind": "position", "topic": pose},
        {"name": "orientation", "kind": "quaternion", "topic": pose},
        {
            "name": "finger",
            "kind": "opening",
            "topic": data["joint_states_topic"],
            "joints": list(joints),
            "range": [0.0, MAX_OPENING / 2],
        },
    ]
    action = [
        {"name": "position", "kind": "position", "topic": target},
        {"name": "rotation", "kind": "rotation_6d", "topic": target},
        {"name": "opening", "kind": "opening", "topic": "gripper_target", "range": [0.0, MAX_OPENING]},
    ]
    return {**{name: value for name, value in data.items() if name not in _EARLIER}, "state": state, "action": action}


def task_contract(task: str) -> Contract:
    """The contract of a task file, found by :func:`onedp_ros.resources.named_file`."""
    return Contract.from_yaml(named_file("tasks", task))
