"""The clock for ages and pauses: it keeps running while the machine is suspended, unlike ``time.monotonic``."""

from __future__ import annotations

import time

SHORTEST_PAUSE = 0.1  # s between two steps that count as a pause at least, whatever a robot file says: schedulers are late
REQUEST_DOUBT = (
    5.0  # s after a pause in which a request may predate it: DDS repeats one lost on its way after 3 s (heartbeat_period)
)


def now_ns() -> int:
    """Time since boot, ns."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now() -> float:
    """Time since boot, s."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PauseWatch:
    """Notices when this process was paused: stopped, swapped out, frozen with its container, or suspended with the machine.

    Messages waiting in its queues then predate the pause, and nobody may expect any more what it was about to do.

    Args:
        limit: time (s) between two calls of :meth:`check` above which it was a pause.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._last = limit, now()
        self.ended = float("-inf")  # when the last pause ended, on the clock of :func:`now`

    def restart(self) -> None:
        """Forget the time since the last check, after something that may take long: that was no pause."""
        self._last = now()

    def check(self) -> float:
        """Length (s) of the pause that has just ended; 0 when there was none. Call it regularly."""
        time_now = now()
        length, self._last = time_now - self._last, time_now
        if length <= self._limit:
            return 0.0
        self.ended = time_now
        return length

    def ended_within(self, seconds: float) -> bool:
        """Whether the last pause ended within so many seconds: a request may then have waited through it."""
        return now() - self.ended < seconds
