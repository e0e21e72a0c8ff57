"""State and action vectors of a Franka cell: what they hold, to and from poses and openings.

State (9,): position of the end effector in the base frame (m), its orientation as a quaternion x, y, z, w in the
half-space of "tool down" (1, 0, 0, 0) so that q and -q are one state, and the positions of the two fingers (m).
Action (10,): position (m), 6D rotation, gripper opening between the fingers (m). All absolute, in the base frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onedp_ros.contract.spec import ACTION_NAMES, STATE_NAMES, ContractError, Floats
from onedp_ros.geometry import matrix_to_quaternion, matrix_to_rotation_6d, quaternion_to_matrix, rotation_6d_to_matrix


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
