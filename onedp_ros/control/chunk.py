"""Action chunks, and the targets they plan at any time."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import Contract, Floats

LARGEST = 1e9  # m: more would overflow


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
        """The target at ``time`` (ns): position and orientation on the uniform cubic B-spline with the actions as control points,
        which evens out their jitter without lag and whose velocity never jumps; opening interpolated linearly; first and last
        actions are held. A straight motion at constant speed is reproduced exactly."""
        last = len(self.stamps) - 1
        along = float(np.interp(time - self.stamps[0], self.stamps - self.stamps[0], np.arange(last + 1)))
        i = min(int(along), max(last - 1, 0))
        a, j = along - i, min(i + 1, last)
        quaternion = self._spline(self.quaternions, i, a)
        return Target(
            position=self._spline(self.positions, i, a),
            quaternion=quaternion / np.linalg.norm(quaternion),
            opening=float((1 - a) * self.openings[i] + a * self.openings[j]),
        )

    @staticmethod
    def _spline(values: Floats, i: int, a: float) -> NDArray[np.float64]:
        """The spline of ``values`` (horizon, n) at fraction ``a`` of the way from row ``i`` to the next."""
        last = len(values) - 1
        points = values[[max(i - 1, 0), i, min(i + 1, last), min(i + 2, last)]].astype(np.float64)
        points = np.clip(points, -LARGEST, LARGEST)
        if points.shape[1] == 4:  # quaternions, of which both signs are the same rotation
            points[points @ points[1] < 0] *= -1
        if i == 0:
            points[0] = 2 * points[1] - points[2]
        if i >= last - 1:
            points[3] = 2 * points[2] - points[1]
        weights = np.array([(1 - a) ** 3, 3 * a**3 - 6 * a**2 + 4, 3 * (a + a**2 - a**3) + 1, a**3]) / 6
        return weights @ points
