"""Bags -> training set: a zarr store in Diffusion Policy's replay-buffer layout.

    data/<camera>  (N, height, width, 3) uint8     data/state   (N, 9) float32
    data/action    (N, 10) float32                 meta/episode_ends (E,) int64

The attributes of the root hold the contract, one entry an episode, and what was dropped.
Layout: https://github.com/real-stanford/diffusion_policy, diffusion_policy/common/replay_buffer.py (zarr format 2).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from tqdm import tqdm

from onedp_ros.contract import Contract, ContractError
from onedp_ros.data.bags import PARTIAL, BagError, find_bags, read_metadata, sync, versions
from onedp_ros.data.episodes import Episode, read_episodes

IMAGE_CHUNK = 32  # images a chunk
_FORMAT: dict[str, Any] = {"zarr_format": 2} if zarr.__version__ >= "3" else {}  # zarr 2 knows no other


class ConvertError(RuntimeError):
    """Nothing could be converted; the message says why and what to do."""


@dataclasses.dataclass
class Report:
    """What :func:`convert` did. ``skipped``: bag -> reason; ``dropped``: reason -> messages or sets left out."""

    out: str
    episodes: int
    steps: int
    recorded_s: float
    wall_s: float
    skipped: dict[str, str]
    unsuccessful: int
    gaps: int
    dropped: dict[str, int]

    @property
    def speed(self) -> float:
        """Recorded seconds a second."""
        return self.recorded_s / max(self.wall_s, 1e-9)


def convert(
    bags: Sequence[str | Path],
    out: str | Path,
    contract: Contract | None = None,
    *,
    keep_unsuccessful: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Bags (or folders of bags) -> zarr store ``out``, which appears whole or not at all.

    Bags that are damaged or hold no step are left out and named in ``Report.skipped``. Without ``contract`` the one noted in
    the first bag is used.

    Raises:
        ContractError: a bag was recorded under another contract; names the field.
        ConvertError: ``out`` exists, or no bag could be converted.
    """
    begin = time.monotonic()
    out = Path(out)
    if out.exists():
        raise ConvertError(f"{out} exists; choose another name or remove it")
    found, broken = find_bags(bags)
    skipped = {str(bag): reason for bag, reason in broken.items()}
    unsuccessful = 0
    sources: list[tuple[Path, dict[str, Any]]] = []
    named_by = "the task file"
    for bag in found:
        try:
            metadata = read_metadata(bag)
        except BagError as error:
            skipped[str(bag)] = str(error)
            continue
        if noted := metadata.get("contract"):
            theirs = Contract.from_dict(noted)
            if contract is None:
                contract, named_by = theirs, str(bag)
            contract.require_same(theirs, named_by, str(bag))
        if metadata.get("success") is False and not keep_unsuccessful:
            unsuccessful += 1
            continue
        sources.append((bag, metadata))
    if contract is None:
        raise ConvertError("no bag names its contract; give the task file with --task")

    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    dropped: Counter[str] = Counter()
    entries: list[dict[str, Any]] = []
    ends: list[int] = []
    gaps = 0
    data = _Store(partial, contract)
    with tqdm(total=len(sources), unit="bag", disable=not progress, desc=f"convert {contract.task}") as bar:
        for (bag, metadata), result in zip(sources, _in_order([b for b, _ in sources], contract, workers), strict=True):
            bar.update()
            if isinstance(result, str):
                skipped[str(bag)] = result
                continue
            episodes, counts = result
            dropped += counts
            gaps += len(episodes) - 1
            for episode in episodes:
                data.append(episode)
                ends.append(data.steps)
                entries.append({"bag": bag.name, "steps": len(episode.stamps), **_notes(metadata)})
            bar.set_postfix(steps=data.steps, skipped=len(skipped))
    if not entries:
        shutil.rmtree(partial)
        reasons = "".join(f"\n  {bag}: {reason}" for bag, reason in skipped.items())
        raise ConvertError(f"no bag could be converted; {unsuccessful} unsuccessful, {len(skipped)} skipped{reasons}")
    data.finish(
        ends,
        {
            "contract": contract.to_dict(),
            "episodes": entries,
            "skipped": skipped,
            "unsuccessful": unsuccessful,
            "gaps": gaps,
            "dropped": dict(dropped),
            "versions": versions(),
        },
    )
    for folder, _, files in os.walk(partial):
        for name in (*files, "."):
            sync(Path(folder, name))
    partial.rename(out)
    sync(out.parent)
    return Report(
        out=str(out),
        episodes=len(entries),
        steps=data.steps,
        recorded_s=data.steps * contract.dt,
        wall_s=time.monotonic() - begin,
        skipped=skipped,
        unsuccessful=unsuccessful,
        gaps=gaps,
        dropped=dict(dropped),
    )


