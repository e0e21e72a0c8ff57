"""Tables 3, 4 and 5 of the paper, from the files of a study alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from onedp_ros.evaluation.study.series import REAL_TIME, latency_of

Record = Mapping[str, Any]
Grouped = dict[str, dict[str, dict[str, dict[int, Record]]]]
"""Rounds by mode, task, method and number."""


def grouped(rounds: Sequence[Record]) -> Grouped:
    """Rounds by mode, task, method and number, in the order given."""
    found: Grouped = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for record in rounds:
        found[record["mode"]][record["task"]][record["method"]][record["round"]] = record
    return found


def wilson(successes: int, rounds: int) -> tuple[float, float]:
    """95 % interval of a success rate."""
    low, high = binomtest(successes, rounds).proportion_ci(method="wilson")
    return float(low), float(high)


def difference(ours: tuple[int, int], theirs: tuple[int, int]) -> tuple[float, float, float]:
    """Difference of two success rates, each (successes, rounds), and its 95 % interval (Newcombe 1998, method 10)."""
    (a, m), (b, n) = ours, theirs
    (low, high), (other_low, other_high) = wilson(a, m), wilson(b, n)
    p, q = a / m, b / n
    return p - q, p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


def figures(rounds: Sequence[Record]) -> dict[str, Any]:
    """The values in the tables, by mode, task and method. The other methods are compared with the first one, the teacher if there
    is one."""
    return {mode: {task: _task_figures(methods) for task, methods in tasks.items()} for mode, tasks in grouped(rounds).items()}


def ordered(methods: Mapping[str, Any]) -> list[str]:
    """Names of methods, the teacher's first."""
    return sorted(methods, key=lambda name: (not name.startswith("dp_"), name))


