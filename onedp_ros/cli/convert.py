"""Convert recordings into a training set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.parallel import WorkerError, add_worker_options


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 everything was converted, 2 some was skipped or has warnings, 1 nothing was written, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="onedp convert", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", help="bags, folders of bags, robomimic HDF5 files, zarr replay buffers, LeRobot v3 data sets"
    )
    parser.add_argument("--out", required=True, help="data set to write, for example data/demonstrations.zarr")
    parser.add_argument(
        "--format", default="zarr", choices=("zarr", "lerobot"), help="zarr: to train here (default); lerobot: v3.0"
    )
    parser.add_argument(
        "--task",
        help="task name or task file; recordings of other tasks with an equal contract are accepted too (default: the contract "
        "stored in the recordings)",
    )
    parser.add_argument("--keep-unsuccessful", action="store_true", help="also convert episodes marked as unsuccessful")
    add_worker_options(parser, "--workers")
    parser.add_argument(
        "--kinesthetic", action="store_true", help="the arm was guided by hand: actions are the measured path, one step ahead"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted conversion")
    parser.add_argument("--json", help="write the report to this file")
    options = parser.parse_args(argv)

    from onedp_ros.contract import task_contract
    from onedp_ros.data.bags.reader import PARTIAL, BagError, kept
    from onedp_ros.data.convert import ConvertError, convert
    from onedp_ros.data.episodes import SourceError

    try:
        report = convert(
            options.sources,
            options.out,
            task_contract(options.task) if options.task else None,
            format=options.format,
            keep_unsuccessful=options.keep_unsuccessful,
            workers=options.jobs,
            scheduler=options.scheduler,
            resume=options.resume,
            kinesthetic=options.kinesthetic,
        )
    except (BagError, SourceError, ConvertError, WorkerError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; --resume continues {options.out}{PARTIAL}", file=sys.stderr)
        return 130
    for name, reason in report.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    for line in report.recordings:
        remarks = [str(problem) for problem in line.get("problems", [])]
        if line.get("interrupted"):
            remarks.insert(0, f"its recording was interrupted, kept {sum(line['steps'])} steps, {line['seconds']:.1f} s")
            if (left := kept(line["source"])) is not None:
                remarks[0] += f", of {left.messages} messages; {left.cut_bytes} bytes at its end were cut"
        if remarks:
            print(f"{line['source']}: {'; '.join(remarks)}")
    for reason, count in sorted(report.dropped.items()):
        print(f"dropped {count}: {reason}")
    for name, warnings in report.warnings.items():
        for warning in warnings:
            print(f"WARNING {name}: {warning}", file=sys.stderr)
    print(
        f"{report.out}: {report.episodes} episodes, {report.steps} steps, {report.recorded_s:.0f} s in {report.wall_s:.1f} s "
        f"({report.speed:.0f} x real time), {report.gaps} gaps, {report.unsuccessful} unsuccessful, {len(report.skipped)} skipped"
        + f", {len(report.warnings)} with warnings"
        * bool(report.warnings)
    )
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps({**dataclasses.asdict(report), "speed": report.speed}, indent=2) + "\n")
    return 2 if report.skipped or report.warnings else 0