def _notes(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ("seed", "success", "versions") if key in metadata}


def _read(bag: Path, contract: dict[str, Any]) -> tuple[list[Episode], Counter[str]] | str:
    """One bag, in a worker: its episodes, or why there are none."""
    try:
        return read_episodes(bag, Contract.from_dict(contract))
    except (BagError, ContractError) as error:
        return str(error)


def _in_order(bags: Iterable[Path], contract: Contract, workers: int | None) -> Iterator[tuple[list[Episode], Counter[str]] | str]:
    """Results of :func:`_read`, in order, a few bags ahead of the reader so that memory stays small."""
    workers = workers or os.cpu_count() or 1
    # Not forked: OpenCV and PyTorch threads of the caller do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[Future[Any]] = deque()
        for bag in bags:
            ahead.append(pool.submit(_read, bag, contract.to_dict()))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class _Store:
    """A growing replay buffer on disk."""

    def __init__(self, path: Path, contract: Contract) -> None:
        self.steps = 0
        self.path = path
        self.root = zarr.open_group(str(path), mode="w", **_FORMAT)
        for group in ("data", "meta"):
            self.root.require_group(group)
        self.arrays = {
            name: self._array(f"data/{name}", (camera.height, camera.width, 3), "u1") for name, camera in contract.cameras.items()
        }
        self.state = self._array("data/state", (contract.state_dim,), "f4")
        self.action = self._array("data/action", (contract.action_dim,), "f4")

    def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        return zarr.create(
            shape=(0, *shape),
            chunks=(IMAGE_CHUNK if len(shape) > 1 else 4096, *shape),
            dtype=dtype,
            compressor=numcodecs.Blosc("zstd", clevel=1),
            store=str(self.path),
            path=name,
            **_FORMAT,
        )

    def append(self, episode: Episode) -> None:
        for name, images in episode.images.items():
            self.arrays[name].append(images)
        self.state.append(episode.state)
        self.action.append(episode.action)
        self.steps += len(episode.stamps)

    def finish(self, ends: list[int], attributes: dict[str, Any]) -> None:
        self._array("meta/episode_ends", (), "i8").append(np.array(ends, dtype=np.int64))
        self.root.attrs.update(attributes)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Exit code: 0 all bags converted, 2 some were skipped, 1 nothing was written."""
    parser = argparse.ArgumentParser(prog="onedp convert", description="Bags -> training set in Diffusion Policy's layout (zarr).")
    parser.add_argument("bags", nargs="+", help="bags, or folders of bags")
    parser.add_argument("--out", required=True, help="store to write, for example data/pnp_milk.zarr")
    parser.add_argument("--task", help="task file; default: the contract noted in the bags")
    parser.add_argument("--keep-unsuccessful", action="store_true", help="also episodes noted as not successful")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    parser.add_argument("--json", help="write the report to this file")
    options = parser.parse_args(argv)
    try:
        contract = Contract.from_yaml(options.task) if options.task else None
        report = convert(options.bags, options.out, contract, keep_unsuccessful=options.keep_unsuccessful, workers=options.workers)
    except (BagError, ConvertError, ContractError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for bag, reason in report.skipped.items():
        print(f"skipped {bag}: {reason}", file=sys.stderr)
    for reason, count in sorted(report.dropped.items()):
        print(f"dropped {count}: {reason}")
    print(
        f"{report.out}: {report.episodes} episodes, {report.steps} steps, {report.recorded_s:.0f} s in {report.wall_s:.1f} s "
        f"({report.speed:.0f} x real time), {report.gaps} gaps, {report.unsuccessful} unsuccessful, {len(report.skipped)} skipped"
    )
    if options.json:
        Path(options.json).write_text(json.dumps({**dataclasses.asdict(report), "speed": report.speed}, indent=2) + "\n")
    return 2 if report.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
