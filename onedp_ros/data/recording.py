"""Recording an episode: checks on the messages as they arrive, and a thread that writes them to disk."""

from __future__ import annotations

import bisect
import itertools
import math
import queue
import re
import statistics
import threading
import time
from collections import deque
from operator import itemgetter
from pathlib import Path
from typing import Any

from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.bags.writer import CHUNK_TIME, BagWriter
from onedp_ros.data.timing import StreamTiming
from onedp_ros.messages.decode import header_stamp

SILENCE = 0.3  # s without a message after which a topic counts as silent
LATE, EARLY = 0.5, 0.05  # s that a stamp may lie before and after the message's arrival
SLOW = 0.9  # fraction of the rate that the task needs below which a topic is too slow: clocks and schedulers are not exact
RECENT = 20  # stamps from which the current rate is computed
QUEUE_BYTES = 256 * 2**20  # waiting to be written; messages beyond that are lost, and counted

Message = tuple[int, str, bytes]  # arrival (ns), topic, serialized message


def next_episode(folder: Path) -> str:
    """``episode_000000``, or the number after the largest in the folder, interrupted recordings included."""
    found = (re.fullmatch(r"episode_(\d+)(\.partial)?", path.name) for path in folder.iterdir())
    return f"episode_{max((int(name[1]) for name in found if name), default=-1) + 1:06d}"


class TopicWatch:
    """Checks the messages of one topic for problems that would spoil an episode.

    Args:
        hz: lowest rate that the task accepts; 0: any.
        gap: longest time (s) between two stamps that the task accepts; infinite: any.
        optional: whether an episode may start before the first message.
        needed: whether the task uses the topic and its messages begin with a header; other topics are only counted.
    """

    def __init__(self, topic: str, hz: float = 0.0, gap: float = math.inf, optional: bool = True, needed: bool = True) -> None:
        self.topic, self.least, self.gap, self.optional, self.needed = topic, hz, gap, optional, needed
        self.heard = 0  # arrival of the newest message, ns
        self._excused = 0  # wall clock, ns
        self._recent: deque[int] = deque(maxlen=RECENT)
        self.end()

    def end(self) -> None:
        """End the episode."""
        self.begin(0)

    def begin(self, now: int) -> None:
        """Start an episode at this time (ns)."""
        self._began = now
        self.timing = StreamTiming()
        self._problems: dict[str, str] = {}
        self._gaps, self._first_gap, self._longest_gap = 0, 0.0, 0.0

    def excuse(self, before: int) -> None:
        """Do not report messages stamped before this time (ns) as a clock problem: they are late for another reason."""
        self._excused = before

    def take(self, data: bytes, arrival: int) -> None:
        """Check a serialized message that arrived at ``arrival`` (ns), during an episode or before it."""
        stamp = header_stamp(data) if self.needed else arrival
        last = self._recent[-1] if self._recent else stamp
        self.heard = arrival
        self._recent.append(stamp)
        if not self._began:
            return
        gap = (stamp - last) / NANOSECONDS
        if gap > self.gap and (self.timing.count or not self.optional):
            self._first_gap = self._first_gap if self._gaps else max(self._since(arrival) - gap, 0.0)
            self._gaps, self._longest_gap = self._gaps + 1, max(self._longest_gap, gap)
        self.timing.add(stamp)
        lag = (arrival - stamp) / NANOSECONDS  # 0 when it has no stamp
        if not -EARLY <= lag <= LATE and stamp >= self._excused:
            where = f"{lag:.2f} s before" if lag > 0 else f"{-lag:.2f} s after"
            self._problems["clock"] = f"was stamped {where} it arrived; synchronise the clocks (chrony)"

    def silent(self, now: int) -> bool:
        return now - max(self.heard, self._began) > SILENCE * NANOSECONDS

    def hz(self, now: int) -> float:
        """The current rate, from the median of the last intervals; 0 when silent for a second or more."""
        intervals = [b - a for a, b in itertools.pairwise(self._recent)]
        if not intervals or now - self.heard > NANOSECONDS or (median := statistics.median(intervals)) <= 0:
            return 0.0
        return NANOSECONDS / median

    def several(self, publishers: list[str]) -> None:
        """Report that the topic has more than one publisher."""
        self._problems["publishers"] = f"has {len(publishers)} publishers: {', '.join(publishers)}; stop all but one"

    def problems(self, now: int, ended: bool = False) -> dict[str, str]:
        """Problems of the episode so far, by kind; with ``ended``, also that nothing ever arrived."""
        if not self.needed:
            return {}
        found, absent = self._problems, self.optional and not self.timing.count
        silent = not absent and self.gap < math.inf and self.silent(now)
        if absent and ended:
            found["absent"] = "never arrived"
        if not silent and self.timing.count >= RECENT and 0 < (hz := self.hz(now)) < SLOW * self.least:
            found["slow"] = f"arrived at {hz:.1f} Hz, the task needs {self.least:g}"
        if self._gaps:
            found["gaps"] = (
                f"had {self._gaps} gap{'s' if self._gaps > 1 else ''} longer than {self.gap:.3g} s, the longest "
                f"{self._longest_gap:.2f} s, the first {self._first_gap:.1f} s after the start"
            )
        if self.timing.out_of_order:
            found["order"] = f"had {self.timing.out_of_order} stamps not newer than the one before"
        if silent:  # reported only while it lasts: if messages were merely late, none is missing
            found = {**found, "silent": f"stopped {self._since(self.heard):.1f} s after the start"}
        return {f"{self.topic} {kind}": f"{self.topic} {text}" for kind, text in found.items()}

    def summary(self) -> dict[str, Any]:
        """The topic's entry in the episode's metadata."""
        timing = self.timing
        return {
            "messages": timing.count,
            "hz": round(timing.hz, 2),
            "missing_frames": timing.missing_frames,
            "longest_gap_frames": timing.longest_gap_frames,
        }

    def _since(self, time_ns: int) -> float:
        return max(time_ns - self._began, 0) / NANOSECONDS


