"""Timing of a stream of messages: rate, jitter, gaps, and the time between the frames of two cameras."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE = 8192  # intervals, spread evenly over the run, from which period and jitter are computed: bounds the cost of a long run


class StreamTiming:
    """Collects the stamps (ns) of one stream. One thread may add while another reads.

    A stamp that is not newer than all before it is counted in ``out_of_order`` and otherwise ignored. An interval is the time
    between two consecutive stamps, the period is the median interval. All values are for the whole run, and 0 without an interval.
    """

    def __init__(self) -> None:
        self.count = 0  # stamps added, including those out of order
        self.out_of_order = 0
        self._stamps = array("q")

    def add(self, stamp: int) -> None:
        self.count += 1
        if self._stamps and stamp <= self._stamps[-1]:
            self.out_of_order += 1
        else:
            self._stamps.append(stamp)

    @property
    def stamps(self) -> NDArray[np.int64]:
        """(N,) ns, increasing."""
        return np.frombuffer(self._stamps[:], dtype=np.int64)  # a copy, since an array whose buffer is exported cannot grow

    @property
    def seconds(self) -> float:
        """From the first stamp to the last."""
        return (self._stamps[-1] - self._stamps[0]) * 1e-9 if self._stamps else 0.0

    @property
    def hz(self) -> float:
        """The mean rate, which every missing frame lowers."""
        return (len(self._stamps) - 1) / self.seconds if len(self._stamps) > 1 else 0.0

    @property
    def period_ms(self) -> float:
        """The median interval, which a few missing frames do not change."""
        return float(np.median(_sample(np.diff(self.stamps)))) * 1e-6 if len(self._stamps) > 1 else 0.0

    @property
    def jitter_ms_p95(self) -> float:
        """95th percentile of ``|interval - period|``."""
        if len(self._stamps) < 2:
            return 0.0
        intervals = _sample(np.diff(self.stamps))
        return float(np.percentile(np.abs(intervals - np.median(intervals)), 95)) * 1e-6

    def gaps(self) -> list[tuple[int, float, int]]:
        """(stamp before the gap, s until the next stamp, missing frames), in order.

        A gap is an interval longer than 1.5 periods, with ``round(interval / period) - 1`` missing frames.
        """
        stamps = self.stamps
        if len(stamps) < 2:
            return []
        intervals = np.diff(stamps)
        period = np.median(_sample(intervals))
        (places,) = np.nonzero(intervals > 1.5 * period)
        missing = np.rint(intervals[places] / period).astype(np.int64) - 1
        return list(zip(stamps[places].tolist(), (intervals[places] * 1e-9).tolist(), missing.tolist(), strict=True))

    @property
    def missing_frames(self) -> int:
        """Missing frames in all gaps together."""
        return sum(missing for _, _, missing in self.gaps())

    @property
    def longest_gap_frames(self) -> int:
        """Largest number of consecutive missing frames."""
        return max((missing for _, _, missing in self.gaps()), default=0)


def _sample(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    return intervals[:: len(intervals) // SAMPLE + 1]


def sync_errors_ms(stamps: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """The time (ms, >= 0) from each frame of one camera to the nearest frame of another: stamps ns (N,), (M,) -> (N,).

    Frames of two free-running 30 Hz cameras are normally up to half a period, 16.7 ms, apart. ValueError if M is 0.
    """
    frames, others = np.asarray(stamps, dtype=np.int64), np.sort(np.asarray(others, dtype=np.int64))
    if not len(others):
        raise ValueError("the other camera has no frames; the sync error needs at least one")
    after = np.searchsorted(others, frames)
    before = np.abs(frames - others[np.maximum(after - 1, 0)])
    return np.minimum(before, np.abs(frames - others[np.minimum(after, len(others) - 1)])) * 1e-6
