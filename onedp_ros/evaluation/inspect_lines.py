"""The reports of ``onedp inspect`` as lines to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _range_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{which:9}" + ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in found[which].items())
        for which in ("measured", "target")
    ]
    if "speed_m_s" in found:
        speed, turn = found["speed_m_s"], found["turn_rad_s"]
        lines.append(
            f"         turns by up to {found['turn_rad']:.2f} rad; p95 {speed['p95']:.2f}, max {speed['max']:.2f} m/s; "
            f"p95 {turn['p95']:.2f}, max {turn['max']:.2f} rad/s"
        )
    return lines


def _notes(metadata: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in metadata.items() if not isinstance(value, dict | list)) or "no notes"


def bag_lines(report: Mapping[str, Any]) -> list[str]:
    """The report on a bag, line by line."""
    rows = [
        ("topic", "type", "messages", "Hz", "period", "jitter p95", "gaps", "missing", "longest", "late", "log - stamp", "images")
    ]
    for topic, t in report["topics"].items():
        kind = t["type"].replace("/msg/", "/")
        figures = (f"{t['hz']:.1f}", f"{t['period_ms']:.1f} ms", f"{t['jitter_ms_p95']:.1f} ms")
        counts = (t["gaps"], t["missing_frames"], t["longest_gap_frames"], t["out_of_order"])
        lag = f"{t['lag_ms']['p50']:.1f} ms" if t["lag_ms"] else "-"
        rows.append((topic, kind, str(t["messages"]), *figures, *map(str, counts), lag, ", ".join(t["images"])))
    metadata = report["metadata"]
    lines = [f"{report['seconds']:.1f} s; {_notes(metadata)}"]
    lines += [f"noted: {problem}" for problem in metadata.get("problems") or []]
    if "versions" in metadata:
        lines.append("made with " + ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()))
    lines += _columns(rows)
    for pair, sync in report["sync_ms"].items():
        lines.append(
            f"{pair}: nearest frames p50 {sync['p50']:.1f}, p95 {sync['p95']:.1f}, max {sync['max']:.1f} ms apart "
            "(up to half a period is normal)"
        )
    if report["ranges"]:
        lines += _range_lines(report["ranges"])
    lines.append(f"converts to {report['steps']} steps in {report['pieces']} piece{'s' * (report['pieces'] != 1)}")
    if metadata.get("success") is False:
        lines.append("skipped by convert unless --keep-unsuccessful is given")
    lines += [f"dropped {count}: {reason}" for reason, count in sorted(report["dropped"].items())]
    if report["not_converted"]:
        lines.append(f"does not convert: {report['not_converted']}")
    lines += [f"misfit: {problem}" for problem in report["problems"]]
    lines += [f"WARNING: {warning}" for warning in report["warnings"]]
    if report["fits"]:
        lines.append("fits its contract")
    return [report["bag"], *(f"  {line}" for line in lines)]


def bags_lines(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per bag."""
    rows = [("bag", "seconds", "steps", "success", "fits", "missing", "longest", "sync p95", "remark")]
    for r in reports:
        missing = sum(r["topics"][t]["missing_frames"] for t in r["topics"] if r["topics"][t]["images"])
        longest = max((r["topics"][t]["longest_gap_frames"] for t in r["topics"] if r["topics"][t]["images"]), default=0)
        sync = max((s["p95"] for s in r["sync_ms"].values()), default=0.0)
        remarks = ["interrupted"] if r["metadata"].get("interrupted") else []
        remarks += [*r["problems"], *filter(None, [r["not_converted"]]), *(r["metadata"].get("problems") or []), *r["warnings"]]
        remark = (f"{remarks[0]}" + f" (and {len(remarks) - 1} more)" * (len(remarks) > 1)) if remarks else ""
        success, fits = ({True: "yes", False: "no", None: "-"}.get(v, "-") for v in (r["metadata"].get("success"), r["fits"]))
        counts = (str(r["steps"]), success, fits, str(missing), str(longest))
        rows.append((Path(r["bag"]).name, f"{r['seconds']:.1f}", *counts, f"{sync:.1f} ms", remark))
    return _columns(rows)


def dataset_lines(report: Mapping[str, Any]) -> list[str]:
    """The report on a training set, line by line."""
    contract = report["contract"]
    lines = [
        f"{contract['task']}: {report['episodes']} episodes, {report['steps']} steps at {contract['control_hz']:g} Hz, "
        f"{report['seconds']:.0f} s; minimum, median and maximum per episode: {report['steps_an_episode']}",
        *(f"{name}: {' x '.join(map(str, shape))} uint8" for name, shape in report["images"].items()),
    ]
    if report["ranges"]:
        lines += _range_lines(report["ranges"])
    lines.append(f"{report.get('gaps', 0)} gaps, {report.get('unsuccessful', 0)} unsuccessful left out")
    lines += [f"dropped {count}: {reason}" for reason, count in sorted(report.get("dropped", {}).items())]
    lines += [f"skipped {bag}: {reason}" for bag, reason in sorted(report.get("skipped", {}).items())]
    if "versions" in report:
        lines.append("made with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    lines += [f"problem: {problem}" for problem in report["problems"]]
    lines += [f"WARNING: {warning}" for warning in report["warnings"]]
    return [report["dataset"], *(f"  {line}" for line in lines)]
