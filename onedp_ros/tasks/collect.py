"""Demonstrations of a task's scripted expert in simulation, one bag each, with the topics and types of a real recording."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.contract import Contract, task_contract
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.resources import task_folder
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import Environment, read_options
from onedp_ros.tasks.drive import drive

LINGER_TIME = 0.5  # s after success, so that a policy learns to stay
POLICY_TIME = 0.6  # of an episode's time: the latest moment at which the expert takes over from a policy
POLICY_DRIVES = ((None, 0), (1, 4), (1, 6))  # actions executed of each chunk (None: the contract's), and how many steps ahead


def take_over(environment: Environment, predictor: Any, seed: int, rng: np.random.Generator, latest: float = 12.0) -> None:
    """Let a policy drive until a random moment before it succeeds, so that the expert begins where the policy's own mistakes lead.

    It executes its chunks in one of these ways: several actions of each, or as a live graph does; for ``latest`` s at most. An
    interactive imitation as of HG-DAgger (https://arxiv.org/abs/1810.02890): what the policy did is not recorded.
    """
    contract = environment.contract
    action_steps, ahead = POLICY_DRIVES[int(rng.integers(len(POLICY_DRIVES)))]
    ahead = min(ahead, contract.horizon - contract.n_obs_steps)
    while True:
        moment = rng.uniform(0.0, latest)
        environment.reset(np.random.default_rng(seed))
        predictor.reset(seed)
        driving = drive(predictor, environment, action_steps or contract.n_action_steps, ahead)
        while environment.time < moment and not environment.success():
            next(driving)
        if not environment.success():
            return
        latest = environment.time


def demonstrate(
    contract: Contract,
    seed: int,
    path: Path,
    recoveries: float = 0.5,
    options: Mapping[str, Any] | None = None,
    policy: Path | None = None,
    keep_unsuccessful: bool = False,
) -> tuple[bool, str]:
    """Record the demonstration of one seed; only a success stays, by default. Returns success and, if none, the reason.

    A fraction ``recoveries`` of the seeds starts off the expert's path, and half of all are disturbed on the way, so that a policy
    sees states that its own errors will lead to, with the right action in them. With ``policy``, that fraction starts where the
    policy led (:func:`take_over`).
    """
    task = TASKS.get(contract.task)
    rng = np.random.default_rng(seed)
    recovery, nudged = bool(rng.uniform() < recoveries), bool(rng.uniform() < 0.5)
    metadata = {"seed": seed, "recovery": recovery, "nudged": nudged, "operator": "scripted expert", "robot": task.robot}
    if recovery and policy is not None:
        metadata["led_by"] = str(policy)
    if options:
        metadata["options"] = dict(options)
    environment = task.make(contract, **(options or {}))
    try:
        if recovery and policy is not None:
            predictor = _load(policy)
            contract.require_same(predictor.contract, "the task", str(policy))
            take_over(environment, predictor, seed, rng, POLICY_TIME * task.max_time)
        else:
            environment.reset(rng, recovery)
        writer = EpisodeWriter(path, contract, metadata)
        environment.record(writer)
        linger = 0
        for _ in range(round(task.max_time * contract.control_hz)):
            action = environment.expert_action()
            writer.add_action(environment.stamp, action)
            if nudged:
                environment.disturb(rng)
            environment.step(action)
            linger += environment.success()
            if linger >= round(LINGER_TIME * contract.control_hz):
                break
        success = environment.success()
        if success or keep_unsuccessful:
            writer.close(success=success)
        else:
            writer.discard()
        return success, "" if success else environment.failure()
    finally:
        environment.close()


@functools.cache
def _load(policy: Path) -> Any:
    from onedp_ros.policy.predictor import load_predictor

    return load_predictor(policy, threads=1)


def collect(
    out: Path,
    episodes: int,
    *,
    task: str,
    seed: int = 0,
    recoveries: float = 0.5,
    options: Mapping[str, Any] | None = None,
    policy: Path | None = None,
    keep_unsuccessful: bool = False,
    jobs: int = 1,
) -> dict[str, object]:
    """Record until ``episodes`` successes of the seeds ``seed, seed + 1, …`` lie in ``out``; whole episodes there are kept.

    Args:
        task: name of a file in config/tasks, or path of a task file.
        options: of the task, by name.
        jobs: processes that record at the same time; one is this one.

    Returns:
        Attempts, episodes kept and the failures' reasons.

    Raises:
        UnknownNameError: the contract's task cannot be simulated.
        ValueError: an unknown option, or seeds that reach those of evaluations.
    """
    contract = task_contract(task)
    simulated = TASKS.get(contract.task)
    simulated.choose(options or {})
    out.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    kept = tried = 0
    with tqdm(total=episodes, unit="episode", desc=f"collect {contract.task}") as bar:
        while kept < episodes:
            seeds = range(seed + tried, seed + tried + episodes - kept)
            if seeds[-1] >= simulated.evaluation_seeds:
                raise ValueError(
                    f"seed {seeds[-1]} belongs to evaluations, which begin at {simulated.evaluation_seeds}; take a smaller --seed"
                )
            paths = [out / f"episode_{s:06d}" for s in seeds]
            new = [(s, p) for s, p in zip(seeds, paths, strict=True) if not p.exists()]
            tried += len(seeds)
            kept += len(seeds) - len(new)
            bar.update(len(seeds) - len(new))
            arguments = [(contract, s, p, recoveries, options, policy, keep_unsuccessful) for s, p in new]
            for success, reason in _demonstrations(arguments, jobs):
                kept += success or keep_unsuccessful
                bar.update(success or keep_unsuccessful)
                if not success:
                    failures[reason] += 1
                    bar.set_postfix(failed=sum(failures.values()))
    return {"attempts": tried, "kept": kept, "failures": dict(failures)}


def _demonstrations(arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[tuple[bool, str]]:
    if jobs == 1:
        yield from (demonstrate(*each) for each in arguments)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for run in [pool.submit(demonstrate, *each) for each in arguments]:
            yield run.result()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp collect", description=__doc__)
    parser.add_argument("task", help=f"a task file of one of {', '.join(TASKS.names())}: its name in config/tasks, or its path")
    parser.add_argument("--episodes", type=int, default=100, help="successes to record (default 100)")
    parser.add_argument("--out", type=Path, default=None, help="folder of bags (default out/<task>/bags)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--recoveries", type=float, default=0.5, help="fraction of episodes that start off the expert's path")
    parser.add_argument("--policy", type=Path, help="bundle whose own mistakes those episodes begin with, to improve it")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the task")
    parser.add_argument("--keep-unsuccessful", action="store_true", help="keep failures too, marked as such")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    out = args.out or task_folder(args.task) / "bags"
    summary = collect(
        out,
        args.episodes,
        task=args.task,
        seed=args.seed,
        recoveries=args.recoveries,
        options=read_options(args.option),
        policy=args.policy,
        keep_unsuccessful=args.keep_unsuccessful,
        jobs=args.jobs,
    )
    print(f"{summary['kept']} episodes of {summary['attempts']} attempts in {out}; failures: {summary['failures'] or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
