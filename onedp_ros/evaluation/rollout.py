"""Success of a policy in the twin, without ROS: fixed seeds that no demonstration used, in lock step, on all cores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from scipy.stats import binomtest
from tqdm import tqdm

from onedp_ros.contract import Contract, ContractError, task_contract
from onedp_ros.graph.processes import released
from onedp_ros.tasks.drive import drive
from onedp_ros.tasks.pnp_milk import EVALUATION_SEEDS, PnpMilk, carton
from onedp_ros.twin.stepped import SteppedCell


@dataclasses.dataclass(frozen=True)
class Episode:
    """How one episode went: ``time`` (s, simulated), the carton's start (x, y in m, yaw in rad), and why it failed, if so."""

    seed: int
    success: bool
    time: float
    start: tuple[float, float, float]
    failure: str
    inference_ms: float


def rollout(predictor: Any, stepped: SteppedCell, seed: int, action_steps: int, max_time: float, lead_steps: int = 0) -> Episode:
    """One episode with ``predictor`` (as of ``policy.inference``); see :func:`onedp_ros.tasks.drive.drive`."""
    stepped.reset(np_random(seed)[0])
    centre, yaw, _ = carton(stepped.cell)
    driving = drive(predictor, stepped, action_steps, lead_steps)
    times: list[float] = []
    failure = ""
    while not (success := stepped.success()) and stepped.cell.time < max_time and not failure:
        try:
            times.append(next(driving))
        except ContractError as error:
            failure = str(error)
    if not success:
        failure = failure or stepped.failure()
    return Episode(seed, success, stepped.cell.time, (*centre[:2].tolist(), yaw), failure, float(np.median(times or [0.0])))


_worker: tuple[Any, SteppedCell] | None = None


def _start(model: Path, method: str | None, engine: str, threads: int, max_yaw: float, contract: Contract) -> None:
    global _worker
    from onedp_ros.policy.inference import load_predictor

    predictor = load_predictor(model, method=method, engine=engine, contract=contract, threads=threads)
    _worker = predictor, SteppedCell(contract, PnpMilk(max_yaw))


def _run(seed: int, action_steps: int, max_time: float, lead_steps: int) -> tuple[Episode, dict[str, Any]]:
    assert _worker is not None
    predictor, stepped = _worker
    facts = {k: getattr(predictor, k) for k in ("method", "nfe", "engine", "network")}
    predictor.reset(seed)
    return rollout(predictor, stepped, seed, action_steps, max_time, lead_steps), facts


def evaluate(
    model: Path,
    *,
    task: str = "pnp_milk",
    method: str | None = None,
    engine: str = "auto",
    episodes: int = 100,
    seed: int = EVALUATION_SEEDS,
    action_steps: int | None = None,
    lead: float = 0.0,
    max_time: float = 20.0,
    max_yaw: float = PnpMilk.max_yaw,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Success rate with its 95 % interval, mean time of the successes (s), failures by reason, and every episode."""
    from onedp_ros.policy.checkpoint import load_policy

    contract = task_contract(task)
    action_steps = action_steps or contract.n_action_steps
    lead_steps = round(lead / contract.dt)
    most = contract.horizon - contract.n_obs_steps + 1 - lead_steps
    if not 1 <= action_steps <= most:
        raise ValueError(f"action_steps is {action_steps}, expected 1 to {most} with a lead of {lead} s")
    load_policy(model, method, contract)  # here, or its error would be hidden in a worker's
    jobs = jobs or os.cpu_count() or 1
    threads = max(1, (os.cpu_count() or 1) // jobs)
    begin = time.perf_counter()
    results: list[Episode] = []
    facts: dict[str, Any] = {}
    initial = (model, method, engine, threads, max_yaw, contract)
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, initial) as pool,
        tqdm(total=episodes, unit="episode") as bar,
    ):
        for run in [pool.submit(_run, s, action_steps, max_time, lead_steps) for s in range(seed, seed + episodes)]:
            episode, facts = run.result()
            results.append(episode)
            bar.update()
            bar.set_postfix(success=f"{sum(e.success for e in results) / len(results):.2f}")
    successes = [e for e in results if e.success]
    return {
        "task": task,
        **facts,
        "episodes": episodes,
        "seed": seed,
        "action_steps": action_steps,
        "lead_s": lead,
        "max_time_s": max_time,
        "success_rate": len(successes) / episodes,
        "ci95": tuple(map(float, binomtest(len(successes), episodes).proportion_ci(method="wilson"))),
        "mean_time_s": float(np.mean([e.time for e in successes])) if successes else None,
        "failures": dict(Counter(e.failure for e in results if not e.success)),
        "inference_ms_p50": float(np.median([e.inference_ms for e in results])),
        "wall_s": time.perf_counter() - begin,
        "processor": platform.processor() or platform.machine(),
        "results": [dataclasses.asdict(e) for e in results],
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as lines to print."""
    low, high = summary["ci95"]
    mean = "-" if summary["mean_time_s"] is None else f"{summary['mean_time_s']:.2f} s"
    rows = {
        "policy": "{task}, {method}, NFE {nfe}, {network} network, {engine}".format(**summary),
        "episodes": f"{summary['episodes']}, seeds from {summary['seed']}, {summary['action_steps']} actions a chunk",
        "success": f"{summary['success_rate']:.3f} (95 %: {low:.3f} to {high:.3f}), mean time {mean}",
        "speed": f"inference p50 {summary['inference_ms_p50']:.1f} ms, whole run {summary['wall_s']:.0f} s",
        **{f"failed {count} x": reason for reason, count in summary["failures"].items()},
    }
    return "\n".join(f"{name:12} {value}" for name, value in rows.items())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp evaluate", description=__doc__)
    parser.add_argument("task", choices=["pnp_milk"])
    parser.add_argument("--method", default="onedp_s", help="onedp_s, onedp_d, dp_ddpm100 or dp_ddimN (default onedp_s)")
    parser.add_argument("--model", type=Path, help="bundle (default: the released one of the method)")
    parser.add_argument("--engine", default="auto", help="auto, torch, cuda, openvino or openvino_bf16")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEEDS, help=f"first seed; below {EVALUATION_SEEDS} is training data")
    parser.add_argument("--action-steps", type=int, help="actions executed of each chunk (default: the contract's)")
    parser.add_argument("--lead", type=float, default=0.0, help="how far ahead of the clock chunks are executed, s")
    parser.add_argument("--max-time", type=float, default=20.0, help="s, simulated")
    parser.add_argument("--max-yaw", type=float, default=30.0, help="greatest turn of the carton, degrees (180: any)")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--json", type=Path, help="write the results here, and a picture of the starts beside it")
    args = parser.parse_args(argv)
    if args.seed < EVALUATION_SEEDS:
        parser.error(f"--seed {args.seed} may be training data; evaluation seeds start at {EVALUATION_SEEDS}")
    model = args.model or released(args.task, args.method)
    summary = evaluate(
        model,
        task=args.task,
        method=args.method,
        engine=args.engine,
        episodes=args.episodes,
        seed=args.seed,
        action_steps=args.action_steps,
        lead=args.lead,
        max_time=args.max_time,
        max_yaw=float(np.deg2rad(args.max_yaw)),
        jobs=args.jobs,
    )
    print(table(summary))
    if args.json:
        from onedp_ros.evaluation.figures import plot_starts

        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        plot_starts(summary, args.json.with_suffix(".png"))
        print(f"written {args.json} and {args.json.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
