"""The rounds of one task and method, and how they are identified."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from onedp_ros.contract import Contract
from onedp_ros.evaluation.study.starts import Grid
from onedp_ros.tasks.timed_drive import LATENCIES, Timing

REAL_TIME, LATENCY = "real_time", "latency_"


@dataclasses.dataclass(frozen=True)
class Series:
    """A study's rounds of one mode, task and method. Round ``i`` begins at ``grid.starts[i]``, whatever the method.

    Attributes:
        mode: :data:`REAL_TIME`, or ``latency_`` and the latency of a prediction.
        task_file: name of a file in config/tasks, or path of a task file.
        contract: of the task.
        method: as in ``policy.methods``.
        model: directory of the policy.
        digests: of its files.
        grid: the starts, one per round.
        max_time: time limit of a round, s.
    """

    mode: str
    task_file: str
    contract: Contract
    method: str
    model: Path
    digests: str
    grid: Grid
    max_time: float

    @property
    def latency(self) -> str | float:
        """Latency of a prediction in simulated time, for :class:`~onedp_ros.tasks.timed_drive.Timing`."""
        seconds = latency_of(self.mode)
        return self.mode.removeprefix(LATENCY) if seconds is None else seconds

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.contract.task

    @property
    def name(self) -> str:
        """Task, method and mode, for messages."""
        return " ".join([self.task, self.method] + ([] if self.mode == REAL_TIME else [self.mode.replace("_", " ")]))

    def begin_record(self, number: int) -> dict[str, Any]:
        """What is known of a round when it begins."""
        start = self.grid.starts[number]
        return {
            "mode": self.mode,
            "task": self.task,
            "method": self.method,
            "round": number,
            "cell": start.cell,
            "seed": start.seed,
            "start": dict(zip(self.grid.start_labels, start.place, strict=False)),
            "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def latency_mode(latency: str) -> str:
    """The mode for a latency from the command line. ValueError when the latency is invalid."""
    Timing(latency)
    return LATENCY + (latency if latency in LATENCIES else f"{float(latency):.3f}")


def latency_of(mode: str) -> float | None:
    """The latency of a mode, s; None in real time, and when it depends on the method."""
    try:
        return float(mode.removeprefix(LATENCY))
    except ValueError:
        return None
