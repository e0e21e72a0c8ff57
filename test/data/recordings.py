"""What the recordings of these tests hold: an arm that rises, seen by two staggered 30 Hz cameras."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from onedp_ros.contract import NANOSECONDS

ARM = [f"fr3_joint{i}" for i in range(1, 8)]
START = 1_700_000_000 * NANOSECONDS
HALF_FRAME = 16_666_667  # ns, between two frames of the cameras taken together


def frame(camera: str, index: int) -> np.ndarray:
    """A picture that only this frame of this camera has."""
    rng = np.random.default_rng([index, camera == "wrist"])
    return np.repeat(rng.integers(0, 255, (120, 20, 3), dtype=np.uint8), 8, axis=1)


def position(stamp: int) -> np.ndarray:
    """Where the arm is at a time: it rises by 0.1 m/s."""
    return np.array([0.5, 0.0, 0.2 + 0.1 * (stamp - START) / NANOSECONDS])


Record = Callable[..., Path]
