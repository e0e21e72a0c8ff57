"""How far a stream of targets jumps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onedp_ros.geometry import rotation_difference

LEAST_INTERVAL = 0.015  # s over which a velocity is measured: targets may follow each other closer where a chunk arrives
LONGEST_INTERVAL = 0.036  # s, two periods at 60 Hz: over a longer gap the motion itself changes by more than a jump

Array = NDArray[np.float64]


def departures(seconds: Array, positions: Array, quaternions: Sequence[Array]) -> tuple[Array, Array]:
    """By how much targets depart from the motion before them.

    Args:
        seconds: when each target was sent, (N,), rising.
        positions, quaternions: the targets, (N, 3) m and N times (4,) xyzw.

    Returns:
        Distance (m) and angle (rad) of each target from the third on, (N - 2,), to where the velocity of the two before it leads;
        of the latter the earlier one is at least :data:`LEAST_INTERVAL` older, if there is one. 0 after a gap of more than
        :data:`LONGEST_INTERVAL`.
    """
    distances, angles = [], []
    for i in range(2, len(seconds)):
        start = max(int(np.searchsorted(seconds, seconds[i - 1] - LEAST_INTERVAL, side="right")) - 1, 0)
        start = min(start, i - 2)
        if seconds[i] - seconds[i - 1] > LONGEST_INTERVAL or seconds[i - 1] - seconds[start] > LONGEST_INTERVAL:
            distances.append(0.0)
            angles.append(0.0)
            continue
        ratio = (seconds[i] - seconds[i - 1]) / (seconds[i - 1] - seconds[start])
        moved, before = positions[i] - positions[i - 1], positions[i - 1] - positions[start]
        turned = rotation_difference(quaternions[i], quaternions[i - 1])
        turned_before = rotation_difference(quaternions[i - 1], quaternions[start])
        distances.append(float(np.linalg.norm(moved - ratio * before)))
        angles.append(float(np.linalg.norm(turned - ratio * turned_before)))
    return np.array(distances), np.array(angles)
