"""The affine maps between data and what networks see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from onedp_ros.config import shown
from onedp_ros.contract.spec import ACTION_NAMES, MAX_OPENING, STATE_NAMES, ContractError, Floats

MIN_SCALE, MAX_SCALE = 1e-4, 1000.0


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
