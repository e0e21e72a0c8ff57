"""A task that no file of onedp_ros has: bring the tool to a mark. Its cameras are other ones than pnp_milk's."""

import dataclasses
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml

from onedp_ros.contract import task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.settings import Range, within
from onedp_ros.tasks.base import Task, TaskOptions
from onedp_ros.twin.cell import Cell, Scene, Target, looking


@dataclasses.dataclass(frozen=True)
class Options(TaskOptions):
    """``height`` (m) of the mark."""

    height: float = within(Range(0.1, 0.4, "m", "where the arm gets to"), default=0.2)


class Reach(Scene):
    def __init__(self, options: Options) -> None:
        self.mark = np.array([0.5, 0.0, options.height])

    def add_to(self, spec: mujoco.MjSpec) -> None:
        spec.worldbody.add_site(name="mark", pos=self.mark.tolist(), size=[0.02] * 3, rgba=[1, 0, 0, 1])
        spec.worldbody.add_camera(name="side", pos=[0.5, 0.9, 0.5], quat=looking([0.5, 0.9, 0.5], [0.5, 0.0, 0.2]), fovy=45)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        self.mark[:2] = rng.uniform([0.4, -0.1], [0.6, 0.1])

    def success(self, cell: Cell) -> bool:
        return bool(np.linalg.norm(cell.position - self.mark) < 0.02)

    def score(self, cell: Cell) -> float:
        return float(np.exp(-np.linalg.norm(cell.position - self.mark)))

    def failure(self, cell: Cell) -> str:
        return "too far away"

    def expert(self, cell: Cell) -> Target:
        return self.mark, gripper_down(0.0), 0.08

    def start(self, cell: Cell) -> tuple[float, ...]:
        return (float(self.mark[0]), float(self.mark[1]))


TASK = Task(scene=Reach, options=Options, max_time=5.0, start_labels=("x (m)", "y (m)"))


def contract_file(folder: Path, **changes: Any) -> Path:
    """A task file of it."""
    cameras = {n: {"topic": f"{n}/image", "height": h, "width": w} for n, h, w in (("side", 64, 96), ("wrist", 48, 64))}
    data = {**task_contract("pnp_milk").to_dict(), "task": "reach", "cameras": cameras, "crop": [40, 56], **changes}
    path = folder / "reach.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
