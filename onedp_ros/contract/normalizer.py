"""The affine maps between data and the networks' normalised values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from onedp_ros.config import shown
from onedp_ros.contract.features import ContractError, Feature, Floats
from onedp_ros.contract.spec import Contract

MIN_SCALE, MAX_SCALE = 1e-4, 1000.0


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Affine maps ``normal = (value - offset) / scale`` of state and action, chosen by each feature's kind.

    Positions, joints and openings span [-1, 1]; rotations keep offset 0 and scale 1, as in Diffusion Policy. Arrays are float32:
    state (state_dim,), action (action_dim,).
    """

    state_offset: Floats
    state_scale: Floats
    action_offset: Floats
    action_scale: Floats

    @classmethod
    def fit(cls, contract: Contract, state: Floats, action: Floats) -> Normalizer:
        """Fit to the range of a data set's states (N, state_dim) and actions (N, action_dim).

        Raises:
            ContractError: an implausible range.
        """
        made = cls(*(a.astype(np.float32) for a in (*_scaling(contract.state, state), *_scaling(contract.action, action))))
        return cls.from_dict(made.to_dict(), contract)  # rejects what could not be loaded again

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]], contract: Contract) -> Normalizer:
        """Inverse of :meth:`to_dict`. ContractError for a field that is missing, of the wrong size, or implausible."""
        names = [f.name for f in dataclasses.fields(cls)]
        if set(data) != {*names}:
            raise ContractError(f"normalizer has the fields {shown(sorted(data, key=str))}, expected {names}")
        for name, values in data.items():
            size = contract.state_dim if name.startswith("state") else contract.action_dim
            low = MIN_SCALE if name.endswith("scale") else -MAX_SCALE
            if not isinstance(values, Sequence) or len(values) != size:
                raise ContractError(f"normalizer.{name} is {shown(values)}, expected {size} numbers")
            for value in values:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= MAX_SCALE:
                    raise ContractError(
                        f"normalizer.{name} holds {shown(value)}, expected numbers from {low:g} to {MAX_SCALE:g}: use metres, "
                        f"radians or other units of similar magnitude"
                    )
        return cls(**{name: np.asarray(data[name], dtype=np.float32) for name in names})

    def including(self, other: Normalizer) -> Normalizer:
        """The normaliser of both ranges; values whose range already contains the other's are unchanged to the bit."""

        def span(offset: Floats, scale: Floats, more_offset: Floats, more_scale: Floats) -> tuple[Floats, Floats]:
            low, high = np.minimum(offset - scale, more_offset - more_scale), np.maximum(offset + scale, more_offset + more_scale)
            held = (high - low) / 2 <= scale * (1 + 1e-5)
            return np.where(held, offset, (low + high) / 2), np.where(held, scale, (high - low) / 2)

        return Normalizer(
            *span(self.state_offset, self.state_scale, other.state_offset, other.state_scale),
            *span(self.action_offset, self.action_scale, other.action_offset, other.action_scale),
        )

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data for JSON; float32 values survive the round trip exactly."""
        return {f.name: [float(v) for v in getattr(self, f.name)] for f in dataclasses.fields(self)}


def _scaling(features: Sequence[Feature], data: Floats) -> tuple[Floats, Floats]:
    """Concatenated offsets and scales of all features, for a data set's values (N, dim)."""
    ends = np.cumsum([feature.dim for feature in features])
    parts = [f.scaling(values) for f, values in zip(features, np.split(data, ends[:-1], axis=1), strict=True)]
    return np.concatenate([offset for offset, _ in parts]), np.concatenate([scale for _, scale in parts])
