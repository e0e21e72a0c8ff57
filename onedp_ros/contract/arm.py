"""A contract seen as one arm with one gripper: its topics, and the conversion of poses and openings to and from vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onedp_ros.contract.features import ContractError, Feature, Floats, slices

if TYPE_CHECKING:
    from onedp_ros.contract.spec import Contract

MAX_OPENING = 0.08  # m between the fingers of the Franka hand


class Arm:
    """The single arm of a contract.

    Attributes:
        pose_topic, joint_states_topic: topics of the measured end effector pose and gripper joints.
        finger_joints: names of the gripper's joints.
        target_topic, gripper_topic: topics of the commanded poses and openings.

    Raises:
        ContractError: the contract does not describe one arm with a gripper.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        position, orientation, fingers = _parts(contract.task, "state", contract.state)
        target, rotation, opening = _parts(contract.task, "action", contract.action)
        self.pose_topic, self.joint_states_topic, self.finger_joints = position.topic, fingers.topic, fingers.joints
        self.target_topic, self.gripper_topic = target.topic, opening.topic
        self._orientation, self._rotation, self._fingers, self._opening = orientation, rotation, fingers, opening
        state, action = slices(contract.state), slices(contract.action)
        self._at = {"position": state[position.name], "orientation": state[orientation.name], "fingers": state[fingers.name]}
        self._to = {"position": action[target.name], "rotation": action[rotation.name], "opening": action[opening.name]}

    @property
    def opening_range(self) -> tuple[float, float]:
        """The commands for fully closed and fully open."""
        assert self._opening.range is not None
        return self._opening.range

    def opening(self, fingers: Sequence[float] | Floats) -> float:
        """The command that corresponds to the gripper's joint positions: the sum of the fingers' if the ranges say so, else scaled
        from the joints' range to the command's."""
        assert self._fingers.range is not None and self._opening.range is not None
        (closed, opened), (shut, wide) = self._fingers.range, self._opening.range
        total = float(sum(float(f) for f in fingers))
        if (closed * len(fingers), opened * len(fingers)) == (shut, wide):
            return total
        return shut + (wide - shut) * (total / len(fingers) - closed) / (opened - closed)

    def poses(self, state: Floats) -> tuple[Floats, Floats, Floats]:
        """States (..., state_dim) -> positions (..., 3) m, unit quaternions xyzw (..., 4), gripper joints (..., joints)."""
        state = np.asarray(state, dtype=np.float64)
        quaternions = self._orientation.quaternions(state[..., self._at["orientation"]])
        return state[..., self._at["position"]], quaternions, state[..., self._at["fingers"]]

    def encode_state(self, position: Floats, quaternion: Floats, fingers: Sequence[float] | Floats) -> Floats:
        """Position (3,) m, quaternion xyzw (4,), gripper joints -> state (state_dim,) float32.

        Raises:
            ContractError: NaN, an invalid quaternion, or a state with other joints besides the gripper's.
        """
        if self.contract.measured_joints != {self.joint_states_topic: self.finger_joints}:
            raise ContractError(
                f"task {self.contract.task}: the state has the joints {dict(self.contract.measured_joints)} besides the gripper's; "
                f"remove those features from the task file, or record bags with all of them"
            )
        fingers = np.asarray(fingers, dtype=np.float64)
        return self.contract.encode_state({self.pose_topic: (position, quaternion), self.joint_states_topic: fingers})

    def encode_action(self, position: Floats, quaternion: Floats, opening: float) -> Floats:
        """Target position (3,) m, quaternion xyzw (4,), opening -> action (action_dim,) float32."""
        action = np.empty(self.contract.action_dim)
        action[self._to["position"]] = position
        action[self._to["rotation"]] = self._rotation.encode_pose(position, np.asarray(quaternion, dtype=np.float64))
        action[self._to["opening"]] = opening
        return action.astype(np.float32)

    def decode_action(self, action: Floats) -> tuple[Floats, Floats, Floats]:
        """Actions (..., action_dim) -> positions (..., 3) m, unit quaternions xyzw (..., 4), openings (...).

        Raises:
            ContractError: a value that is not finite, an invalid rotation, or a wrong shape.
        """
        action = self.contract.check_numbers(action)
        quaternions = self._rotation.quaternions(action[..., self._to["rotation"]])
        return action[..., self._to["position"]], quaternions, action[..., self._to["opening"].start]


def _parts(task: str, where: str, features: Sequence[Feature]) -> tuple[Feature, Feature, Feature]:
    """Position, rotation and gripper of the state or action of one arm."""
    positions = [f for f in features if f.kind == "position"]
    rotations = [f for f in features if f.kind in ("quaternion", "rotation_6d")]
    openings = [f for f in features if f.kind == "opening"]
    counts = {"positions": len(positions), "orientations": len(rotations), "openings": len(openings)}
    one = set(counts.values()) == {1} and positions[0].topic == rotations[0].topic
    if not one or (where == "action" and (len(features) != 3 or openings[0].dim != 1)):
        others = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ContractError(
            f"task {task} is not of one arm with a gripper: its {where} has {others} in {len(features)} features, expected a "
            f"position and an orientation of one topic and an opening; nodes and tools for a single arm cannot run it"
        )
    return positions[0], rotations[0], openings[0]
