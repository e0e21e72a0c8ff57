"""Measure speed and cost on this machine, or how smooth a policy's targets are.

By default: a prediction with each engine and method, and camera frames over DDS.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp bench", description=__doc__)
    parser.add_argument("--network", choices=["paper", "compact", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-frames", action="store_true", help="skip the frames over DDS")
    parser.add_argument("--servo", action="store_true", help="instead, the arm's 1 kHz loop, against the fake robot")
    parser.add_argument("--robot-ip", default="", help="with --servo: address of a real robot, which MOVES")
    parser.add_argument("--recorder", action="store_true", help="instead, the recorder with two cameras of noisy images")
    parser.add_argument("--start", action="store_true", help="instead, how long policy_node takes to start, first and again")
    parser.add_argument("--smooth", action="store_true", help="instead, hand-overs between a policy's chunks, in the twin")
    parser.add_argument("--model", type=Path, help="with --smooth: directory of the policy")
    parser.add_argument("--method", help="with --smooth: another method with the same weights")
    parser.add_argument("--engine", default="auto", help="with --smooth: inference engine (default auto)")
    parser.add_argument("--episodes", type=int, default=20, help="with --smooth: episodes per row (default 20)")
    parser.add_argument(
        "--latency", default="v100", help="with --smooth: of a prediction, s, or v100: as on the paper's V100 (default v100)"
    )
    parser.add_argument(
        "--delays", type=_seconds, help="with --smooth: delays added to the latency, s (default 0,0.05,0.1,0.2,0.3)"
    )
    parser.add_argument("--jobs", type=int, help="with --smooth: processes (default: one per core)")
    parser.add_argument("--out", type=Path, default=Path(), help="with --recorder: folder on the disk to test (default: this one)")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of --recorder, or per row of --servo (at most 60)")
    parser.add_argument(
        "--json",
        type=Path,
        help="write the results here, and a plot beside it; with --smooth, an interrupted run continues when repeated",
    )
    args = parser.parse_args(argv)
    if args.servo:
        return _write(*_servo(args.seconds, args.robot_ip), args.json)
    if args.recorder:
        return _write(*_recorder(args.seconds, args.out), args.json)
    if args.start:
        return _write(*_start(min(args.repeats, 10)), args.json)
    if args.smooth:
        if args.model is None:
            parser.error("--smooth needs --model, the directory of a policy")
        return _write(*_smooth(args), args.json)
    networks = ["paper", "compact"] if args.network == "both" else [args.network]
    return _write(*_inference(networks, args.repeats, args.threads, not args.no_frames), args.json)


Outcome = tuple[dict[str, Any], str, Callable[[dict[str, Any], Path], None] | None]  # results, table, plotting function


def _inference(networks: Sequence[str], repeats: int, threads: int, dds: bool) -> Outcome:
    from onedp_ros.bench import inference
    from onedp_ros.evaluation.figures import plot_bench

    result = inference.run(networks, repeats, threads, dds)
    return result, inference.table(result), plot_bench


def _servo(seconds: float, address: str) -> Outcome:
    from onedp_ros.bench import servo
    from onedp_ros.evaluation.figures import plot_servo

    result = servo.run(min(seconds, 60.0), address, enforce=bool(address))
    return result, servo.table(result), plot_servo


def _recorder(seconds: float, folder: Path) -> Outcome:
    from onedp_ros.bench import recorder
    from onedp_ros.evaluation.figures import plot_recorder

    result = recorder.run(seconds, folder)
    return result, recorder.table(result), plot_recorder


def _start(repeats: int) -> Outcome:
    from onedp_ros.bench import start

    result = start.run(repeats=repeats)
    return result, start.table(result), None


def _smooth(args: argparse.Namespace) -> Outcome:
    from onedp_ros.bench import smooth

    result = smooth.run(
        args.model,
        method=args.method,
        engine=args.engine,
        episodes=args.episodes,
        latency=args.latency,
        delays=args.delays or smooth.DELAYS,
        jobs=args.jobs,
        partial=args.json and args.json.with_name(args.json.name + ".partial"),
    )
    return result, smooth.table(result), smooth.plot


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _write(result: dict[str, Any], text: str, plot: Callable[[dict[str, Any], Path], None] | None, path: Path | None) -> int:
    print("\n" + text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
        if plot is not None:
            plot(result, path.with_suffix(".png"))
        print(f"written {path}" + (f" and {path.with_suffix('.png')}" if plot is not None else ""))
    return 0
