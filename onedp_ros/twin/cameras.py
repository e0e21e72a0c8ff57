"""When the cell's cameras expose: 30 Hz each, staggered evenly, as free-running cameras are on average.

So with two cameras a new frame, and with it a new observation, arrives every 1/60 s.
"""

from __future__ import annotations

from collections.abc import Iterable

CAMERA_HZ = 30.0


class ExposureSchedule:
    """Frames are numbered in the order of time. The cameras take turns in the order of their names; frame 0, of the first, is at
    0 ms, and those before it have negative numbers."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self.cameras = sorted(cameras)

    def camera(self, index: int) -> str:
        """The camera that exposes frame number ``index``."""
        return self.cameras[index % len(self.cameras)]

    def time(self, index: int) -> int:
        """Instant of frame number ``index``, ms."""
        return round(index * 1000.0 / (CAMERA_HZ * len(self.cameras)))
