"""What a study runs: tasks, methods, their policies and their starts, all checked before the first round begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onedp_ros.config import ConfigError
from onedp_ros.contract import task_contract
from onedp_ros.evaluation.study.folder import program
from onedp_ros.evaluation.study.series import Series
from onedp_ros.evaluation.study.starts import Grid, find_starts
from onedp_ros.policy.checkpoint import find_released, load_sampler
from onedp_ros.policy.methods import find_method
from onedp_ros.resources import names_of_files
from onedp_ros.tasks import TASKS

METHODS = ("dp_ddim10", "onedp_s", "onedp_d")  # the paper's, the teacher first: others are compared with it


def plan(
    tasks: Sequence[str], methods: Sequence[str], modes: Sequence[str], rounds: int | None = None, model: Path | None = None
) -> list[Series]:
    """The series of rounds, by mode, task and method, in the order in which they run.

    Args:
        tasks: names of files in config/tasks, or paths of task files; empty: all tasks in the cell with released policies.
        methods: empty: :data:`METHODS`.
        modes: see :class:`Series`.
        rounds: per task and method; default: one per cell of the task's grid.
        model: directory of the policy, for one task and one method; default: the released ones.

    Raises:
        UnknownNameError: an unknown task or method.
        FileNotFoundError: no such task file, or no policy is released.
        ValueError: a policy is damaged or has another contract or method; a task has no scene; more rounds than starts.
    """
    methods = methods or METHODS
    for method in methods:
        find_method(method)
    tasks = tasks or _released_tasks(methods)
    if model is not None and (len(tasks), len(methods)) != (1, 1):
        raise ConfigError(f"the model {model} is for one task and one method; give one --task and one --method with it")
    found = []
    for name in tasks:
        contract = task_contract(name)
        task = TASKS.get(contract.task)
        policies = [(method, Path(model) if model else find_released(name, method)) for method in methods]
        digests = [load_sampler(path, method, contract)[1] for method, path in policies]
        grid = _shortened(find_starts(task), rounds, name)
        found += [
            Series("", name, contract, method, path, digest, grid, task.max_time)
            for (method, path), digest in zip(policies, digests, strict=True)
        ]
    return [dataclasses.replace(series, mode=mode) for mode in modes for series in found]


def settings(plan: Sequence[Series], machine: dict[str, Any], engine: str) -> dict[str, Any]:
    """The settings of a study, for its folder."""
    tasks = {
        series.task: {"contract": series.contract.to_dict(), "max_time_s": series.max_time, "grid": series.grid.to_dict()}
        for series in plan
    }
    policies = {f"{series.task} {series.method}": series.digests for series in plan}
    return {**program(), "machine": machine, "engine": engine, "policies": policies, "tasks": tasks}


def _released_tasks(methods: Sequence[str]) -> list[str]:
    found = []
    for name in TASKS.names():
        try:
            if name in names_of_files("tasks") and TASKS.get(name).scene is not None:
                [find_released(name, method) for method in methods]
                found.append(name)
        except FileNotFoundError:
            continue
    if not found:
        raise FileNotFoundError(f"no task has released policies for {', '.join(methods)}; give --task, --method and --model")
    return found


def _shortened(grid: Grid, rounds: int | None, task: str) -> Grid:
    count = grid.cells if rounds is None else rounds
    if not 1 <= count <= len(grid.starts):
        raise ConfigError(f"{count} rounds of {task}: expected from 1 to {len(grid.starts)}")
    return dataclasses.replace(grid, starts=grid.starts[:count])
