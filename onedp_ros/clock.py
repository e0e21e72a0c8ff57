"""Time by which ages and pauses are judged: it goes on while the machine is suspended, which ``time.monotonic`` does not."""

from __future__ import annotations

import time

SHORTEST_PAUSE = 0.1  # s between two steps, whatever a robot's file says: schedulers are late by some of it


def now_ns() -> int:
    """Since the machine's start, ns."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now() -> float:
    """Since the machine's start, s."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PauseWatch:
    """Notices when this process stood still: stopped, swapped out, frozen with its container, or suspended with the machine.

    What waits in its queues is then from before, and what it was about to do nobody may expect any more.

    Args:
        limit: time (s) between two calls of :meth:`check` that is a pause.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._last = limit, now()
        self.ended = float("-inf")  # when the last pause ended, on the clock of :func:`now`

    def restart(self) -> None:
        """After something that may take long: that was no pause."""
        self._last = now()

    def check(self) -> float:
        """Length (s) of the pause that has just ended; 0 when there was none. To be called again and again."""
        time_now = now()
        length, self._last = time_now - self._last, time_now
        if length <= self._limit:
            return 0.0
        self.ended = time_now
        return length

    def ended_within(self, seconds: float) -> bool:
        """Whether the last pause ended no longer ago: then a request may have waited through it."""
        return now() - self.ended < seconds