def _task_figures(methods: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    names = ordered(methods)
    common = [i for i in methods[names[0]] if all(i in methods[n] and methods[n][i]["success"] for n in names)]
    found: dict[str, Any] = {}
    for name in names:
        records = list(methods[name].values())
        successes = sum(r["success"] for r in records)
        times = [methods[name][i]["time_s"] for i in common]
        first = found.get(names[0])
        entry: dict[str, Any] = {
            "rounds": len(records),
            "successes": successes,
            "rate": successes / len(records),
            "ci95": wilson(successes, len(records)),
            "difference": difference((successes, len(records)), (first["successes"], first["rounds"])) if first else None,
            "failures": _counted(r["failure"] for r in records if not r["success"]),
            "common_rounds": len(common),
            "common_time_s": float(np.mean(times)) if times else None,
            "time_ratio": None,
        }
        if first and times:
            entry["time_ratio"] = entry["common_time_s"] / first["common_time_s"]
        for key in ("encoding_ms_p50", "inference_ms_p50", "inference_ms_p99", "chunk_latency_ms_p50", "policy_hz", "target_hz"):
            values = [r[key] for r in records if r.get(key) is not None]
            entry[key] = float(np.median(values)) if values else None
        for key in ("holds", "time_lost_s"):
            entry[key] = sum(r[key] for r in records) if all(key in r for r in records) else None
        for key in ("jump_mm", "turn_deg"):
            entry[key] = max(r[key] for r in records) if all(key in r for r in records) else None
        entry |= {key: records[-1].get(key, "") for key in ("engine", "network", "nfe")}
        found[name] = entry
    return found


def _counted(reasons: Any) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def markdown(settings: Record, found: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The tables as a Markdown page; ``pictures``: file names of the figures."""
    machine = settings["machine"]
    lines = [
        "# Study",
        "",
        f"{machine['name']}, {machine['cores']} cores {' '.join(machine['instructions'])}; engine {settings['engine']}; "
        + ", ".join(f"{name} {version}" for name, version in settings["packages"].items() if version)
        + f"; program {settings['program']}.",
    ]
    for mode, tasks in found.items():
        if latency_of(mode) is not None:
            continue
        lines += ["", f"## {_title(mode)}"]
        lines += _table("Table 3: success, 95 % interval (Wilson)", tasks, _success)
        lines += _table("Difference to the first method, 95 % interval (Newcombe)", tasks, _difference)
        lines += _table("Table 4: mean completion time of the rounds that all methods solved", tasks, _time)
        lines += _speed(tasks)
        lines += _failures(tasks)
    lines += _latencies(found)
    for picture in pictures:
        lines += ["", f"![{picture.removesuffix('.png')}]({picture})"]
    return "\n".join(lines) + "\n"


def _title(mode: str) -> str:
    return "Real time" if mode == REAL_TIME else mode.replace("_", " ").capitalize()


def _table(title: str, tasks: Mapping[str, Any], cell: Any) -> list[str]:
    """One row per method, one column per task."""
    methods = ordered({method: None for entries in tasks.values() for method in entries})
    rows = [[method, *(cell(entries[method]) if method in entries else "" for entries in tasks.values())] for method in methods]
    rows = [row for row in rows if any(row[1:])]
    return [] if not rows else ["", f"### {title}", "", *_rows(["method", *tasks], rows)]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _success(entry: Record) -> str:
    return "{} of {}: {:.2f} ({:.2f} to {:.2f})".format(entry["successes"], entry["rounds"], entry["rate"], *entry["ci95"])


def _difference(entry: Record) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*entry["difference"]) if entry["difference"] else ""


def _time(entry: Record) -> str:
    if entry["common_time_s"] is None:
        return "no common round"
    ratio = f", {entry['time_ratio']:.2f} x" if entry["time_ratio"] else ""
    return f"{entry['common_time_s']:.2f} s{ratio} ({entry['common_rounds']} rounds)"


def _speed(tasks: Mapping[str, Any]) -> list[str]:
    head = ["task", "method", "engine", "network", "NFE", "encoding", "generation", "inference p50", "p99", "chunk's age p50"]
    rows = []
    for task, entries in tasks.items():
        for method, e in entries.items():
            generation = None
            if e["inference_ms_p50"] is not None and e["encoding_ms_p50"] is not None:
                generation = e["inference_ms_p50"] - e["encoding_ms_p50"]
            times = [e["encoding_ms_p50"], generation, e["inference_ms_p50"], e["inference_ms_p99"], e["chunk_latency_ms_p50"]]
            rates = [
                _number(e["policy_hz"]),
                _number(e["target_hz"]),
                "" if e["holds"] is None else str(e["holds"]),
                _number(e["time_lost_s"]),
                _number(e["jump_mm"]),
                _number(e["turn_deg"]),
            ]
            rows.append([task, method, e["engine"], e["network"], str(e["nfe"]), *map(_number, times), *rates])
    title = "Table 5: one prediction, ms, and the rates, Hz, medians of the rounds; largest jump and turn of a target"
    head += ["predictions", "targets", "holds", "lost by physics, s", "jump, mm", "turn, °"]
    return ["", f"### {title}", "", *_rows(head, rows)]


def _latencies(found: Mapping[str, Any]) -> list[str]:
    """Success against latency, where it is the same for all methods."""
    latencies = sorted((value, mode) for mode in found if (value := latency_of(mode)) is not None)
    lines = ["", "## Success against the latency of a prediction"] if latencies else []
    for task in sorted({task for _, mode in latencies for task in found[mode]}):
        here = [(f"{1e3 * value:.0f}", found[mode][task]) for value, mode in latencies if task in found[mode]]
        methods = ordered({method: None for _, entries in here for method in entries})
        rows = [[value, *(_success(entries[m]) if m in entries else "" for m in methods)] for value, entries in here]
        lines += ["", f"### {task}", "", *_rows(["latency, ms", *methods], rows)]
    return lines


def _failures(tasks: Mapping[str, Any]) -> list[str]:
    rows = [
        [task, method, reason, str(count)]
        for task, entries in tasks.items()
        for method, entry in entries.items()
        for reason, count in entry["failures"].items()
    ]
    return ["", "### Failures", "", *_rows(["task", "method", "why", "rounds"], rows)] if rows else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
