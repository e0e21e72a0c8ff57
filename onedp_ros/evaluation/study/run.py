"""Runs the missing rounds of a study."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from onedp_ros.config import ConfigError
from onedp_ros.evaluation.study.folder import StudyFolder
from onedp_ros.evaluation.study.series import REAL_TIME, Series
from onedp_ros.parallel import Workers

OVERLOADED = 0.1  # s of physics lost in a round, above which it is reported
TRIES = 3  # attempts at a round whose graph fails


def run(folder: StudyFolder, plan: Sequence[Series], engine: str, jobs: int | None = None) -> None:
    """Run the rounds that are missing in ``folder``; each is written when it is over.

    Args:
        engine: see :func:`~onedp_ros.graph.processes.task_graph`.
        jobs: processes for the rounds that are not in real time; default: one per core.

    Raises:
        ConfigError: the engine is not that of the earlier rounds.
        RuntimeError: a round could not be finished in :data:`TRIES` attempts.
    """
    missing = [[i for i in range(len(s.grid.starts)) if i not in folder.done(s.mode, s.task, s.method)] for s in plan]
    progress = _Progress(sum(map(len, missing)), sum(len(s.grid.starts) for s in plan))
    with Workers(1 if all(series.mode == REAL_TIME for series in plan) else jobs) as workers:
        for series, numbers in zip(plan, missing, strict=True):
            failed = 0
            while numbers:
                try:
                    with closing(_rounds(folder, series, numbers, engine, workers)) as records:
                        for record in records:
                            _check_engine(folder, series, record["engine"])
                            folder.write(record)
                            numbers, failed = numbers[1:], 0
                            progress.over(series, record)
                except RuntimeError as error:
                    failed += 1
                    if failed == TRIES:
                        raise RuntimeError(f"{series.name}, round {numbers[0] + 1}, failed {TRIES} times: {error}") from error
                    print(f"{series.name}, round {numbers[0] + 1}, is run again: {error}", file=sys.stderr, flush=True)


def _rounds(
    folder: StudyFolder, series: Series, numbers: Sequence[int], engine: str, workers: Workers
) -> Generator[dict[str, Any], None, None]:
    """Run rounds, and yield the record of each when it is over."""
    videos = folder.file(series.mode, series.task, series.method, 0).parent
    if series.mode == REAL_TIME:
        from onedp_ros.evaluation.study.live import live_rounds

        print(f"{series.name}: starting the graph, {len(numbers)} rounds", flush=True)
        logs = folder.path / "logs" / series.task / series.method
        yield from live_rounds(series, numbers, engine=engine, logs=logs, videos=videos)
    else:
        from onedp_ros.evaluation.study.stepped import stepped_rounds

        yield from stepped_rounds(series, numbers, engine=engine, workers=workers, videos=videos)


def _check_engine(folder: StudyFolder, series: Series, engine: str) -> None:
    for earlier in folder.done(series.mode, series.task, series.method).values():
        if earlier["engine"] != engine:
            raise ConfigError(
                f"{series.name} now runs on engine {engine}, its rounds in {folder.path} ran on {earlier['engine']}, and they must "
                f"not be mixed; start again with another --out, and give --engine"
            )


class _Progress:
    """Prints the result of each round, and the estimated time left."""

    def __init__(self, missing: int, total: int) -> None:
        self._missing, self._total, self._done, self._begin = missing, total, 0, time.monotonic()
        if missing < total:
            print(f"{total - missing} of {total} rounds are already done", flush=True)

    def over(self, series: Series, record: dict[str, Any]) -> None:
        self._done += 1
        left = (time.monotonic() - self._begin) / self._done * (self._missing - self._done)
        result = f"success after {record['time_s']:.1f} s" if record["success"] else f"failed, {record['failure']}"
        rates = f", policy {record['policy_hz']:.1f} Hz, targets {record['target_hz']:.1f} Hz" if series.mode == REAL_TIME else ""
        if record.get("time_lost_s", 0.0) > OVERLOADED:
            rates += f", not quite real time: physics lost {record['time_lost_s']:.1f} s to other programs on this machine"
        number = self._total - self._missing + self._done
        print(
            f"[{number}/{self._total}] {series.name}, round {record['round'] + 1}: {result}{rates}; {_duration(left)} left",
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
