"""Pictures of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def plot_starts(summary: dict[str, Any], path: Path) -> None:
    """Where the carton stood at the start of every episode, its yaw as a stroke, successes and failures apart."""
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    for success, colour, name in ((True, "tab:green", "success"), (False, "tab:red", "failure")):
        starts = np.array([e["start"] for e in summary["results"] if e["success"] == success]).reshape(-1, 3)
        stroke = 0.006 * np.stack([-np.sin(starts[:, 2]), np.cos(starts[:, 2])], axis=-1)
        axes.plot(*np.stack([starts[:, :2] - stroke, starts[:, :2] + stroke]).transpose(2, 0, 1), color=colour, linewidth=2)
        axes.plot([], [], color=colour, label=f"{name} ({len(starts)})")
    axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    axes.set_title(f"{summary['task']}, {summary['method']}: {summary['success_rate']:.0%} of {summary['episodes']}")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