class Recording:
    """Writes an episode to disk: a bounded queue, and a thread that empties it into the bag."""

    def __init__(self, writer: BagWriter) -> None:
        self.writer = writer
        self.began = time.time_ns()
        self.messages = self.lost = 0
        self.failed = ""  # why writing failed
        self._given = self._taken = 0  # bytes; each modified by one thread only
        self._batch: list[Message] = []
        self._batches: queue.SimpleQueue[list[Message] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        return (time.time_ns() - self.began) / NANOSECONDS

    @property
    def waiting(self) -> int:
        """Bytes not written yet."""
        return self._given - self._taken

    def add(self, arrival: int, topic: str, data: bytes) -> None:
        """Add a message that arrived at ``arrival`` (ns)."""
        self._batch.append((arrival, topic, data))

    def pass_on(self, before: int) -> None:
        """Queue the messages that arrived before this time (ns), in order of arrival. Later ones wait, because other topics may
        still have earlier messages to be polled."""
        self._batch.sort(key=itemgetter(0))
        ready = self._batch[: bisect.bisect_left(self._batch, before, key=itemgetter(0))]
        del self._batch[: len(ready)]
        size = sum(len(data) for _, _, data in ready)
        if self.waiting + size > QUEUE_BYTES:
            self.lost += len(ready)
        elif ready:
            self._given += size
            self.messages += len(ready)
            self._batches.put(ready)

    def end(self) -> None:
        """Write what is queued, and end the thread. The caller closes the bag."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                try:
                    batch = self._batches.get(timeout=CHUNK_TIME)
                except queue.Empty:
                    self.writer.flush()
                    continue
                if batch is None:
                    return
                for arrival, topic, data in batch:
                    self.writer.write(topic, arrival, data)
                    self._taken += len(data)
        except Exception as error:  # ends the recording, not the node
            self.writer.abort()
            self.failed = str(error) or repr(error)
