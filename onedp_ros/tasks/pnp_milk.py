"""pnp-milk: pick up a milk carton and put it into a box (paper, section 4.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import mujoco
import numpy as np

from onedp_ros.settings import Range, within
from onedp_ros.tasks.base import Task, TaskOptions
from onedp_ros.tasks.pick_and_place import GRIP, MAX_YAW, SEEN, START_LABELS, PickAndPlace, Thing, add_box
from onedp_ros.twin.cell import Cell

HALF_WIDTH, HALF_HEIGHT = 0.024, 0.035  # m, the carton's body


def _add_carton(body: Any) -> None:
    geom = mujoco.mjtGeom
    white, label, red = [0.95, 0.95, 0.95, 1], [0.1, 0.4, 0.8, 1], [0.8, 0.1, 0.1, 1]
    w, h = HALF_WIDTH, HALF_HEIGHT
    body.add_geom(type=geom.mjGEOM_BOX, size=[w, w, h], mass=0.1, rgba=white, **GRIP)
    body.add_geom(type=geom.mjGEOM_BOX, size=[w + 5e-4, w + 5e-4, 0.010], pos=[0, 0, -0.005], rgba=label, **SEEN)
    r, eighth = w / np.sqrt(2.0), np.pi / 8
    gable = [np.cos(eighth), 0, np.sin(eighth), 0]
    body.add_geom(type=geom.mjGEOM_BOX, size=[r, w, r], pos=[0, 0, h], quat=gable, mass=0.01, rgba=white, **GRIP)
    body.add_geom(type=geom.mjGEOM_BOX, size=[0.002, w, 0.006], pos=[0, 0, h + 0.024], rgba=red, **SEEN)


CARTON = Thing(
    name="milk",
    add_geoms=_add_carton,
    half_width=HALF_WIDTH,
    half_length=HALF_WIDTH,
    half_height=HALF_HEIGHT,
    grasp_height=0.027,  # the palm clears the gable
    release=0.078,
)


@dataclasses.dataclass(frozen=True)
class Options(TaskOptions):
    """``max_yaw`` (rad) bounds the carton's yaw; beyond pi/4 the nearest grasp of the square carton flips."""

    max_yaw: float = within(Range(0.0, math.pi, "rad", "largest yaw of the carton; pi allows any"), default=MAX_YAW)


class PnpMilk(PickAndPlace):
    """Table, carton and box. Success: the carton is in the box, at rest and released."""

    thing, noun = CARTON, "carton"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__()
        self._max_yaw = (options or Options()).max_yaw

    def add_to(self, spec: mujoco.MjSpec) -> None:
        add_box(spec)
        CARTON.add_to(spec)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        self.place_at_random(cell, rng, self._max_yaw)


TASK = Task(scene=PnpMilk, options=Options, start_labels=START_LABELS)
