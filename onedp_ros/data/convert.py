"""Recordings -> training set: ``onedp convert``.

Bags, and data sets of other programs, are read as episodes. Each is encoded into its own folder in ``<out>.partial``, and at the
end all of them are assembled into ``<out>``: an interrupted conversion can be resumed, and ``<out>`` is always complete.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.contract import NANOSECONDS, Contract, ContractError
from onedp_ros.data import quality
from onedp_ros.data.bags.reader import KINDS, PARTIAL, BagError, find_bags, read_metadata, sync, versions
from onedp_ros.data.episodes import Piece, Source, SourceError, read_episodes
from onedp_ros.data.formats import lerobot, replay_buffer, robomimic
from onedp_ros.files import write_atomically
from onedp_ros.parallel import WorkerError, Workers

WRITERS: dict[str, Any] = {"zarr": replay_buffer, "lerobot": lerobot}  # each: check, encode, assemble
READERS = (replay_buffer, lerobot, robomimic)  # each: recognises, sources; anything else is read as bags
_NOTES = ("seed", "success", "interrupted", "problems", "versions", "warnings")  # the notes of a recording that the data set keeps


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ConvertError(RuntimeError):
    """Nothing could be converted, or the conversion was interrupted; the message names the reason and the remedy."""


@dataclasses.dataclass
class ConversionReport:
    """The result of :func:`convert`. ``skipped``: recording -> reason; ``dropped``: reason -> number of messages, observations or
    steps; ``warnings``: recording -> doubts about the data that were kept.

    ``recordings`` has an entry for each, with its ``source`` and: the ``steps`` of each of its episodes, their total ``seconds``,
    the ``gaps`` between them (s), what was ``dropped``, and its recorder's notes; or ``unsuccessful``; or why it is ``skipped``.
    """

    out: str
    episodes: int
    steps: int
    recorded_s: float
    wall_s: float
    skipped: dict[str, str]
    unsuccessful: int
    gaps: int
    dropped: dict[str, int]
    warnings: dict[str, list[str]]
    recordings: list[dict[str, Any]]

    @property
    def speed(self) -> float:
        """Recorded seconds converted per second."""
        return self.recorded_s / max(self.wall_s, 1e-9)


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    contract: Contract | None = None,
    *,
    format: str = "zarr",
    keep_unsuccessful: bool = False,
    workers: int | None = None,
    scheduler: str = "",
    progress: bool = True,
    resume: bool = False,
    kinesthetic: bool = False,
) -> ConversionReport:
    """Convert recordings to the data set ``out`` ("zarr" or "lerobot"), which is created complete or not at all.

    ``sources`` are bags, folders of bags, robomimic HDF5 files, replay buffers (zarr) and LeRobot data sets. A recording that is
    damaged or holds no step is left out and listed in ``skipped`` of the report. Recordings of other tasks are accepted if their
    contracts equal ``contract`` in everything else. Without ``contract`` the first one found in a recording is used, and all must
    match it. ``resume`` continues an interrupted conversion from ``<out>.partial``, with the same result. In ``kinesthetic`` bags
    the arm was guided by hand: each action is the state measured one step later.

    Raises:
        ContractError: a recording with a different contract, naming the field; or a contract that the format cannot express.
        BagError, SourceError: a path that holds no recording.
        ConvertError: ``out`` or ``<out>.partial`` exists, nothing could be converted, or the disk is full.
        ValueError, WorkerError: see :class:`onedp_ros.parallel.Workers`, which gets ``workers`` and ``scheduler``.
    """
    begin = time.monotonic()
    out = Path(out)
    if scheduler:  # its workers run in another directory
        sources, out = [Path(source).absolute() for source in sources], out.absolute()
    partial = out.with_name(out.name + PARTIAL)
    if out.exists():
        raise ConvertError(f"{out} exists; choose another name")
    if partial.exists() and not resume:
        raise ConvertError(f"{partial} is left from an interrupted conversion; continue it with --resume, or choose another --out")
    found, skipped = find_sources(sources, kinesthetic)
    contract, found = _agree_on_contract(found, contract, skipped)
    writer = WRITERS[format]
    writer.check(contract)
    unsuccessful = [] if keep_unsuccessful else [source for source in found if source.notes.get("success") is False]
    left_out = {source.name for source in unsuccessful}
    wanted = {_name_folder(source): source for source in found if source.name not in left_out}  # duplicates count once

    try:
        places = {key: partial / "pieces" / key for key in wanted}
        with Workers(workers, scheduler) as crew:
            run = functools.partial(_run, crew, progress)
            crew.check_folder(out.parent)
            crew.check_paths([source.path for source in wanted.values()])
            _begin(partial, {"format": format, "contract": contract.to_dict(), "kinesthetic": kinesthetic})
            jobs = [(format, source, contract, places[key]) for key, source in wanted.items() if not places[key].exists()]
            names = [source.name for _, source, _, _ in jobs]
            reasons = run(_encode, jobs, f"convert {contract.task}", names, "recording", len(wanted) - len(jobs))
            skipped |= {source.name: reason for (_, source, _, _), reason in zip(jobs, reasons, strict=True) if reason}
            done = [(source, places[key]) for key, source in wanted.items() if source.name not in skipped]
            if not done:
                if not any((partial / "pieces").iterdir()):  # else keep what other sources gave, for --resume
                    shutil.rmtree(partial)
                raise ConvertError(_explain_nothing(skipped, len(unsuccessful)))
            recordings = [_read_report(source, place) for source, place in done]
            pieces = [piece for _, place in done for piece in _pieces(place)]
            attributes: dict[str, Any] = {
                "contract": contract.to_dict(),
                **({"kinesthetic": True} if kinesthetic else {}),
                "episodes": [e for (source, _), line in zip(done, recordings, strict=True) for e in _entries(source, line)],
                "skipped": skipped,
                "unsuccessful": len(unsuccessful),
                "gaps": sum(len(line["gaps"]) for line in recordings),
                "dropped": dict(sum((Counter(line["dropped"]) for line in recordings), Counter())),
                "versions": versions(),
            }
            whole = partial / "dataset"
            shutil.rmtree(whole, ignore_errors=True)  # left from an attempt that was interrupted here
            writer.assemble(pieces, contract, attributes, whole, functools.partial(run, title=f"write {out.name}"))
        _sync_all(whole)
        whole.rename(out)
        sync(out.parent)
        shutil.rmtree(partial)
    except OSError as error:
        remedy = "free disk space" if error.errno in _FULL else "fix that"
        raise ConvertError(f"{partial} cannot be written: {error}; {remedy}, then continue with --resume") from error
    except WorkerError as error:
        if not partial.exists():
            raise
        raise ConvertError(f"{error}; {partial} keeps what is done, continue with --resume") from error
    steps = sum(len(piece.state) for piece in pieces)
    return ConversionReport(
        out=str(out),
        episodes=len(pieces),
        steps=steps,
        recorded_s=steps * contract.dt,
        wall_s=time.monotonic() - begin,
        skipped=skipped,
        unsuccessful=len(unsuccessful),
        gaps=attributes["gaps"],
        dropped=attributes["dropped"],
        warnings={line["source"]: line["warnings"] for line in recordings if "warnings" in line},
        recordings=[
            *recordings,
            *({"source": source.name, "unsuccessful": True} for source in unsuccessful),
            *({"source": name, "skipped": reason} for name, reason in skipped.items()),
        ],
    )


def find_sources(paths: Sequence[str | Path], kinesthetic: bool = False) -> tuple[list[Source], dict[str, str]]:
    """The recordings in files and folders, of any format, and those that cannot be read, with the reason.

    Raises:
        BagError, SourceError: a path that does not exist or holds no recording.
    """
    found: list[Source] = []
    broken: dict[str, str] = {}
    unusable: SourceError | None = None
    for path in map(Path, paths):
        reader = next((reader for reader in READERS if reader.recognises(path)), None)
        if reader is not None:
            try:
                found += reader.sources(path)
            except SourceError as error:
                broken[str(path)], unusable = str(error), error
            continue
        try:
            bags, unreadable = find_bags([path])
        except BagError as error:
            raise BagError(f"{error}, a robomimic HDF5 file, a zarr replay buffer or a LeRobot data set") from error
        broken |= {str(bag): reason for bag, reason in unreadable.items()}
        read = functools.partial(functools.partial, read_episodes, kinesthetic=kinesthetic)
        found += [Source(bag, str(bag), read(bag), read_metadata(bag)) for bag in bags]
    if unusable is not None and not found:
        raise unusable
    return found, broken


def _agree_on_contract(
    sources: Sequence[Source], contract: Contract | None, skipped: dict[str, str]
) -> tuple[Contract, list[Source]]:
    """The common contract, ``contract`` or else the first one in a source's notes, and the sources without an invalid one.

    The others are added to ``skipped``.
    """
    named_by, given = "the task file", contract is not None
    agreed = []
    for source in sources:
        if noted := source.notes.get("contract"):
            try:
                theirs = Contract.from_dict(noted)
            except ContractError as error:
                skipped[source.name] = f"its contract is not valid in this version: {error}"
                continue
            if contract is None:
                contract, named_by = theirs, source.name
            contract.require_same(theirs, named_by, source.name, any_task=given)
        agreed.append(source)
    if contract is None:
        raise ConvertError("no recording contains its contract; give the task file with --task")
    return contract, agreed


def _explain_nothing(skipped: Mapping[str, str], unsuccessful: int) -> str:
    reasons = [f"\n  {name}: {reason}" for name, reason in skipped.items()]
    more = f"\n  and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    remedy = " (kept with --keep-unsuccessful)" * bool(unsuccessful)
    return (
        f"no recording could be converted; {unsuccessful} unsuccessful{remedy}, {len(skipped)} skipped{''.join(reasons[:10])}{more}"
    )


# An interrupted conversion leaves plan.json, and a folder in pieces/ for each recording that is done.


def _name_folder(source: Source) -> str:
    """The name of a recording's folder; it changes if the recording does."""
    path = source.path.resolve()
    identity = f"{path}{source.name.removeprefix(str(source.path))} {path.stat().st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    """Create ``partial``, or check that it was started with the same plan."""
    (partial / "pieces").mkdir(parents=True, exist_ok=True)
    for folder in (partial / "pieces").glob("*.*"):
        shutil.rmtree(folder)  # its process died
    file = partial / "plan.json"
    if file.exists():
        begun = json.loads(file.read_text(encoding="utf-8"))
        if differing := [name for name in plan if begun.get(name) != plan[name]]:
            raise ConvertError(
                f"{partial} was started with another {differing[0]}, {begun.get(differing[0])}; use the same options, or choose "
                f"another --out"
            )
        return
    write_atomically(file, json.dumps(plan).encode())


def _encode(format: str, source: Source, contract: Contract, folder: Path) -> str:
    """Convert a recording into ``folder``, in a worker process. Returns "", or why it cannot be read."""
    if folder.exists():  # the worker that did it died before reporting
        return ""
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        _read(format, source, contract, unfinished)
    except (BagError, SourceError, ContractError) as error:
        reason = str(error)
    except OSError:  # of the output folder
        raise
    except MemoryError:
        reason = "it needs more memory than is available; leave it out"
    except Exception as error:  # one bad recording must not stop the others
        reason = f"it cannot be used ({type(error).__name__}: {error}); leave it out"
    else:
        _sync_all(unfinished)
        unfinished.rename(folder)
        return ""
    shutil.rmtree(unfinished, ignore_errors=True)
    return reason


def _read(format: str, source: Source, contract: Contract, folder: Path) -> None:
    frames = folder / "frames"
    episodes, dropped = source.read(contract, frames)
    for i, episode in enumerate(episodes):
        place = folder / f"{i:04d}"
        place.mkdir(parents=True)
        np.savez(place / "steps.npz", state=episode.state, action=episode.action)
        WRITERS[format].encode(episode.images, contract, place)
    shutil.rmtree(frames, ignore_errors=True)
    pauses = [(b.stamps[0] - a.stamps[-1]) / NANOSECONDS for a, b in itertools.pairwise(episodes)]
    steps = [len(episode.stamps) for episode in episodes]
    line: dict[str, Any] = {"steps": steps, "seconds": round(sum(steps) * contract.dt, 3)}
    line |= {"gaps": [round(float(p), 3) for p in pauses], "dropped": dict(dropped)}
    state, action = (np.concatenate([getattr(episode, name) for episode in episodes]) for name in ("state", "action"))
    if warnings := [*dropped.warnings, *quality.doubts(contract, state, action, np.cumsum(steps))]:
        line["warnings"] = warnings
    (folder / "line.json").write_text(json.dumps(line), encoding="utf-8")


def _read_report(source: Source, folder: Path) -> dict[str, Any]:
    line = json.loads((folder / "line.json").read_text(encoding="utf-8"))
    notes = {key: source.notes[key] for key in _NOTES if isinstance(source.notes.get(key), KINDS.get(key, (int, list)))}
    return {"source": source.name, **notes, **line}


def _entries(source: Source, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data set's notes on each episode of a recording."""
    name = str(Path(source.name).relative_to(source.path.parent))
    return [{"bag": name, "steps": steps, **{key: line[key] for key in _NOTES if key in line}} for steps in line["steps"]]


def _pieces(folder: Path) -> Iterator[Piece]:
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        with np.load(place / "steps.npz") as steps:
            yield Piece(place, steps["state"], steps["action"])


def _sync_all(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in (*files, "."):
            sync(Path(folder, name))


def _run(
    crew: Workers,
    progress: bool,
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    title: str,
    names: Sequence[str] = (),
    unit: str = "part",
    done: int = 0,
) -> list[Any]:
    """Results of ``function(*job)``, in order; ``done``: number of jobs finished earlier, for the progress bar."""
    results = crew.run(function, jobs, names or [f"{title}, {unit} {i}" for i in range(len(jobs))])
    return list(tqdm(results, total=done + len(jobs), initial=done, unit=unit, desc=title, disable=not progress))
