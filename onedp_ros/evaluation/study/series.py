"""The rounds of one task and method, and what each is known by."""

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
    """Of a study: round ``i`` begins at ``grid.starts[i]``, whatever the method.

    Attributes:
        mode: :data:`REAL_TIME`, or ``latency_`` and what the policy takes to answer.
        task_file: name of a file in config/tasks, or path of a task file.
        contract: of the task.
        method: as in ``policy.methods``.
        model: directory of the policy.
        digests: of its files.
        grid: where rounds start, as many as there are.
        max_time: s that a round may last.
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
        """What a prediction takes in simulated time, as of :class:`~onedp_ros.tasks.timed_drive.Timing`."""
        seconds = latency_of(self.mode)
        return self.mode.removeprefix(LATENCY) if seconds is None else seconds

    @property
    def task(self) -> str:
        """Its name."""
        return self.contract.task

    @property
    def name(self) -> str:
        """For messages."""
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
    """The mode of a latency as the command line gives it. ValueError for one that there is not."""
    Timing(latency)
    return LATENCY + (latency if latency in LATENCIES else f"{float(latency):.3f}")


def latency_of(mode: str) -> float | None:
    """The latency of a mode, s; None in real time, and where it is another one for each method."""
    try:
        return float(mode.removeprefix(LATENCY))
    except ValueError:
        return None
