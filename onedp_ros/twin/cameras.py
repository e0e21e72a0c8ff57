"""When the cell's cameras expose: 30 Hz each, staggered by half a period, as two free-running cameras are on average.

So a new frame, and with it a new observation, arrives every 1/60 s.
"""

FRAME_HZ = 60.0
CAMERAS = ("front", "wrist")


def frame_time(index: int) -> float:
    """Instant (s, a whole millisecond: a physics step) of the cell's frame number ``index``."""
    return round(index * 1000.0 / FRAME_HZ) / 1000.0


def frame_camera(index: int) -> str:
    """The camera that exposes frame number ``index``."""
    return CAMERAS[index % 2]
