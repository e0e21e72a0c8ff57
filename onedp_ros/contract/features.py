"""Features: the named parts of a policy's state and action, as a task file lists them.

A feature's kind determines its number of values, its message type, its interpolation and its normalisation:

============  ======  ===========  ==============================================================================
kind          values  message      interpolation; normalisation
============  ======  ===========  ==============================================================================
position      3       PoseStamped  linear; the data's range becomes [-1, 1]
quaternion    4       PoseStamped  slerp; none. x, y, z, w in the half-space of "tool down" (1, 0, 0, 0): two
                                   orientations near its border (orientation.x = 0) look far apart
rotation_6d   6       PoseStamped  slerp; none. The first two rows of the rotation matrix; no such border
opening       joints  JointState   linear, a command is held; ``range`` (closed, open) becomes [-1, 1] or [1, -1]
joint         joints  JointState   linear; the data's range becomes [-1, 1]
plain         size    JointState   linear; the data's range becomes [-1, 1]
============  ======  ===========  ==============================================================================

Positions are metres in the contract's base frame. No ROS here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.config import check_name, check_topic, shown
from onedp_ros.geometry import matrix_to_quaternion, matrix_to_rotation_6d, quaternion_to_matrix, rotation_6d_to_matrix

Floats = NDArray[np.floating[Any]]
Pose = tuple[Floats, Floats]
"""Position (3,) m and quaternion xyzw (4,), or stacks of them."""

POSE, JOINTS = "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/JointState"
POSE_KINDS = {"position": "xyz", "quaternion": "xyzw", "rotation_6d": "012345"}  # the suffixes of their values' names
JOINT_KINDS = ("opening", "joint", "plain")
MAX_VALUES = 64  # values of a feature, and features of a state or action
LEAST_RANGE = {"position": 0.01, "joint": 0.01}  # m, rad: smallest half range normalised to [-1, 1]; less would amplify noise
_MAX_TEXT = 200  # characters
_OPTIONS = {"opening": {"joints", "range"}, "joint": {"joints"}, "plain": {"joints", "size"}}


class ContractError(ValueError):
    """Data that violates a contract; the message names the item, its value and the remedy."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """One part of the state or the action.

    Args:
        name: unique in the state or action.
        kind: see the module's table.
        topic: where it is measured or commanded.
        joints: of an opening, joint or plain feature, the names of the values in the message. Without them an opening is a
            message's first value, whatever its name, and a plain feature's values are named ``name.0``, ``name.1``, …
        size: number of values of a plain feature.
        range: of an opening, the values at closed and open: (0.0, 0.04) for each finger of the Franka hand (m), (0.8, 0.0) for the
            knuckle of a Robotiq 2F-85 (rad), (0.0, 1.0) for a fraction.

    Raises:
        ContractError: names the feature, the value and what is expected.
    """

    name: str
    kind: str
    topic: str
    joints: tuple[str, ...] = ()
    size: int = 0
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        try:
            check_name("feature", self.name)
            check_topic(f"topic of the feature {self.name}", self.topic)
        except ValueError as error:
            raise ContractError(f"{error}; correct it in the task file") from error
        if self.kind not in (*POSE_KINDS, *JOINT_KINDS):
            raise ContractError(
                f"feature {self.name} is of the kind {shown(self.kind)}, expected one of {', '.join((*POSE_KINDS, *JOINT_KINDS))}"
            )
        given = {n for n in ("joints", "size", "range") if getattr(self, n)}
        if extra := sorted(given - _OPTIONS.get(self.kind, set())):
            raise ContractError(f"feature {self.name}: a {self.kind} has no '{extra[0]}'; remove it")
        if not (
            isinstance(self.joints, tuple)
            and len(self.joints) <= MAX_VALUES
            and all(isinstance(n, str) and 0 < len(n) <= _MAX_TEXT for n in self.joints)
        ):
            raise ContractError(f"feature {self.name}: joints is {shown(self.joints)}, expected a list of joint names")
        if len(set(self.joints)) != len(self.joints):
            raise ContractError(f"feature {self.name} names a joint twice: {list(self.joints)}; name each once")
        if self.kind == "joint" and not self.joints:
            raise ContractError(f"feature {self.name} names no joints; list them as in the messages of {self.topic}")
        if self.kind == "plain" and bool(self.joints) == bool(self.size):
            raise ContractError(f"feature {self.name} needs either its size or the names of its joints")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 0 <= self.size <= MAX_VALUES:
            raise ContractError(f"feature {self.name}: size is {shown(self.size)}, expected a whole number, {MAX_VALUES} at most")
        if self.kind == "opening":
            good = isinstance(self.range, tuple) and len(self.range) == 2 and all(map(_is_number, self.range))
            if not good or self.range is None or abs(self.range[1] - self.range[0]) < 1e-3:
                raise ContractError(
                    f"feature {self.name}: range is {shown(self.range)}, expected the two values that mean closed and open, such "
                    f"as [0.0, 0.04] for a finger of the Franka hand"
                )
            object.__setattr__(self, "range", (float(self.range[0]), float(self.range[1])))

    @property
    def is_pose(self) -> bool:
        """Whether it is part of a pose."""
        return self.kind in POSE_KINDS

    @property
    def message_type(self) -> str:
        return POSE if self.is_pose else JOINTS

    @property
    def dim(self) -> int:
        """Number of values."""
        return len(POSE_KINDS[self.kind]) if self.is_pose else len(self.joints) or self.size or 1

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of its values in messages, plots and data sets: ``position.x``, ``rotation.0``, ``finger.1``; its own name if there
        is only one."""
        if self.is_pose:
            return tuple(f"{self.name}.{a}" for a in POSE_KINDS[self.kind])
        if self.dim == 1:
            return (self.name,)
        first = 0 if self.kind == "plain" else 1
        return tuple(f"{self.name}.{i}" for i in range(first, first + self.dim))

    @property
    def message_names(self) -> tuple[str, ...]:
        """Names of its values in a JointState; empty: the first value, whatever its name."""
        return self.joints or (self.value_names if self.kind == "plain" else ())

    def encode_pose(self, position: Floats, quaternion: Floats) -> Floats:
        """Its values (dim,) for a pose: position (3,) m and unit quaternion xyzw (4,)."""
        if self.kind == "position":
            return np.asarray(position)
        if self.kind == "rotation_6d":
            return matrix_to_rotation_6d(quaternion_to_matrix(np.asarray(quaternion)))
        length = np.linalg.norm(quaternion)
        return np.asarray(quaternion) / (length if quaternion[0] >= 0 else -length)

    def quaternions(self, values: Floats) -> Floats:
        """Its values (..., dim), quaternion or rotation_6d -> unit quaternions (..., 4). ContractError for an invalid rotation."""
        values = np.asarray(values, dtype=np.float64)
        if self.kind == "quaternion":
            length = np.linalg.norm(values, axis=-1, keepdims=True)
            if np.any(np.abs(length - 1.0) > 0.05):
                worst = length.flat[np.argmax(np.abs(length - 1.0))]
                raise ContractError(f"{self.name}: not a unit quaternion, its length is {worst:.3f}")
            return values / length
        try:
            return matrix_to_quaternion(rotation_6d_to_matrix(values))
        except ValueError as error:
            raise ContractError(f"{self.name}: {error}") from error

    def scaling(self, data: Floats) -> tuple[Floats, Floats]:
        """Offset and scale (dim,) that normalise it, given its values (N, dim) in a data set."""
        if self.kind in ("quaternion", "rotation_6d"):
            return np.zeros(self.dim), np.ones(self.dim)
        if self.range is not None:
            closed, opened = self.range
            return np.full(self.dim, (closed + opened) / 2), np.full(self.dim, abs(opened - closed) / 2)
        low, high = data.min(0), data.max(0)
        half = (high - low) / 2
        if self.kind in LEAST_RANGE:
            return (low + high) / 2, np.maximum(half, LEAST_RANGE[self.kind])
        return (low + high) / 2, np.where(half < 1e-3, 1.0, half)  # constant values are not scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without unset fields."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind, "topic": self.topic}
        data |= {"joints": list(self.joints)} if self.joints else {}
        data |= {"size": self.size} if self.size else {}
        return data | ({"range": list(self.range)} if self.range else {})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e4


