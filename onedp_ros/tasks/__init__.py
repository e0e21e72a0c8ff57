"""Simulated tasks, one file each. Importing this package registers each as a gymnasium environment: ``pick_cube.py`` is
``onedp_ros/PickCube-v0``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium

from onedp_ros.registry import Registry

if TYPE_CHECKING:
    from onedp_ros.tasks.base import Task

TASKS: Registry[Task] = Registry(
    "simulated task",
    __name__,
    "TASK",
    besides=("base", "collect", "drive", "environment", "pick_and_place", "timed_drive"),
)


def environment_id(task: str) -> str:
    """The gymnasium id of a task's environment."""
    return f"onedp_ros/{''.join(word[:1].upper() + word[1:] for word in task.split('_'))}-v0"


for _task in TASKS.names():
    gymnasium.register(environment_id(_task), entry_point="onedp_ros.tasks.environment:TaskEnv", kwargs={"task": _task})
