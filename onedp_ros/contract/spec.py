"""What a policy sees and outputs, as data: cameras, rates, topics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onedp_ros.config import ConfigError, check_name, check_topic, read_yaml, shown
from onedp_ros.resources import named_file

NANOSECONDS = 1_000_000_000
MAX_OPENING = 0.08  # m between the fingers of the Franka hand

# What no cell needs more of; beyond them a few bytes of a task file would cost a machine its memory.
MAX_HZ, MAX_SLOP = 1000.0, 10.0  # 1/s, s
MAX_STEPS = 1000  # of observations or actions in a window
MAX_CAMERAS, MAX_PIXELS = 16, 8192  # a task, a side of an image
_MAX_TEXT = 200  # characters
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


def task_contract(task: str) -> Contract:
    """The contract of a task file, as of :func:`onedp_ros.resources.named_file`."""
    return Contract.from_yaml(named_file("tasks", task))
