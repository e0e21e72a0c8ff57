"""Action chunks, and the targets they plan at any time."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import Contract, Floats
from onedp_ros.geometry import slerp


@dataclasses.dataclass(frozen=True)
class Target:
    """A target for the arm: position (3,) m and quaternion xyzw (4,) in the base frame, gripper opening, m."""

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    opening: float


@dataclasses.dataclass(frozen=True)
class ActionChunk:
    """A prediction: ``positions`` (horizon, 3) m, ``quaternions`` (horizon, 4) xyzw and ``openings`` (horizon,) m, each for a time
    in ``stamps`` (horizon,) ns; ``stamp`` (ns) is that of the observation it was predicted from."""

    stamp: int
    stamps: NDArray[np.int64]
    positions: Floats
    quaternions: Floats
    openings: Floats

    @classmethod
    def from_actions(cls, contract: Contract, stamp: int, actions: Floats) -> ActionChunk:
        """From a policy's output (horizon, action_dim) for the observation at ``stamp``. ContractError for NaN or an invalid
        rotation."""
        return cls(stamp, contract.action_stamps(stamp), *contract.arm.decode_action(actions))

    def at(self, time: int) -> Target:
        """The target at ``time`` (ns): position and opening interpolated linearly, orientation on the shortest arc; first and last
        actions are held."""
        last = len(self.stamps) - 1
        i = int(np.clip(np.searchsorted(self.stamps, time, side="right") - 1, 0, max(last - 1, 0)))
        j = min(i + 1, last)
        span = int(self.stamps[j] - self.stamps[i])
        a = min(max((time - int(self.stamps[i])) / span, 0.0), 1.0) if span else 0.0
        return Target(
            position=(1 - a) * self.positions[i] + a * self.positions[j],
            quaternion=slerp(self.quaternions[i], self.quaternions[j], a),
            opening=float((1 - a) * self.openings[i] + a * self.openings[j]),
        )
