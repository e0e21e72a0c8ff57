"""Plots and videos of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray


def plot_starts(summary: dict[str, Any], path: Path) -> bool:
    """Plot where the episodes of ``onedp evaluate`` started, coloured by success: the first two values of a start as the position,
    a third, if any, as the direction of a stroke (rad). Returns False, without a plot, when a start has fewer than two values."""
    labels = summary["start_labels"]
    if len(labels) < 2:
        return False
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    for success, colour, name in ((True, "tab:green", "success"), (False, "tab:red", "failure")):
        starts = np.array([e["start"] for e in summary["results"] if e["success"] == success]).reshape(-1, len(labels))
        if len(labels) > 2:
            stroke = 0.006 * np.stack([-np.sin(starts[:, 2]), np.cos(starts[:, 2])], axis=-1)
            axes.plot(*np.stack([starts[:, :2] - stroke, starts[:, :2] + stroke]).transpose(2, 0, 1), color=colour, linewidth=2)
        else:
            axes.plot(*starts.T, ".", color=colour)
        axes.plot([], [], color=colour, label=f"{name} ({len(starts)})")
    axes.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
    axes.set_title(f"{summary['task']}, {summary['method']}: {summary['success_rate']:.0%} of {summary['episodes']}")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def write_video(frames: Mapping[str, Sequence[tuple[int, NDArray[np.uint8]]]], path: Path, fps: int = 30, zoom: int = 3) -> None:
    """Write a video of the cameras side by side. ``frames``: by camera, (stamp ns, (H, W, 3) uint8 RGB) in order; shows the newest
    of each."""
    stamps = {name: np.array([s for s, _ in items]) for name, items in frames.items()}
    begin, end = max(s[0] for s in stamps.values()), min(s[-1] for s in stamps.values())
    with imageio.get_writer(path, fps=fps, codec="libx264", quality=8, macro_block_size=8) as writer:
        for now in np.arange(begin, end, 1e9 / fps):
            row = [frames[n][int(np.searchsorted(stamps[n], now, side="right")) - 1][1] for n in frames]
            writer.append_data(  # type: ignore[attr-defined]
                np.concatenate(row, axis=1).repeat(zoom, 0).repeat(zoom, 1)
            )


def plot_timeline(
    *,
    measured: Sequence[tuple[int, NDArray[np.float64]]],
    target: Sequence[tuple[int, NDArray[np.float64]]],
    opening: Sequence[tuple[int, float]],
    opening_target: Sequence[tuple[int, float]],
    chunks: Sequence[tuple[int, int]],
    summary: Mapping[str, Any],
    path: Path,
) -> None:
    """Plot an episode over time: tool position and opening, commanded and measured, and each chunk's age on arrival and period.

    Samples are (stamp ns, value), positions (3,) m, openings m; chunks are (arrival ns, stamp ns).
    """
    begin = measured[0][0]

    def times(samples: Sequence[tuple[int, Any]]) -> NDArray[np.float64]:
        return (np.array([s for s, *_ in samples], dtype=np.int64) - begin) * 1e-9

    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    for samples, style, name in ((measured, "-", "measured"), (target, "--", "target")):
        values = np.array([v for _, v in samples])
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            top.plot(times(samples), values[:, axis], style, color=colour, linewidth=1.2, label=f"{'xyz'[axis]} {name}")
    top.set(ylabel="tool position (m)", title="{method}, {network} network, {engine}".format(**summary))
    top.legend(ncol=2, fontsize=8, loc="upper right")
    middle.plot(times(opening), 1e3 * np.array([v for _, v in opening]), color="tab:purple", label="measured")
    middle.plot(times(opening_target), 1e3 * np.array([v for _, v in opening_target]), "--", color="tab:orange", label="target")
    middle.set(ylabel="opening (mm)")
    middle.legend(fontsize=8)
    arrival = np.array([at for at, _ in chunks], dtype=np.int64)
    age = (arrival - np.array([s for _, s in chunks], dtype=np.int64)) * 1e-6
    bottom.plot(times(chunks), age, ".", markersize=3, label="age of the newest camera frame when its chunk arrives")
    bottom.plot(times(chunks)[1:], np.diff(arrival) * 1e-6, ".", markersize=3, label="period of chunks")
    bottom.axhline(1e3 / 60, color="grey", linewidth=0.8, label="60 Hz")
    latency = summary["latency_ms"]
    bottom.set(ylabel="ms", xlabel="time (s)", ylim=(0, max(60.0, float(np.percentile(age, 99.5)))))
    bottom.set_title(
        f"policy {summary['policy_hz']:.1f} Hz, camera to target p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms",
        fontsize=10,
    )
    bottom.legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_bench(result: Mapping[str, Any], path: Path) -> None:
    """Plot the median time of a prediction by network, method and engine; whiskers to the 95th percentile."""
    rows = sorted(result["rows"], key=lambda r: (r["network"], r["p50_ms"]), reverse=True)
    colours = {engine: f"C{i}" for i, engine in enumerate(sorted({r["engine"] for r in rows}))}
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.5), layout="constrained")
    for y, r in enumerate(rows):
        axes.barh(y, r["p50_ms"], xerr=[[0], [max(r["p95_ms"] - r["p50_ms"], 0)]], color=colours[r["engine"]], alpha=0.85)
        axes.text(r["p95_ms"] * 1.1, y, f"{r['p50_ms']:.1f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{r['network']}, {r['method']}, {r['engine']}" for r in rows], fontsize=8)
    axes.axvline(1e3 / 60, color="grey", linestyle="--", linewidth=1)
    axes.text(1e3 / 60, len(rows) - 0.4, " 60 Hz", fontsize=8)
    axes.set(xscale="log", xlabel="one prediction (ms)", xlim=(None, 3 * max(r["p95_ms"] for r in rows)))
    axes.set_title(f"{result['processor']['name']}, {result['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_servo(result: Mapping[str, Any], path: Path) -> None:
    """Plot ``onedp bench --servo``: histograms of the work per cycle and of the time between cycles."""
    rows = result["rows"]
    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 1.6 * len(rows) + 1), sharex="col", layout="constrained")
    for row, (left, right) in zip(rows, axes, strict=True):
        for axis, name, width, unit in ((left, "work_histogram", 1e-3, 0.01), (right, "gap_histogram", 0.01, 0.1)):
            counts = np.array(row[name], dtype=np.int64)
            merged = counts[: len(counts) // round(unit / width) * round(unit / width)].reshape(-1, round(unit / width)).sum(axis=1)
            axis.bar((np.arange(len(merged)) + 0.5) * unit, merged, width=unit, color="tab:blue")
            axis.set_yscale("log")
            axis.set_ylim(0.5, None)
        left.set_ylabel(f"{row['mode']}\n{row['load']}", fontsize=8)
        left.axvline(row["work_us"]["p99"] / 1000, color="tab:red", linewidth=1)
        right.axvline(1.0, color="tab:green", linewidth=1)
    axes[0][0].set_xlim(0, 2)
    axes[0][1].set_xlim(0, 25)
    axes[0][0].set_title("work in a cycle (red: p99)")
    axes[0][1].set_title("time between cycles (green: 1 ms)")
    axes[-1][0].set_xlabel("ms")
    axes[-1][1].set_xlabel("ms")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_recorder(result: Mapping[str, Any], path: Path) -> None:
    """Plot ``onedp bench --recorder``: the fraction of a core that the recorder used, and the data waiting for the disk."""
    at, used, waiting = np.array(result["looks"]).T
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    top.step(at[1:], 100 * np.diff(used) / np.diff(at), color="tab:blue")
    top.set(ylabel="% of a core", ylim=(0, None))
    top.set_title(f"{sum(t['recorded'] for t in result['topics'].values())} messages recorded, {result['lost']} lost", fontsize=10)
    bottom.step(at, waiting, color="tab:orange")
    bottom.set(ylabel="MB waiting", xlabel="time (s)", ylim=(0, None))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_contact_sheet(frames: Mapping[str, Sequence[tuple[float, NDArray[np.uint8]]]], title: str, path: Path) -> None:
    """Plot moments of a recording side by side, one row per camera. ``frames``: by camera, (time s, (H, W, 3) uint8 RGB), the same
    number for each."""
    columns = len(next(iter(frames.values())))
    height = sum(max(image.shape[0] / image.shape[1] for _, image in row) for row in frames.values())
    figure, grid = plt.subplots(
        len(frames), columns, figsize=(2 * columns, 2 * height + 0.3 * len(frames) + 0.4), squeeze=False, layout="constrained"
    )
    for (camera, row), axes in zip(frames.items(), grid, strict=True):
        for (at, image), axis in zip(row, axes, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], frame_on=False)
            axis.set_xlabel(f"{at:.2f} s", fontsize=9)
        axes[0].set_ylabel(camera, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_recording(
    *,
    curves: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]],
    streams: Mapping[str, tuple[NDArray[np.float64], Sequence[tuple[float, float, int]]]],
    title: str,
    path: Path,
) -> None:
    """Plot a recording over time: what was measured and commanded, and below, each topic's messages, with gaps in red.

    ``curves``: by axis label, the lines "measured" and "target": times (N,) s, values (N,). ``streams``: by topic, the times (N,) s
    of its messages and its gaps (time s, seconds, frames missing).
    """
    heights = [1.7] * len(curves) + [0.4 * len(streams) + 0.3]
    figure, axes = plt.subplots(
        len(heights), figsize=(11, sum(heights) + 1), height_ratios=heights, sharex=True, squeeze=False, layout="constrained"
    )
    styles: dict[str, dict[str, Any]] = {
        "measured": {"color": "tab:blue"},
        "target": {"color": "tab:orange", "linestyle": "--", "drawstyle": "steps-post"},
    }
    for axis, (label, lines) in zip(axes[:, 0], curves.items(), strict=False):
        for name, (times, values) in lines.items():
            axis.plot(times, values, linewidth=1.2, **styles[name])
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.legend(
        handles=[plt.Line2D([], [], label=name, **style) for name, style in styles.items()], fontsize=8, loc="upper right", ncol=2
    )
    strip = axes[-1, 0]
    for row, (times, gaps) in enumerate(streams.values()):
        strip.plot(times, np.full(len(times), row), "|", color="tab:blue", markersize=9, markeredgewidth=0.5)
        # At least a pixel or two wide, so that gaps show in a long recording.
        width = 2e-3 * max(1.0, max(float(t[-1]) for t, _ in streams.values()))
        strip.broken_barh([(at, max(seconds, width)) for at, seconds, _ in gaps], (row - 0.35, 0.7), color="tab:red")
    missing = [sum(count for *_, count in gaps) for _, gaps in streams.values()]
    labels = [f"{topic}\n{count} missing" if count else topic for topic, count in zip(streams, missing, strict=True)]
    strip.set_yticks(range(len(streams)), labels, fontsize=8)
    strip.set(xlabel="time (s)", ylim=(len(streams) - 0.5, -0.5))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