def read_features(where: str, data: object) -> tuple[Feature, ...]:
    """Parse a task file's list of features; ``where``: ``state`` or ``action``. ContractError names the feature and the field."""
    if not isinstance(data, Sequence) or isinstance(data, str) or not 0 < len(data) <= MAX_VALUES:
        raise ContractError(f"{where} is {shown(data)}, expected a list of features, each with name, kind and topic")
    known = [f.name for f in dataclasses.fields(Feature)]
    features = []
    for item in data:
        if not isinstance(item, Mapping) or not {"name", "kind", "topic"} <= set(item):
            raise ContractError(f"{where} holds {shown(item)}, expected a feature with name, kind and topic")
        if unknown := sorted(set(item) - set(known), key=str):
            raise ContractError(
                f"{where}: the feature {shown(item['name'])} has unknown fields {shown(unknown)}; known are {known}"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in item.items()}
        features.append(Feature(**values))
        if where == "state" and not features[-1].is_pose and not features[-1].message_names:
            raise ContractError(f"state: the feature {features[-1].name} names no joints; list them as in {features[-1].topic}")
    names = [feature.name for feature in features]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ContractError(f"{where} has two features named '{twice[0]}'; rename one")
    kinds: dict[str, str] = {}
    for feature in features:
        if kinds.setdefault(feature.topic.lstrip("/"), feature.message_type) != feature.message_type:
            raise ContractError(
                f"{where}: {feature.topic} is used both as a pose and as a joint state ({feature.name}); give each its own topic"
            )
    return tuple(features)


def slices(features: Sequence[Feature]) -> dict[str, slice]:
    """Position of each feature's values in the vector, by feature name."""
    found, first = {}, 0
    for feature in features:
        found[feature.name] = slice(first, first + feature.dim)
        first += feature.dim
    return found
