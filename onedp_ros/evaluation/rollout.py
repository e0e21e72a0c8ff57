"""Evaluates a policy in simulation, without ROS: on fixed seeds that no demonstration used, on all cores."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from scipy.stats import binomtest
from tqdm import tqdm

from onedp_ros.contract import Contract, ContractError, task_contract
from onedp_ros.control.handover import DEFAULT
from onedp_ros.files import write_atomically
from onedp_ros.parallel import Workers, kept
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import Environment
from onedp_ros.tasks.drive import drive
from onedp_ros.tasks.timed_drive import LATENCIES, LEAD, Timing, drive_timed


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """Result of an episode: ``time`` (s, simulated), ``start`` and ``score`` (0 to 1) of its
    :class:`~onedp_ros.tasks.base.Environment`, and the reason for a failure (else empty)."""

    seed: int
    success: bool
    time: float
    start: tuple[float, ...]
    failure: str
    inference_ms: float
    score: float


def rollout(
    predictor: Any,
    environment: Environment,
    seed: int,
    action_steps: int,
    max_time: float,
    lead_steps: int = 0,
    timing: Timing | None = None,
    writer: Any = None,
) -> EpisodeResult:
    """Run an episode with ``predictor`` (a ``policy.predictor.Predictor``), in lock step (:func:`onedp_ros.tasks.drive.drive`), or
    with ``timing`` in continuous time (:func:`onedp_ros.tasks.timed_drive.drive_timed`). ``writer``: for ``environment.record``."""
    environment.reset(np_random(seed)[0])
    if writer is not None:
        environment.record(writer)
    start = environment.start()
    if timing is None:
        driving = drive(predictor, environment, action_steps, lead_steps)
    else:
        driving = (step.inference_ms for step in drive_timed(predictor, environment, timing))
    times: list[float] = []
    failure = ""
    while not (success := environment.success()) and environment.time < max_time and not failure:
        try:
            times.append(next(driving))
        except ContractError as error:
            failure = str(error)
    if not success:
        failure = failure or environment.failure()
    inference = float(np.median(times or [0.0]))
    return EpisodeResult(seed, success, environment.time, start, failure, inference, environment.score())


@contextmanager
def loaded(
    model: Path, digests: str, method: str | None, engine: str, options: Mapping[str, Any], contract: Contract
) -> Iterator[tuple[Any, Environment]]:
    """A policy, on one thread, and its environment; ``options`` are the task's. ValueError when the checkpoint has other
    ``digests``."""
    from onedp_ros.policy.checkpoint import load_sampler
    from onedp_ros.policy.predictor import load_predictor

    if load_sampler(model, method, contract)[1] != digests:
        raise ValueError(
            f"{model} on {platform.node()} is not the checkpoint that the evaluation was started with; copy that one there"
        )
    # One thread, so that results do not depend on how many processes there are.
    predictor = load_predictor(model, method=method, engine=engine, contract=contract, threads=1)
    environment = TASKS.get(contract.task).make(contract, **options)
    try:
        yield predictor, environment
    finally:
        environment.close()


def _run(
    loading: tuple[Any, ...], seed: int, action_steps: int, max_time: float, lead_steps: int, timing: Timing | None
) -> tuple[EpisodeResult, dict[str, Any]]:
    predictor, environment = kept(loaded, *loading)
    facts = {k: getattr(predictor, k) for k in ("method", "nfe", "engine", "network")}
    predictor.reset(seed)
    return rollout(predictor, environment, seed, action_steps, max_time, lead_steps, timing), facts


class _Partial:
    """Results of a running evaluation, kept as JSON lines, the settings first. Without a path, nothing is kept."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self.done: dict[int, tuple[EpisodeResult, dict[str, Any]]] = {}
        if path is None:
            return
        lines = [json.dumps(settings, sort_keys=True)]
        earlier = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if earlier[:1] == [lines[0] + "\n"]:
            for line in (line for line in earlier[1:] if line.endswith("\n")):  # else it was truncated
                entry = json.loads(line)
                episode = EpisodeResult(**entry["episode"] | {"start": tuple(entry["episode"]["start"])})
                self.done[episode.seed] = episode, entry["facts"]
                lines.append(line.rstrip("\n"))
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    def add(self, episode: EpisodeResult, facts: dict[str, Any]) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"episode": dataclasses.asdict(episode), "facts": facts}) + "\n")

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink()


