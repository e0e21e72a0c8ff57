"""Exposure times of the cell's cameras: 30 Hz each, evenly staggered, as free-running cameras are on average.

With two cameras a new frame, and so a new observation, arrives every 1/60 s.
"""

from __future__ import annotations

from collections.abc import Iterable

CAMERA_HZ = 30.0


class ExposureSchedule:
    """Frames are numbered in order of time. The cameras take turns, sorted by name: frame 0 is the first camera's, at 0 ms; earlier
    frames have negative numbers."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self.cameras = sorted(cameras)

    def camera(self, index: int) -> str:
        """The camera that takes frame ``index``."""
        return self.cameras[index % len(self.cameras)]

    def time(self, index: int) -> int:
        """Exposure time of frame ``index``, ms."""
        return round(index * 1000.0 / (CAMERA_HZ * len(self.cameras)))
