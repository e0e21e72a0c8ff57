"""What a recording or a training set contains: rates, gaps, synchrony of the cameras, ranges, and whether it fits its contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.contract import Contract, ContractError
from onedp_ros.data import quality
from onedp_ros.data.bags.reader import BagError, read_metadata
from onedp_ros.data.convert import READERS
from onedp_ros.data.episodes import Dropped, Episode, SourceError, read_episodes
from onedp_ros.data.formats import replay_buffer
from onedp_ros.data.formats.zarr_reader import ZarrStore
from onedp_ros.data.timing import sync_errors_ms
from onedp_ros.evaluation.bag_reading import BagReading
from onedp_ros.evaluation.figures import plot_contact_sheet, plot_recording

MOMENTS = 8  # columns of a contact sheet
RATE_TOLERANCE = 0.01  # the clocks of two machines differ: 19.99 Hz pass as 20 Hz


class InspectError(ValueError):
    """Not a training set; the message names the file and the remedy."""


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p95, top = np.percentile(values, [50, 95, 100]) if len(values) else (0.0, 0.0, 0.0)
    return {"p50": float(p50), "p95": float(p95), "max": float(top)}


def ranges(contract: Contract, state: NDArray[np.float32], action: NDArray[np.float32], ends: ArrayLike) -> dict[str, Any]:
    """Ranges of states (N, state_dim) and actions (N, action_dim) of episodes that end before the rows ``ends``; all in SI units.

    ``measured`` and ``target``: [minimum, maximum] of each position and opening. ``turn_rad``: greatest angle between a target and
    the first of its episode. ``speed_m_s``, ``turn_rad_s``: speed of the target from step to step. For a contract without exactly
    one arm, only [minimum, maximum] of every value.

    Raises:
        ContractError: an action is NaN or not a rotation.
    """

    def extent(values: NDArray[Any]) -> list[float]:
        return [float(values.min()), float(values.max())]

    try:
        arm = contract.arm
    except ContractError:
        named = {"measured": (contract.state_names, state), "target": (contract.action_names, action)}
        return {where: {n: extent(rows[:, i]) for i, n in enumerate(names)} for where, (names, rows) in named.items()}
    position, quaternion, opening = arm.decode_action(action)
    measured, _, fingers = arm.poses(state)
    ends = np.asarray(ends, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    within = np.delete(np.arange(1, len(action)), ends[:-1] - 1)  # all but the first step of each episode
    first = quaternion[np.repeat(starts, np.diff(ends, prepend=0))]

    def angle(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return 2 * np.arccos(np.clip(np.abs(np.sum(a * b, axis=-1)), 0.0, 1.0))

    return {
        "measured": {
            **{axis: extent(measured[:, i]) for i, axis in enumerate("xyz")},
            "opening": extent(np.array([arm.opening(f) for f in fingers])),
        },
        "target": {**{axis: extent(position[:, i]) for i, axis in enumerate("xyz")}, "opening": extent(opening)},
        "turn_rad": float(angle(quaternion, first).max()),
        "speed_m_s": _spread(np.linalg.norm(position[within] - position[within - 1], axis=-1) / contract.dt),
        "turn_rad_s": _spread(angle(quaternion[within], quaternion[within - 1]) / contract.dt),
    }


def inspect_bag(bag: Path, contract: Contract | None = None) -> tuple[dict[str, Any], BagReading]:
    """A report on a bag (plain data), and the reading from which :func:`draw` makes its pictures.

    Without ``contract``, the one stored in the bag is used; without any, ``fits`` is None and ``steps`` is 0.

    Raises:
        BagError: the bag cannot be read.
        ContractError: the contract stored in it is invalid.
    """
    metadata = read_metadata(bag)
    noted = None
    if "contract" in metadata:
        try:
            noted = Contract.from_dict(metadata["contract"])
        except ContractError as error:
            if contract is None:
                raise ContractError(f"the stored contract is invalid in this version: {error}; give one with --task") from error
    contract = contract or noted
    recording = BagReading(bag, contract)
    report: dict[str, Any] = {
        "bag": str(bag),
        "metadata": {key: value for key, value in metadata.items() if key != "contract"},
        "contract": contract.to_dict() if contract else None,
        "seconds": (recording.end - recording.begin) * 1e-9,
        "topics": {
            topic: {
                "type": recording.types[topic],
                "messages": timing.count,
                "hz": timing.hz,
                "period_ms": timing.period_ms,
                "jitter_ms_p95": timing.jitter_ms_p95,
                "gaps": len(timing.gaps()),
                "missing_frames": timing.missing_frames,
                "longest_gap_frames": timing.longest_gap_frames,
                "out_of_order": timing.out_of_order,
                "lag_ms": recording.lag_ms(topic),
                "images": dict(recording.images.get(topic, {})),
            }
            for topic, timing in sorted(recording.timing.items())
        },
        "sync_ms": _sync(recording, contract),
        "fits": None,
        "problems": [],
        "steps": 0,
        "pieces": 0,
        "dropped": {},
        "not_converted": "it stores no contract; give the task file with --task",
        "ranges": None,
        "warnings": [],
    }
    if contract:
        report["problems"] = _misfits(recording, contract)
        try:
            contract.require_same(noted or contract, "the task file", str(bag))
        except ContractError as error:
            report["problems"].append(str(error))
        report |= _kept(bag, contract)
        report["fits"] = not report["problems"] and report["not_converted"] is None and not report["warnings"]
    return report, recording


def _sync(recording: BagReading, contract: Contract | None) -> dict[str, dict[str, float]]:
    """For each pair of the contract's cameras (of all cameras, without one): time from a frame to the other's nearest frame, ms."""
    found = recording.cameras(contract).items()
    stamps = {name: recording.timing[topic].stamps for name, topic in found if contract is None or name in contract.cameras}
    return {
        f"{a}-{b}": _spread(np.concatenate([sync_errors_ms(stamps[a], stamps[b]), sync_errors_ms(stamps[b], stamps[a])]))
        for a, b in combinations(stamps, 2)
    }


def _misfits(recording: BagReading, contract: Contract) -> list[str]:
    """How a recording violates its contract: missing topics and low rates."""
    held = {feature.topic for feature in contract.action if feature.kind == "opening"}
    cameras = [camera.topic for camera in contract.cameras.values()]
    steady = [*cameras, *contract.state_topics, *(topic for topic in contract.action_topics if topic not in held)]
    problems = []
    for wanted in [*steady, *held]:
        topic = recording.find(wanted)
        if topic is None:
            problems.append(f"{wanted} is missing; check that its node runs and that the recorder subscribes to it")
        elif wanted in steady and (hz := recording.timing[topic].hz) < contract.control_hz * (1 - RATE_TOLERANCE):
            problems.append(f"{topic} arrived at {hz:.1f} Hz, expected at least control_hz {contract.control_hz:g}; raise its rate")
    return problems


def _kept(bag: Path, contract: Contract) -> dict[str, Any]:
    """What ``onedp convert`` would keep of a bag."""
    try:
        episodes, dropped = read_episodes(bag, contract, keep_images=False)
    except (BagError, ContractError) as error:
        return {"not_converted": str(error)}
    return _converted(episodes, contract, dropped)


def _converted(episodes: Sequence[Episode], contract: Contract, dropped: Dropped) -> dict[str, Any]:
    state, action = (np.concatenate([getattr(e, name) for e in episodes]) for name in ("state", "action"))
    ends = np.cumsum([len(e.stamps) for e in episodes])
    return {
        "steps": len(action),
        "pieces": len(episodes),
        "dropped": dict(dropped),
        "not_converted": None,
        "ranges": ranges(contract, state, action, ends),
        "warnings": [*dropped.warnings, *quality.doubts(contract, state, action, ends)],
    }


def inspect_dataset(path: Path) -> dict[str, Any]:
    """A report on a training set of ``onedp convert`` (plain data); images are not read.

    Raises:
        InspectError: it is not such a training set.
        ContractError: its contract is invalid.
    """
    try:
        store = ZarrStore(path)
        attributes = store.attributes
        contract = Contract.from_dict(attributes["contract"])
        images = {name: store[f"data/{name}"] for name in contract.cameras}
        state, action, ends = (store[name][:] for name in ("data/state", "data/action", "meta/episode_ends"))
        if (state.shape[1:], action.shape[1:], ends.shape[1:]) != ((contract.state_dim,), (contract.action_dim,), ()):
            raise ValueError(f"state {state.shape}, action {action.shape}, episode_ends {ends.shape}")
    except (KeyError, OSError, ValueError) as error:
        if isinstance(error, ContractError):
            raise
        raise InspectError(
            f"{path} is not a training set ({type(error).__name__}: {error}); make it with 'onedp convert'"
        ) from error
    lengths = np.diff(ends, prepend=0)
    rows = {"state": len(state), "action": len(action), **{name: array.shape[0] for name, array in images.items()}}
    problems = []
    if not len(ends) or np.any(lengths <= 0) or any(n != ends[-1] for n in rows.values()):
        problems.append(f"it is cut short: arrays of lengths {rows}, episodes ending at {ends[-3:].tolist()}; convert again")
    elif not np.isfinite(state).all():
        problems.append("state holds NaN or infinity; convert again")
    found = None
    if not problems:
        try:
            found = ranges(contract, state, action, ends)
        except ContractError as error:
            problems.append(str(error))
    return {
        "dataset": str(path),
        "contract": contract.to_dict(),
        "warnings": quality.doubts(contract, state, action, ends) if found else [],
        "episodes": len(ends),
        "steps": len(action),
        "seconds": len(action) * contract.dt,
        "steps_an_episode": [int(f(lengths)) for f in (np.min, np.median, np.max)] if len(ends) else [],
        "images": {name: list(array.shape) for name, array in images.items()},
        "problems": problems,
        "ranges": found,
        **{key: attributes[key] for key in ("dropped", "skipped", "unsuccessful", "gaps", "versions") if key in attributes},
    }


def inspect_set(path: Path, contract: Contract | None = None) -> dict[str, Any]:
    """A report as of :func:`inspect_dataset` on any data set that ``onedp convert`` reads; images are not read.

    Without ``contract``, the one stored in it is used.

    Raises:
        InspectError, SourceError: it cannot be read; names it and the remedy.
        ContractError: its contract is invalid.
    """
    reader = next(reader for reader in READERS if reader.recognises(path))
    if reader is replay_buffer and path.is_dir():
        try:
            return inspect_dataset(path)
        except InspectError:
            if contract is None:
                raise  # with a contract, it may be another program's replay buffer
    sources = reader.sources(path)
    noted = next((source.notes["contract"] for source in sources if "contract" in source.notes), None)
    if contract is None and noted is None:
        raise InspectError(f"{path} stores no contract; give the task file with --task")
    contract = contract or Contract.from_dict(noted)  # type: ignore[arg-type]
    episodes: list[Episode] = []
    dropped, skipped = Dropped(), {}
    for source in sources:
        try:
            found, left = source.read(contract, None)
        except (SourceError, ContractError) as error:
            skipped[source.name] = str(error)
            continue
        episodes += found
        dropped.update(left)
        dropped.warnings += left.warnings
    lengths = [len(episode.stamps) for episode in episodes]
    report: dict[str, Any] = {"warnings": [], "ranges": None, "dropped": {}, "steps": 0}
    if episodes:
        report |= _converted(episodes, contract, dropped)
    return {
        **report,
        "dataset": str(path),
        "contract": contract.to_dict(),
        "episodes": len(episodes),
        "seconds": report["steps"] * contract.dt,
        "steps_an_episode": [int(f(lengths)) for f in (np.min, np.median, np.max)] if lengths else [],
        "images": {name: [report["steps"], camera.height, camera.width, 3] for name, camera in contract.cameras.items()},
        "problems": [f"{len(skipped)} of {len(sources)} episodes cannot be used"] if skipped or not episodes else [],
        "skipped": skipped,
    }


def draw(report: Mapping[str, Any], recording: BagReading, out: Path) -> list[Path]:
    """Draw ``<bag>_images.png``, if the bag has images, and ``<bag>_timeline.png`` into the folder ``out``. Returns their paths."""
    contract = Contract.from_dict(report["contract"]) if report["contract"] else None
    name, begin = Path(report["bag"]).name, recording.begin
    title = f"{name}, {report['seconds']:.1f} s, {report['steps']} steps"
    if "task" in report["metadata"]:
        title += f", {report['metadata']['task']}"
    paths = []
    rows = {}
    for camera, topic in recording.cameras(contract).items():
        if kept := recording.frames[topic].kept:
            stamps = np.array([s for s, _ in kept])
            nearest = [int(np.abs(stamps - m).argmin()) for m in np.linspace(recording.begin, recording.end, MOMENTS)]
            rows[camera] = [((kept[i][0] - begin) * 1e-9, kept[i][1]) for i in nearest]
    if rows:
        paths.append(out / f"{name}_images.png")
        plot_contact_sheet(rows, title, paths[-1])
    curves: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for axis, what in enumerate((*(f"{a} (m)" for a in "xyz"), "opening (m)")):
        pair = (recording.position, recording.target_position) if axis < 3 else (recording.opening, recording.target_opening)
        for line, curve in zip(("measured", "target"), pair, strict=True):
            times, values = curve.since(begin)
            if len(times):
                curves.setdefault(what, {})[line] = times, values[:, axis % 3]
    streams = {}
    for topic, timing in sorted(recording.timing.items()):
        gaps = [((stamp - begin) * 1e-9, seconds, missing) for stamp, seconds, missing in timing.gaps()]
        streams[topic] = (timing.stamps - begin) * 1e-9, gaps
    paths.append(out / f"{name}_timeline.png")
    plot_recording(curves=curves, streams=streams, title=title, path=paths[-1])
    return paths


def sum_up(bags: Sequence[Mapping[str, Any]], unreadable: Mapping[str, str]) -> dict[str, Any]:
    """Totals over the reports of all bags."""
    return {
        "bags": len(bags),
        "seconds": sum(r["seconds"] for r in bags),
        "steps": sum(r["steps"] for r in bags),
        "successful": sum(r["metadata"].get("success") is True for r in bags),
        "unsuccessful": sum(r["metadata"].get("success") is False for r in bags),
        "fit": sum(r["fits"] is True for r in bags),
        "unreadable": len(unreadable),
    }
