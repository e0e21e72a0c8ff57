"""``onedp bench --smooth``: compares the hand-overs between chunks while a policy drives the twin in continuous time.

Measured is the 60 Hz stream of targets: a compliant arm hides its jitter, a stiff one does not. Delays are added to every
prediction, so that chunks arrive later and less often.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

from onedp_ros.control.handover import HANDOVERS
from onedp_ros.evaluation.rollout import loaded
from onedp_ros.evaluation.smoothness import departures
from onedp_ros.files import write_atomically
from onedp_ros.parallel import Workers, kept
from onedp_ros.policy.checkpoint import load_sampler
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.timed_drive import TARGET_HZ, Timing, drive_timed

DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3)  # s
LAGS = np.arange(-0.1, 0.301, 0.005)  # s, candidates for the lag

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def shaking(positions: Array, quaternions: Sequence[Array], followed: Flags) -> dict[str, float]:
    """Smoothness of a stream of targets at :data:`~onedp_ros.tasks.timed_drive.TARGET_HZ`, positions (N, 3) m and quaternions (N,
    4), while chunks are ``followed`` (N,): ``jerk``, the RMS of the third difference (m/s³); ``jump`` (m) and ``turn`` (rad), the
    largest deviation of a target from the linear extrapolation of the two before it."""
    third = followed[3:] & followed[2:-1] & followed[1:-2] & followed[:-3]
    jerk = np.linalg.norm(np.diff(positions, n=3, axis=0), axis=1)[third] * TARGET_HZ**3
    second = followed[2:] & followed[1:-1] & followed[:-2]
    jumps, turns = departures(np.arange(len(positions)) / TARGET_HZ, positions, quaternions)
    return {
        "jerk": float(np.sqrt(np.mean(jerk**2))) if len(jerk) else 0.0,
        "jump": float(jumps[second].max(initial=0.0)),
        "turn": float(turns[second].max(initial=0.0)),
    }


def lag(positions: Array, newest: Array, followed: Flags) -> float:
    """How far (s) targets (N, 3) lag behind the plan of the newest chunks alone, (N, 3): the best-fitting time shift."""
    times = np.arange(len(positions)) / TARGET_HZ
    inside = followed & (times > LAGS[-1]) & (times < times[-1] + LAGS[0])
    if not inside.any():
        return 0.0
    shifted = [np.stack([np.interp(times - d, times, axis) for axis in newest.T], axis=1) for d in LAGS]
    return float(LAGS[np.argmin([np.mean((positions - s)[inside] ** 2) for s in shifted])])


def run_episode(loading: tuple[Any, ...], seed: int, timing: Timing, delay: float, max_time: float) -> dict[str, Any]:
    """Run one episode. ``loading``: arguments of :func:`onedp_ros.evaluation.rollout.loaded`; ``delay`` (s) is added to each
    prediction."""
    predictor, cell = kept(loaded, *loading)
    predictor.reset(seed)
    cell.reset(np_random(seed)[0])
    delayed = Timing(timing.seconds(predictor.nfe, math.nan) + delay, timing.lead, timing.handover)
    driving = drive_timed(predictor, cell, delayed)
    steps = []
    while not (success := cell.success()) and cell.time < max_time:
        steps.append(next(driving))
    positions, newest = (np.stack([t.position for t in ts]) for ts in ([s.target for s in steps], [s.newest for s in steps]))
    followed = np.array([s.followed for s in steps])
    figures = shaking(positions, [s.target.quaternion for s in steps], followed)
    return {"success": success, "time": cell.time, "lag": lag(positions, newest, followed), **figures}


def run(
    model: Path,
    *,
    method: str | None = None,
    engine: str = "auto",
    episodes: int = 20,
    latency: str | float = "v100",
    delays: Sequence[float] = DELAYS,
    jobs: int | None = None,
    partial: Path | None = None,
) -> dict[str, Any]:
    """Measure one row for each hand-over and delay, on the policy's own task.

    Args:
        model: bundle.
        method, engine: see :func:`onedp_ros.policy.predictor.load_predictor`.
        episodes: per row; every row has the same seeds, none of which is an evaluation seed.
        latency: of a prediction before the delay, see :class:`~onedp_ros.tasks.timed_drive.Timing`; not ``measured``, which would
            differ from row to row.
        delays: s, added to the latency.
        jobs: see :class:`onedp_ros.parallel.Workers`.
        partial: file that keeps the results of an interrupted run; the next run with the same settings resumes from it.

    Raises:
        ValueError: an invalid latency or delay, or a task that is not in the twin's cell.
        WorkerError, UnknownNameError, CheckpointError: see :func:`onedp_ros.evaluation.rollout.evaluate`.
    """
    if latency == "measured":
        raise ValueError("latency is 'measured', expected v100 or seconds: it would differ from row to row")
    model = model.absolute()
    sampler, digests = load_sampler(model, method)
    contract = sampler.contract
    task = TASKS.get(contract.task)
    if task.scene is None:
        raise ValueError(f"task {contract.task} is simulated in lockstep; hand-overs are compared in the twin's cell only")
    rows = [(h, d, Timing(latency, handover=h)) for h in HANDOVERS for d in delays]
    for _, delay, timing in rows:
        Timing(timing.seconds(1, 0.0) + delay)  # report an invalid latency now, not after hours
    first = task.evaluation_seeds // 2
    settings = [digests, method, engine, contract.to_dict(), latency, task.max_time]
    done = _Lines(partial, json.dumps(settings, sort_keys=True))
    loading: tuple[Any, ...] = (model, digests, method, engine, {}, contract)
    keys = [(h, d, s) for h, d, _ in rows for s in range(first, first + episodes)]
    new = [(h, d, s) for h, d, s in keys if f"{h} {d} {s}" not in done.results]
    calls = [(loading, s, Timing(latency, handover=h), d, task.max_time) for h, d, s in new]
    with Workers(jobs) as workers, tqdm(total=len(keys), initial=len(keys) - len(new), unit="episode") as bar:
        names = [f"the episode of seed {s}, hand-over {h}, delay {d} s" for h, d, s in new]
        for (h, d, s), result in zip(new, workers.run(run_episode, calls, names), strict=True):
            done.add(f"{h} {d} {s}", result)
            bar.update()
    found = [_row(h, d, [done.results[f"{h} {d} {s}"] for s in range(first, first + episodes)]) for h, d, _ in rows]
    done.remove()
    return {
        "task": contract.task,
        "model": str(model),
        "method": sampler.method.name,
        "latency": latency,
        "episodes": episodes,
        "seed": first,
        "rows": found,
    }


def _row(handover: str, delay: float, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    times = [r["time"] for r in results if r["success"]]
    count = len(times)
    return {
        "handover": handover,
        "delay_s": delay,
        "success_rate": count / len(results),
        "ci95": tuple(map(float, binomtest(count, len(results)).proportion_ci(method="wilson"))),
        "mean_time_s": float(np.mean(times)) if times else None,
        "jerk": float(np.sqrt(np.mean([r["jerk"] ** 2 for r in results]))),
        "jump_mm": 1e3 * max(r["jump"] for r in results),
        "turn_deg": math.degrees(max(r["turn"] for r in results)),
        "lag_ms": 1e3 * float(np.median([r["lag"] for r in results])),
    }


class _Lines:
    """``results`` by key, mirrored to a file of JSON lines whose first line is the settings. Without a path, not saved."""

    def __init__(self, path: Path | None, settings: str) -> None:
        self._path = path
        self.results: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        earlier = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in earlier[1:] if line.endswith("\n")] if earlier[:1] == [settings + "\n"] else []
        for line in whole:
            self.results |= json.loads(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join([settings + "\n", *whole]).encode())

    def add(self, key: str, result: dict[str, Any]) -> None:
        self.results[key] = result
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({key: result}) + "\n")

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink()


def table(result: dict[str, Any]) -> str:
    """The rows as lines to print."""
    lines = [
        "{task}, {method}, latency {latency}, {episodes} episodes per row, seeds from {seed}".format(**result),
        "",
        f"{'hand-over':10} {'delay ms':>8} {'success':>7} {'95 %':>12} {'time s':>7} {'jerk m/s³':>9} {'jump mm':>8} {'turn °':>7} "
        f"{'lag ms':>7}",
    ]
    for r in result["rows"]:
        low, high = r["ci95"]
        mean = "-" if r["mean_time_s"] is None else f"{r['mean_time_s']:.2f}"
        lines.append(
            f"{r['handover']:10} {1e3 * r['delay_s']:8.0f} {r['success_rate']:7.2f} {f'{low:.2f}-{high:.2f}':>12} {mean:>7} "
            f"{r['jerk']:9.0f} {r['jump_mm']:8.2f} {r['turn_deg']:7.2f} {r['lag_ms']:7.0f}"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot success over jerk, one point per row, labelled with the delay in ms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for colour, handover in enumerate(dict.fromkeys(r["handover"] for r in result["rows"])):
        rows = [r for r in result["rows"] if r["handover"] == handover]
        success = np.array([r["success_rate"] for r in rows])
        low, high = np.array([r["ci95"] for r in rows]).T
        jerk = [r["jerk"] for r in rows]
        bars = np.maximum([success - low, high - success], 0.0)
        axes.errorbar(jerk, success, yerr=bars, fmt="o-", color=f"C{colour}", capsize=2, linewidth=1, label=handover)
        for x, y, r in zip(jerk, success, rows, strict=True):
            axes.annotate(f"{1e3 * r['delay_s']:.0f} ms", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="RMS jerk of the 60 Hz targets (m/s³)", ylabel="success", ylim=(-0.02, 1.05))
    axes.set_title("{task}, {method}, {episodes} episodes per point".format(**result), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
