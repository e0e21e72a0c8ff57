"""Figure 7 of the paper, and success against latency, from the files of a study alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from onedp_ros.evaluation.study.series import REAL_TIME, latency_of
from onedp_ros.evaluation.study.tables import Record, grouped, ordered

FAILURE = "darkred"


def draw(settings: Record, rounds: Sequence[Record], found: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw every figure for which there are results into ``folder``. Returns the file names."""
    names = []
    for mode, tasks in ((m, t) for m, t in grouped(rounds).items() if latency_of(m) is None):
        names.append("figure7.png" if mode == REAL_TIME else f"figure7_{mode}.png")
        grids = {task: settings["tasks"][task]["grid"] for task in tasks}
        _draw_starts(tasks, grids, folder / names[-1])
    curves = {task: curve for task in settings["tasks"] if (curve := _latency_curve(found, task))}
    if curves:
        names.append("latency.png")
        _draw_curves(curves, folder / names[-1])
    return names


def _draw_starts(tasks: Mapping[str, Any], grids: Mapping[str, Record], path: Path) -> None:
    """Completion time by start: one row per task, one column per method."""
    columns = max(map(len, tasks.values()))
    width = 1.0 + 3.6 * columns
    heights = [1.2 + (2.6 if grids[task]["rows"] > 1 else 0.6) for task in tasks]
    figure, axes = plt.subplots(
        len(tasks), columns, figsize=(width, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    colours = plt.get_cmap("viridis_r").with_extremes(over=FAILURE)
    for row, (task, methods) in zip(axes, tasks.items(), strict=True):
        grid = grids[task]
        shape = (grid["rows"], grid["columns"])
        cells = {name: _cells(methods[name], shape) for name in ordered(methods)}
        times = np.concatenate([time[~failed].ravel() for time, failed, _ in cells.values()])
        times = times[np.isfinite(times)]
        low, high = (times.min(), times.max()) if len(times) else (0.0, 1.0)
        (left, right), (bottom, top) = grid["bounds"] or ((0.5, shape[1] + 0.5), (0.0, 1.0))
        x, y = np.linspace(left, right, 2 * shape[1] + 1), np.linspace(bottom, top, 2 * shape[0] + 1)
        picture = None
        for axis, (name, (time, failed, texts)) in zip(row, cells.items(), strict=False):
            values = np.ma.masked_invalid(np.where(failed, 2 * high + 1, time))
            picture = axis.pcolormesh(
                x[::2], y[::2], values, cmap=colours, vmin=low, vmax=max(high, low + 1e-3), edgecolors="white", linewidth=1
            )
            for (r, c), text in np.ndenumerate(texts):
                dark = failed[r, c] or (np.isfinite(time[r, c]) and time[r, c] > (low + high) / 2)
                axis.text(
                    x[2 * c + 1], y[2 * r + 1], text, ha="center", va="center", fontsize=8, color="white" if dark else "black"
                )
            axis.set_title(f"{task}, {name}", fontsize=10)
            axis.set_xlabel(grid["labels"][0], fontsize=9)
            if len(grid["labels"]) > 1:
                axis.set_ylabel(grid["labels"][1], fontsize=9)
            else:
                axis.set_yticks([])
            axis.tick_params(labelsize=8)
        for axis in row[len(cells) :]:
            axis.set_axis_off()
        if picture is not None:
            bar = figure.colorbar(picture, ax=list(row))
            bar.set_label("time (s)", fontsize=9)
    figure.suptitle("Completion time by start; dark red: failed", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cells(rounds: Mapping[int, Record], shape: tuple[int, int]) -> tuple[Any, Any, Any]:
    """For each cell of the grid: mean time of the successes (s), whether at least half of its rounds failed, and its text."""
    time, failed = np.full(shape, np.nan), np.zeros(shape, bool)
    texts = np.full(shape, "", dtype=object)
    for cell in {r["cell"] for r in rounds.values()}:
        here = [r for r in rounds.values() if r["cell"] == cell]
        successes = [r["time_s"] for r in here if r["success"]]
        at = divmod(cell, shape[1])
        time[at] = np.mean(successes) if successes else np.nan
        failed[at] = 2 * len(successes) <= len(here)
        texts[at] = f"{time[at]:.1f}" if successes else "failed"
        if len(here) > 1:
            texts[at] += f"\n{len(successes)}/{len(here)}"
    return time, failed, texts


def _latency_curve(found: Mapping[str, Any], task: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """By method, (latency ms, success rate, low, high) of a task; empty with fewer than two latencies."""
    curve: dict[str, list[tuple[float, float, float, float]]] = {}
    latencies = sorted((value, mode) for mode in found if (value := latency_of(mode)) is not None and task in found[mode])
    for value, mode in latencies if len(latencies) > 1 else []:
        for method, entry in found[mode][task].items():
            curve.setdefault(method, []).append((1e3 * value, entry["rate"], *entry["ci95"]))
    return curve


def _draw_curves(curves: Mapping[str, Mapping[str, Sequence[tuple[float, ...]]]], path: Path) -> None:
    """Success against latency, one panel per task."""
    figure, axes = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 4), squeeze=False, layout="constrained")
    for axis, (task, methods) in zip(axes[0], curves.items(), strict=True):
        for i, name in enumerate(ordered(methods)):
            latency, rate, low, high = np.array(methods[name]).T
            beside = 0.01 * i * max(latency)  # so that equal points do not hide each other
            axis.errorbar(latency + beside, rate, yerr=[rate - low, high - rate], marker="o", markersize=4, capsize=3, label=name)
        axis.set(title=task, xlabel="latency of a prediction (ms)", ylabel="success (95 % interval)", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
