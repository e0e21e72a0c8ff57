"""Demonstrations of the scripted expert in the twin, one bag each, with the topics and types of a real recording."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.contract import Contract, task_contract
from onedp_ros.control.joints import ARM_JOINTS
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.resources import task_folder
from onedp_ros.tasks.drive import drive
from onedp_ros.tasks.pnp_milk import EVALUATION_SEEDS, Expert, PnpMilk
from onedp_ros.twin.cell import FINGER_JOINTS
from onedp_ros.twin.stepped import Frame, SteppedCell

MAX_STEPS = 400
LINGER_STEPS = 10  # after success, so that a policy learns to stay


POLICY_TIME = 12.0  # s, the latest moment at which the expert takes over from a policy
POLICY_DRIVES = ((8, 0), (1, 4), (1, 6))  # actions executed of each chunk, and how many steps ahead


class Nudge:
    """A hand that pushes the arm now and then: Ornstein-Uhlenbeck force (N) and torque about z (Nm)."""

    def __init__(self, rng: np.random.Generator, force: float = 7.0, torque: float = 2.0, correlation: float = 0.85) -> None:
        self._rng, self._scale, self._correlation = rng, np.array([force, force, force, torque]), correlation
        self._value = np.zeros(4)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Force (3,) and torque (3,) for the next control step."""
        fresh = np.sqrt(1 - self._correlation**2) * self._rng.normal(size=4)
        self._value = self._correlation * self._value + fresh
        scaled = self._scale * self._value
        return scaled[:3], np.array([0.0, 0.0, scaled[3]])


def take_over(stepped: SteppedCell, predictor: Any, seed: int, rng: np.random.Generator) -> None:
    """Let a policy drive until a random moment before it succeeds, so that the expert begins where the policy's own mistakes lead.

    It executes its chunks in one of these ways: several actions of each, or as a live graph does. An interactive imitation as of
    HG-DAgger (https://arxiv.org/abs/1810.02890): what the policy did is not recorded.
    """
    action_steps, ahead = POLICY_DRIVES[int(rng.integers(len(POLICY_DRIVES)))]
    latest = POLICY_TIME
    while True:
        moment = rng.uniform(0.0, latest)
        stepped.reset(np.random.default_rng(seed))
        predictor.reset(seed)
        driving = drive(predictor, stepped, action_steps, ahead)
        while stepped.cell.time < moment and not stepped.success():
            next(driving)
        if not stepped.success():
            return
        latest = stepped.cell.time


def demonstrate(
    contract: Contract,
    seed: int,
    path: Path,
    recoveries: float,
    max_yaw: float,
    policy: Path | None = None,
    keep_unsuccessful: bool = False,
) -> tuple[bool, str]:
    """Record the demonstration of one seed; only a success stays, by default. Returns success and, if none, the reason.

    A share ``recoveries`` of the seeds starts off the expert's path, and half of all are nudged on the way, so that a policy
    sees states that its own errors will lead to, with the right action in them. With ``policy``, that share starts where the
    policy led (:func:`take_over`).
    """
    rng = np.random.default_rng(seed)
    recovery, nudged = bool(rng.uniform() < recoveries), bool(rng.uniform() < 0.5)
    expert, nudge = Expert(), Nudge(rng)
    metadata = {"seed": seed, "recovery": recovery, "nudged": nudged, "operator": "scripted expert", "robot": "twin"}
    if recovery and policy is not None:
        metadata["led_by"] = str(policy)
    stepped = SteppedCell(contract, PnpMilk(max_yaw))
    if recovery and policy is not None:
        predictor = _load(policy)
        contract.require_same(predictor.contract, "the task", str(policy))
        take_over(stepped, predictor, seed, rng)
    else:
        stepped.reset(rng, recovery)
    writer = EpisodeWriter(path, contract, metadata)

    def on_state(stamp: int) -> None:
        cell = stepped.cell
        writer.add_joint_state(stamp, [*ARM_JOINTS, *FINGER_JOINTS], cell.data.qpos[:9], cell.data.qvel[:9])
        writer.add_pose(stamp, cell.position, cell.quaternion)

    def on_frame(frame: Frame) -> None:
        if frame.stamp >= 0:
            writer.add_image(frame.camera, frame.stamp, stepped.draw(frame))

    try:
        stepped.watch(on_state, on_frame)
        linger = 0
        for _ in range(MAX_STEPS):
            target = expert.act(stepped.cell)
            writer.add_target(stepped.stamp, *target)
            if nudged:
                stepped.cell.push(*nudge.step())
            stepped.step(*target)
            linger += stepped.success()
            if linger >= LINGER_STEPS:
                break
        success = stepped.success()
        if success or keep_unsuccessful:
            writer.close(success=success)
        else:
            writer.discard()
        return success, "" if success else stepped.failure()
    finally:
        stepped.close()


@functools.cache
def _load(policy: Path) -> Any:
    from onedp_ros.policy.inference import load_predictor

    return load_predictor(policy, threads=1)


def collect(
    out: Path,
    episodes: int,
    *,
    task: str = "pnp_milk",
    seed: int = 0,
    recoveries: float = 0.5,
    max_yaw: float = PnpMilk.max_yaw,
    policy: Path | None = None,
    keep_unsuccessful: bool = False,
    jobs: int = 1,
) -> dict[str, object]:
    """Record until ``episodes`` successes of the seeds ``seed, seed + 1, …`` lie in ``out``; whole episodes there are kept.

    Returns attempts, episodes kept and the failures' reasons. ValueError when the seeds reach those of evaluations.
    """
    contract = task_contract(task)
    out.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    kept = tried = 0
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=episodes, unit="episode", desc=f"collect {task}") as bar,
    ):
        while kept < episodes:
            seeds = range(seed + tried, seed + tried + episodes - kept)
            if seeds[-1] >= EVALUATION_SEEDS:
                raise ValueError(
                    f"seed {seeds[-1]} belongs to evaluations, which begin at {EVALUATION_SEEDS}; take a smaller --seed"
                )
            paths = [out / f"episode_{s:06d}" for s in seeds]
            new = [(s, p) for s, p in zip(seeds, paths, strict=True) if not p.exists()]
            tried += len(seeds)
            kept += len(seeds) - len(new)
            bar.update(len(seeds) - len(new))
            runs = [pool.submit(demonstrate, contract, s, p, recoveries, max_yaw, policy, keep_unsuccessful) for s, p in new]
            for run in runs:
                success, reason = run.result()
                kept += success or keep_unsuccessful
                bar.update(success or keep_unsuccessful)
                if not success:
                    failures[reason] += 1
                    bar.set_postfix(failed=sum(failures.values()))
    return {"attempts": tried, "kept": kept, "failures": dict(failures)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp collect", description=__doc__)
    parser.add_argument("task", choices=["pnp_milk"])
    parser.add_argument("--episodes", type=int, default=100, help="successes to record (default 100)")
    parser.add_argument("--out", type=Path, default=None, help="folder of bags (default out/<task>/bags)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--recoveries", type=float, default=0.5, help="share of episodes that start off the expert's path")
    parser.add_argument("--policy", type=Path, help="bundle whose own mistakes those episodes begin with, to improve it")
    parser.add_argument("--max-yaw", type=float, default=30.0, help="greatest turn of the carton, degrees (180: any)")
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
        max_yaw=float(np.deg2rad(args.max_yaw)),
        policy=args.policy,
        keep_unsuccessful=args.keep_unsuccessful,
        jobs=args.jobs,
    )
    print(f"{summary['kept']} episodes of {summary['attempts']} attempts in {out}; failures: {summary['failures'] or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
