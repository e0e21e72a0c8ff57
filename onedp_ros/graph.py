"""The processes of the graph of a task, in one place for ``ros2 launch`` and for ``onedp run``. No ROS here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onedp_ros.resources import resource

ROBOTS = ("twin",)
METHODS = ("onedp_s", "onedp_d", "dp_ddim10", "dp_ddim1", "dp_ddpm100")


@dataclasses.dataclass(frozen=True)
class NodeProcess:
    """One node, one process: ``executable`` of this package, which is also the module's name in ``onedp_ros.nodes``."""

    name: str
    executable: str
    parameters: Mapping[str, Any]


def task_graph(
    task: str,
    *,
    robot: str = "twin",
    method: str = "onedp_s",
    engine: str = "auto",
    model: str | Path | None = None,
    seed: int = 0,
    twin_seed: int = 100_000,
    enabled: bool = True,
    threads: int = 0,
) -> list[NodeProcess]:
    """Everything that runs for a task, in the order of starting.

    Args:
        task: name of a file in ``config/tasks``.
        robot: what moves, one of :data:`ROBOTS`; its limits are in ``config/robot/<robot>.yaml``.
        method: sampler or generator, as of ``onedp evaluate``.
        engine: inference engine.
        model: directory of the policy; default: the released one of the method.
        seed: of the policy's noise.
        twin_seed: of the twin's first episode.
        enabled: whether the arm may move from the start, or waits for ``action_node``'s service ``~/enable``.
        threads: processor threads of the engine; 0: its own choice.

    Raises:
        ValueError: an unknown robot.
        FileNotFoundError: no such task, or no released policy for the method.
    """
    if robot not in ROBOTS:
        raise ValueError(f"unknown robot '{robot}', expected one of {', '.join(ROBOTS)}")
    resource("config", "tasks", f"{task}.yaml")
    if model is None:
        model = released(task, method)
    return [
        NodeProcess("twin", "twin_node", {"task": task, "seed": twin_seed}),
        NodeProcess("observation_node", "observation_node", {"task": task}),
        NodeProcess(
            "policy_node",
            "policy_node",
            {
                "task": task,
                "model": str(Path(model).resolve()),
                "method": method,
                "engine": engine,
                "threads": threads,
                "seed": seed,
                "autostart": True,
            },
        ),
        NodeProcess("action_node", "action_node", {"task": task, "robot": robot, "enabled": enabled}),
    ]


def released(task: str, method: str) -> Path:
    """The released bundle that serves a method: the samplers of the teacher share its weights.

    Raises:
        ValueError: no such method.
        FileNotFoundError: nothing was released for it.
    """
    if method not in METHODS and not re.fullmatch(r"dp_ddim\d+", method):
        raise ValueError(f"unknown method '{method}', expected one of {', '.join(METHODS)}, or dp_ddimN")
    return resource("models", task, "teacher" if method.startswith("dp_") else method)


def graph_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What nodes need besides ``environment``: shared memory large enough for frames, unless the user chose a profile."""
    if "FASTRTPS_DEFAULT_PROFILES_FILE" in environment or "FASTDDS_DEFAULT_PROFILES_FILE" in environment:
        return {}
    return {"FASTRTPS_DEFAULT_PROFILES_FILE": str(resource("config", "dds", "shared_memory.xml"))}
