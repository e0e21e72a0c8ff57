"""Race methods on the twin's tasks, in real time through the graph, and produce the paper's tables."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from pathlib import Path

from onedp_ros.cli.arguments import add_options
from onedp_ros.graph.options import POLICY, TASK
from onedp_ros.graph.supervisor import on_terminate
from onedp_ros.registry import UnknownNameError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp study", description=__doc__)
    parser.add_argument(
        "--task", action="append", default=[], help=f"{TASK}; may be repeated (default: all tasks with released policies)"
    )
    parser.add_argument(
        "--method", action="append", default=[], help="may be repeated (default: dp_ddim10, the teacher, onedp_s and onedp_d)"
    )
    parser.add_argument("--rounds", type=int, help="rounds per task and method (default: one per cell of the grid of starts)")
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder for rounds and tables (default out/study)")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="only regenerate the tables of an existing study's folder")
    parser.add_argument(
        "--latency",
        help="not in real time: keep simulating while the policy predicts, for this long, s (0,0.1: each in turn); v100: as on the "
        "paper's V100; measured: for as long as it takes here",
    )
    parser.add_argument("--jobs", type=int, help="with --latency: processes (default: one per core; measured: 1)")
    add_options(parser, {name: POLICY[name] for name in ("engine", "model")})
    args = parser.parse_args(argv)
    if args.tables is not None:
        return _write_tables(args.tables)

    from onedp_ros.bench.machine import processor
    from onedp_ros.evaluation.study.folder import StudyFolder
    from onedp_ros.evaluation.study.plan import plan, settings
    from onedp_ros.evaluation.study.run import run
    from onedp_ros.evaluation.study.series import REAL_TIME, latency_mode
    from onedp_ros.policy.engines import AUTO, ENGINES
    from onedp_ros.resources import named_file

    signal.signal(signal.SIGTERM, on_terminate)
    if args.jobs is not None and args.latency is None:
        parser.error("--jobs needs --latency; in real time one round runs after the other")
    latencies = [] if args.latency is None else args.latency.split(",")
    jobs = 1 if args.jobs is None and "measured" in latencies else args.jobs
    try:
        modes = list(dict.fromkeys(map(latency_mode, latencies))) or [REAL_TIME]
    except ValueError as error:
        parser.error(f"--{error}")
    try:
        if args.engine != AUTO:
            ENGINES.check(args.engine)
        for task in args.task:
            named_file("tasks", task)
    except (UnknownNameError, FileNotFoundError) as error:
        parser.error(str(error))
    try:
        series = plan(args.task, args.method, modes, args.rounds, Path(args.model) if args.model else None)
    except UnknownNameError as error:
        parser.error(str(error))
    folder = StudyFolder(args.out, settings(series, processor(), args.engine))
    try:
        run(folder, series, args.engine, jobs)
    except KeyboardInterrupt:
        print(f"\nstopped; finished rounds are in {args.out}; the same command continues with the others", flush=True)
        raise
    finally:
        folder.close()
    return _write_tables(args.out)


def _write_tables(folder: Path) -> int:
    from onedp_ros.evaluation.study.figures import draw
    from onedp_ros.evaluation.study.folder import read_rounds, read_settings
    from onedp_ros.evaluation.study.tables import figures, markdown
    from onedp_ros.files import write_atomically

    settings, rounds = read_settings(folder), read_rounds(folder)
    found = figures(rounds)
    page = markdown(settings, found, draw(settings, rounds, found, folder))
    write_atomically(folder / "tables.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomically(folder / "tables.md", page.encode())
    print(page)
    print(f"written {folder}/tables.md, tables.json and the pictures beside them")
    return 0
