"""Compares a replay with its recording: statistics, table, plot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import (
    NANOSECONDS,
    Contract,
)
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.data.bags.reader import BagError
from onedp_ros.data.targets import Targets
from onedp_ros.evaluation.replayed import CHUNK_TOPIC, Recorded, Replayed, SetDigests, stamps_of_windows
from onedp_ros.geometry import rotation_angle

MAX_LISTED = 20  # different sets that are listed
QUANTITIES = ("position_mm", "rotation_deg", "gripper_mm")


def differences(chunk: ActionChunk, other: ActionChunk) -> NDArray[np.float64]:
    """Differences of each action in position (mm), rotation (deg) and gripper opening (mm), (horizon, 3)."""
    position = np.linalg.norm(chunk.positions - other.positions, axis=-1)
    rotation = [rotation_angle(a, b) for a, b in zip(chunk.quaternions, other.quaternions, strict=True)]
    return np.stack([1e3 * position, np.rad2deg(rotation), 1e3 * np.abs(chunk.openings - other.openings)], axis=-1)


def from_commands(contract: Contract, chunk: ActionChunk, targets: Targets) -> NDArray[np.float64]:
    """:func:`differences` between the actions to execute and the commands at their times, (up to n_action_steps, 3)."""
    first = contract.n_obs_steps - 1
    which = [i for i in range(first, first + contract.n_action_steps) if targets.hold(int(chunk.stamps[i]))]
    if not which:
        return np.zeros((0, 3))
    stamps = chunk.stamps[which]
    commanded = ActionChunk(chunk.stamp, stamps, *contract.arm.decode_action(np.stack([targets.action(int(s)) for s in stamps])))
    predicted = ActionChunk(chunk.stamp, stamps, chunk.positions[which], chunk.quaternions[which], chunk.openings[which])
    return differences(predicted, commanded)


def equal(chunk: ActionChunk, other: ActionChunk) -> bool:
    """Whether every number of two chunks is the same."""
    names = ("stamps", "positions", "quaternions", "openings")
    return all(np.array_equal(getattr(chunk, name), getattr(other, name)) for name in names)


def compare_sets(recorded: Mapping[int, SetDigests], replayed: Mapping[int, SetDigests]) -> tuple[dict[str, Any], set[int]]:
    """How many of the recorded sets the replay reproduced byte by byte, within the time that both cover.

    Also returns the stamps of the sets that are missing in the replay, or pair the same frames differently: these say nothing
    about the code, since live, frames arrived in another order or were lost.
    """
    if not recorded or not replayed:
        none = dict.fromkeys(("compared", "equal", "different", "paired_otherwise", "missing", "only_replayed"), 0)
        return {"recorded": len(recorded), **none}, set()
    begin, end = max(min(recorded), min(replayed)), min(max(recorded), max(replayed))
    inside = sorted(s for s in recorded if begin <= s <= end)
    known = {(name, digest) for parts in replayed.values() for name, digest in parts.items() if name != "state"}
    wrong = {s: {n: d for n, d in recorded[s].items() if replayed[s][n] != d} for s in inside if s in replayed}
    otherwise = {s for s, parts in wrong.items() if parts and parts.items() <= known}
    missing = {s for s in inside if s not in replayed}
    different = {s: list(parts) for s, parts in wrong.items() if parts and s not in otherwise}
    return {
        "recorded": len(recorded),
        "compared": len(inside),
        "equal": sum(not parts for parts in wrong.values()),
        "different": len(different),
        "paired_otherwise": len(otherwise),
        "missing": len(missing),
        "only_replayed": sum(begin <= s <= end for s in replayed.keys() - recorded.keys()),
        "which": [{"stamp": s, "different": names} for s, names in different.items()][:MAX_LISTED],
    }, otherwise | missing


def compare_chunks(
    recording: Recorded, replayed: Replayed, apart: Collection[int]
) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """Compare recorded chunks with the replay's for the same windows, except those with sets in ``apart``. Also returns the
    differences by stamp."""
    recorded, contract = recording.outputs.chunks, recording.outputs.contract
    begin = min(replayed.sets, default=0)
    stamps = [s for s in sorted(recording.outputs.sets or replayed.sets) if s >= begin]
    live = stamps_of_windows(contract, stamps, recorded, whole=False)
    same = [s for s, window in live.items() if replayed.windows.get(s) == window and not set(window) & set(apart)]
    found = {s: differences(replayed.chunks[s], recorded[s]) for s in same}
    return {
        "against": "recorded chunks",
        "recorded": len(recorded),
        "history_before_recording": len(recorded) - len(live),
        "other_window": len(live) - len(same),
        "compared": len(same),
        "equal": sum(equal(replayed.chunks[s], recorded[s]) for s in same),
        **statistics(found),
    }, found


def compare_commands(recording: Recorded, replayed: Replayed) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """Compare chunks with what was commanded. Also returns the differences by stamp."""
    contract = recording.outputs.contract
    found = {s: from_commands(contract, chunk, recording.targets) for s, chunk in sorted(replayed.chunks.items())}
    found = {s: rows for s, rows in found.items() if len(rows)}
    summary = {"against": "commands", "predictions": len(replayed.chunks), "compared": len(found)}
    return {**summary, **statistics(found)}, found


def statistics(found: Mapping[int, NDArray[np.float64]]) -> dict[str, Any]:
    """Percentiles of each quantity over all actions, and the stamp of the chunk with the greatest difference in position."""
    if not found:
        return {}
    rows = np.concatenate(list(found.values()))
    p50, p95 = np.percentile(rows, [50, 95], axis=0)
    values = zip(QUANTITIES, p50.tolist(), p95.tolist(), rows.max(axis=0).tolist(), strict=True)
    worst = max(found, key=lambda s: float(found[s][:, 0].max()))
    return {**{name: {"p50": a, "p95": b, "max": c} for name, a, b, c in values}, "worst_stamp": worst}


def compare(
    recording: Recorded, replayed: Replayed, reference: Mapping[int, SetDigests]
) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """The full report, with sets compared to those of ``reference``, and the differences of actions by stamp.

    Raises:
        BagError: the recording has neither chunks nor commands.
    """
    sets, apart = compare_sets(reference, replayed.sets)
    if recording.outputs.chunks:
        actions, found = compare_chunks(recording, replayed, apart)
    elif recording.targets.stamps:
        actions, found = compare_commands(recording, replayed)
    elif reference:  # with an arm that was guided by hand, for example
        actions, found = {"against": "nothing", "predictions": len(replayed.chunks), "compared": 0}, {}
    else:
        raise BagError(
            f"the recording has neither {CHUNK_TOPIC} nor {' and '.join(recording.outputs.contract.action_topics)}: there is "
            f"nothing to compare actions with; record them, too"
        )
    counts = {name: count for name, count in replayed.counts.items() if count}
    return {"sets": len(replayed.sets), "observations": sets, "actions": actions, "counts": counts}, found


def table(report: Mapping[str, Any]) -> str:
    """The report as lines to print."""
    sets, actions = report["observations"], report["actions"]
    rows = {"policy": "{method} of {model}, {engine}, seed {seed}".format(**report["policy"])}
    if not sets["recorded"]:
        rows["observations"] = f"{report['sets']}; the recording has none to compare with"
    elif not sets["compared"]:
        rows["observations"] = f"{report['sets']} made again, of other times than the {sets['recorded']} recorded"
    else:
        rows["observations"] = (
            f"{sets['equal']} of {sets['compared']} equal byte by byte, {sets['different']} differ; frames in another order: "
            f"{sets['paired_otherwise']} paired otherwise, {sets['missing']} missing, {sets['only_replayed']} only here"
        )
        if sets["which"]:
            rows["differ"] = "; ".join(f"{w['stamp']}: {', '.join(w['different'])}" for w in sets["which"][:4])
    if "recorded" in actions:
        rows["chunks"] = (
            f"{actions['equal']} of {actions['compared']} equal, of {actions['recorded']} recorded; history before the recording: "
            f"{actions['history_before_recording']}, another window: {actions['other_window']}"
        )
    else:
        rows["predictions"] = f"{actions['compared']} of {actions['predictions']} compared with the commands"
    for name in QUANTITIES:
        if name in actions:
            rows[name.replace("_", ", ")] = "p50 {p50:.4g}  p95 {p95:.4g}  max {max:.4g}".format(**actions[name])
    rows |= {f"{count} x": name for name, count in report["counts"].items()}
    return "\n".join(f"{name:15} {value}" for name, value in rows.items())


def plot(
    recording: Recorded, replayed: Replayed, found: Mapping[int, NDArray[np.float64]], report: Mapping[str, Any], path: Path
) -> None:
    """Plot each chunk's current action over time, replayed and recorded, and how far chunks differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    now = recording.outputs.contract.n_obs_steps - 1
    begin = min(replayed.chunks, default=0)

    def seconds(stamps: Iterable[int]) -> NDArray[np.float64]:
        return (np.array(list(stamps), dtype=np.int64) - begin) / NANOSECONDS

    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    lines = {"replayed": (replayed.chunks, "-")}
    if recording.outputs.chunks:
        lines["recorded"] = (recording.outputs.chunks, "--")
    for name, (chunks, style) in lines.items():
        ordered = [chunks[s] for s in sorted(chunks)]
        times = seconds(c.stamp for c in ordered)
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            top.plot(
                times, [c.positions[now, axis] for c in ordered], style, color=colour, linewidth=1, label=f"{'xyz'[axis]} {name}"
            )
        middle.plot(times, [1e3 * c.openings[now] for c in ordered], style, color="tab:purple", linewidth=1, label=name)
    if not recording.outputs.chunks:
        arm, targets = recording.outputs.contract.arm, recording.targets
        pose_stamps, poses = targets.commands(arm.target_topic)
        opening_stamps, opened = targets.commands(arm.gripper_topic)
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            values = [p[axis] for p, _ in poses]
            top.plot(seconds(pose_stamps), values, "--", color=colour, linewidth=1, label=f"{'xyz'[axis]} commanded")
        openings = [1e3 * float(o[0]) for o in opened]
        middle.step(seconds(opening_stamps), openings, "--", where="post", color="tab:orange", linewidth=1, label="commanded")
    for column, (name, colour) in enumerate(zip(QUANTITIES, ("tab:blue", "tab:orange", "tab:purple"), strict=True)):
        values = [rows[:, column].max() for rows in found.values()]
        bottom.plot(seconds(found), values, ".", color=colour, markersize=3, label=name.replace("_", ", "))
    top.set(
        ylabel="position (m)", title="{method} on {engine}, ".format(**report["policy"]) + f"against {report['actions']['against']}"
    )
    middle.set(ylabel="opening (mm)")
    bottom.set(ylabel="greatest difference in a chunk", xlabel="time (s)")
    for axes in (top, middle, bottom):
        axes.legend(fontsize=8, loc="upper right", ncol=2)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
