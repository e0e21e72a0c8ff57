"""Demonstrations by a task's scripted expert in simulation, one bag each, with the topics and types of a real recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.contract import Contract, task_contract
from onedp_ros.data.bags.reader import read_metadata
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.parallel import Workers, kept
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import Environment
from onedp_ros.tasks.drive import drive

LINGER_TIME = 0.5  # s recorded after success, so that a policy learns to stay there
POLICY_TIME = 0.6  # fraction of an episode's time at which the expert takes over from a policy at the latest
POLICY_DRIVES = ((None, 0), (1, 4), (1, 6))  # actions executed per chunk (None: the contract's), and how many steps ahead


def take_over(environment: Environment, predictor: Any, seed: int, rng: np.random.Generator, latest: float = 12.0) -> None:
    """Let a policy drive until a random time before it succeeds, so that the expert starts in states the policy's mistakes lead to.

    The policy drives for at most ``latest`` s and executes several actions per chunk, or one at a time as the live graph does, at
    random. This is interactive imitation as in HG-DAgger (https://arxiv.org/abs/1810.02890): what the policy did is not recorded.
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
    """Record the demonstration of one seed; failures are discarded by default. Returns success and the reason for a failure.

    A fraction ``recoveries`` of the seeds starts off the expert's path, and half of all seeds are disturbed on the way, so that a
    policy sees the states that its own errors will lead to, and the right action there. With ``policy``, that fraction starts where
    the policy left off (:func:`take_over`).
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
            predictor = kept(_loaded, policy, (policy / "config.json").stat().st_mtime_ns)
            contract.require_policy(predictor.contract, str(policy))
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


@contextmanager
def _loaded(policy: Path, _: int) -> Iterator[Any]:
    """The policy's predictor; kept until the file's modification time changes."""
    from onedp_ros.policy.predictor import load_predictor

    yield load_predictor(policy, threads=1)


def _demonstrate(contract: Contract, seed: int, path: Path, *arguments: Any) -> tuple[bool, str]:
    if path.exists():  # the worker that recorded it died before reporting
        return bool(read_metadata(path)["success"]), ""
    return demonstrate(contract, seed, path, *arguments)


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
    jobs: int | None = None,
    scheduler: str = "",
) -> dict[str, object]:
    """Record seeds ``seed, seed + 1, …`` until ``out`` holds ``episodes`` successes; complete episodes already there count.

    Args:
        task: name of a file in config/tasks, or path of a task file.
        options: the task's, by name.
        jobs, scheduler: see :class:`onedp_ros.parallel.Workers`. The machines of a cluster must share ``out``.

    Returns:
        Attempts, episodes kept, and a count of the failures by reason.

    Raises:
        UnknownNameError: the contract's task has no simulation.
        ValueError: an unknown option, or seeds that run into those reserved for evaluation.
        WorkerError: see :class:`onedp_ros.parallel.Workers`.
    """
    contract = task_contract(task)
    simulated = TASKS.get(contract.task)
    simulated.choose(options or {})
    out, policy = out.absolute(), policy and policy.absolute()  # workers may run in another directory
    out.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    there = tried = 0
    with Workers(jobs, scheduler) as workers, tqdm(total=episodes, unit="episode", desc=f"collect {contract.task}") as bar:
        workers.check_folder(out)
        workers.check_paths([policy] if policy else [])
        while there < episodes:
            seeds = range(seed + tried, seed + tried + episodes - there)
            if seeds[-1] >= simulated.evaluation_seeds:
                raise ValueError(
                    f"seed {seeds[-1]} is reserved for evaluation (from {simulated.evaluation_seeds} on); use a smaller --seed"
                )
            paths = [out / f"episode_{s:06d}" for s in seeds]
            new = [(s, p) for s, p in zip(seeds, paths, strict=True) if not p.exists()]
            tried += len(seeds)
            there += len(seeds) - len(new)
            bar.update(len(seeds) - len(new))
            arguments = [(contract, s, p, recoveries, options, policy, keep_unsuccessful) for s, p in new]
            names = [f"the episode of seed {s}" for s, _ in new]
            for success, reason in workers.run(_demonstrate, arguments, names):
                there += success or keep_unsuccessful
                bar.update(success or keep_unsuccessful)
                if not success:
                    failures[reason] += 1
                    bar.set_postfix(failed=sum(failures.values()))
    return {"attempts": tried, "kept": there, "failures": dict(failures)}