def evaluate(
    model: Path,
    *,
    task: str,
    method: str | None = None,
    engine: str = "auto",
    episodes: int = 100,
    seed: int | None = None,
    action_steps: int | None = None,
    lead: float | None = None,
    latency: str | float | None = None,
    handover: str | None = None,
    max_time: float | None = None,
    options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str = "",
    partial: Path | None = None,
) -> dict[str, Any]:
    """Success rate with its 95 % interval, mean time of the successes (s), failures by reason, and every episode.

    Args:
        model: checkpoint directory.
        task: name of a file in config/tasks, or path of a task file.
        seed: of the first episode; default: the task's first evaluation seed.
        action_steps: actions of each chunk to execute; default: the contract's.
        lead: how far ahead of the clock chunks are sampled, s. Default: 0 in lock step, action_node's in continuous time.
        latency: see :class:`onedp_ros.tasks.timed_drive.Timing`; the simulation continues meanwhile. Default: lock step, it waits.
        handover: hand-over between chunks, with a latency; default: action_node's.
        max_time: time limit of an episode, s, simulated; default: the task's.
        options: of the task, by name.
        jobs, scheduler: see :class:`onedp_ros.parallel.Workers`.
        partial: file that keeps results until the evaluation is complete. Episodes that an interrupted evaluation with the same
            settings left in it are not run again.

    Raises:
        UnknownNameError: the contract's task cannot be simulated.
        ValueError: an unknown option, too many action steps, or a latency that is invalid or given for a task outside the cell.
        WorkerError: see :class:`onedp_ros.parallel.Workers`.
    """
    from onedp_ros.policy.checkpoint import load_policy, load_sampler

    contract = task_contract(task)
    simulated = TASKS.get(contract.task)
    simulated.choose(options or {})
    seed = simulated.evaluation_seeds if seed is None else seed
    max_time = simulated.max_time if max_time is None else max_time
    timing = None
    if latency is not None:
        if action_steps is not None:
            raise ValueError(
                f"action_steps is {action_steps}, but with a latency actions are executed by time; give one or the other"
            )
        if simulated.scene is None:
            raise ValueError(f"task {contract.task} is simulated in lock step with the policy only; give no latency")
        timing = Timing(latency, LEAD if lead is None else lead, handover or DEFAULT)
        lead, action_steps = timing.lead, 1
    elif handover is not None:
        raise ValueError(f"handover is '{handover}', but in lock step there is none; give a latency, too")
    action_steps = action_steps or contract.n_action_steps
    lead_steps = round((lead or 0.0) / contract.dt)
    most = contract.horizon - contract.n_obs_steps + 1 - lead_steps
    if not 1 <= action_steps <= most:
        raise ValueError(f"action_steps is {action_steps}, expected 1 to {most} with a lead of {lead} s")
    load_policy(model, method, contract)  # here, so that its errors are not hidden in a worker's
    model = model.absolute()  # workers may have another working directory
    digests = load_sampler(model, method, contract)[1]
    settings = {
        "contract": contract.to_dict(),
        "policy": digests,
        "method": method,
        "engine": engine,
        "options": dict(options or {}),
        "action_steps": action_steps,
        "lead_steps": lead_steps,
        "timing": timing and dataclasses.asdict(timing),
        "max_time": max_time,
    }
    begin = time.perf_counter()
    results: list[EpisodeResult] = []
    facts: dict[str, Any] = {}
    loading = (model, digests, method, engine, dict(options or {}), contract)
    seeds = range(seed, seed + episodes)
    with Workers(jobs, scheduler) as workers, tqdm(total=episodes, unit="episode") as bar:
        workers.check_paths([model])
        finished = _Partial(partial, settings)
        new = [s for s in seeds if s not in finished.done]
        calls = [(loading, s, action_steps, max_time, lead_steps, timing) for s in new]
        runs = workers.run(_run, calls, [f"the episode of seed {s}" for s in new])
        for s in seeds:
            if s in finished.done:
                episode, facts = finished.done[s]
            else:
                episode, facts = next(runs)
                finished.add(episode, facts)
            results.append(episode)
            bar.update()
            bar.set_postfix(success=f"{sum(e.success for e in results) / len(results):.2f}")
    finished.remove()
    successes = [e for e in results if e.success]
    return {
        "task": contract.task,
        **facts,
        "options": dict(options or {}),
        "episodes": episodes,
        "seed": seed,
        "action_steps": action_steps if timing is None else None,
        "lead_s": lead or 0.0,
        "latency": latency,
        "handover": timing and timing.handover,
        "max_time_s": max_time,
        "success_rate": len(successes) / episodes,
        "ci95": tuple(map(float, binomtest(len(successes), episodes).proportion_ci(method="wilson"))),
        "mean_score": float(np.mean([e.score for e in results])),
        "mean_time_s": float(np.mean([e.time for e in successes])) if successes else None,
        "failures": dict(Counter(e.failure for e in results if not e.success)),
        "inference_ms_p50": float(np.median([e.inference_ms for e in results])),
        "wall_s": time.perf_counter() - begin,
        "processor": platform.processor() or platform.machine(),
        "start_labels": simulated.start_labels,
        "results": [dataclasses.asdict(e) for e in results],
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as lines to print."""
    low, high = summary["ci95"]
    mean = "-" if summary["mean_time_s"] is None else f"{summary['mean_time_s']:.2f} s"
    executed = f"{summary['action_steps']} actions per chunk"
    if summary["latency"] is not None:
        unit = "" if summary["latency"] in LATENCIES else " s"
        executed = f"in continuous time, latency {summary['latency']}{unit}, {summary['lead_s']} s ahead, {summary['handover']}"
    rows = {
        "policy": "{task}, {method}, NFE {nfe}, {network} network, {engine}".format(**summary),
        "episodes": f"{summary['episodes']}, seeds from {summary['seed']}, {executed}",
        "success": f"{summary['success_rate']:.3f} (95 %: {low:.3f} to {high:.3f}), mean time {mean}",
        "speed": f"inference p50 {summary['inference_ms_p50']:.1f} ms, whole run {summary['wall_s']:.0f} s",
        **{f"failed {count} x": reason for reason, count in summary["failures"].items()},
    }
    return "\n".join(f"{name:12} {value}" for name, value in rows.items())
