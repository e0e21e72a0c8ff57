"""pnp-anything: pick up one of eleven objects and put it into a box whose position varies (paper, section 4.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np

from onedp_ros.settings import Choice, within
from onedp_ros.tasks.base import Task, TaskOptions
from onedp_ros.tasks.pick_and_place import GRIP, SEEN, START_LABELS, PickAndPlace, Thing, add_box
from onedp_ros.tasks.pnp_milk import CARTON
from onedp_ros.twin.cell import Array, Cell

BOX_RANGE = 0.08  # m, the box's largest offset from its nominal position along x
ANY = "any"
PARKED = np.array([0.1, -0.4, -0.4])  # m: below the table, out of view of all cameras; objects are parked 12 cm apart
LEAST_RELEASE = 0.066  # m, tool height at which the open fingers clear the walls of the box

Geom = tuple[Any, list[float], list[float], float, float, list[float]]
"""Type, size (m), position (m), yaw (rad), mass (kg), colour. Geoms without mass are visual only."""


def _block(x: float, y: float, z: float, colour: list[float], mass: float = 0.0, at: Any = (0, 0, 0), yaw: float = 0.0) -> Geom:
    """A box with half sizes ``x``, ``y`` and ``z`` (m)."""
    return (mujoco.mjtGeom.mjGEOM_BOX, [x, y, z], list(at), yaw, mass, colour)


def _disc(radius: float, z: float, colour: list[float], mass: float = 0.0, at: Any = (0, 0, 0)) -> Geom:
    """An upright cylinder with half height ``z`` (m)."""
    return (mujoco.mjtGeom.mjGEOM_CYLINDER, [radius, z, 0], list(at), 0.0, mass, colour)


def _prism(sides: int, apothem: float, z: float, colour: list[float], mass: float) -> Iterator[Geom]:
    """An upright prism on a regular polygon with an even number of sides, two of them facing y: one block per pair of sides."""
    pairs = sides // 2
    for i in range(pairs):
        yield _block(apothem * math.tan(math.pi / sides), apothem, z, colour, mass / pairs, yaw=i * math.pi / pairs)


def _add_geoms(geoms: Sequence[Geom], body: Any) -> None:
    for kind, size, place, yaw, mass, colour in geoms:
        touched = {"mass": mass, **GRIP} if mass else SEEN
        turned = [math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
        body.add_geom(type=kind, size=size, pos=place, quat=turned, rgba=[*colour, 1], **touched)


def _thing(name: str, width: float, length: float, height: float, grasp: float, *geoms: Geom) -> Thing:
    """An object of ``width`` and ``length`` (m) where it is grasped, ``height`` tall, grasped ``grasp`` (m) above the table."""
    release = max(grasp + 0.016, LEAST_RELEASE)
    return Thing(name, partial(_add_geoms, geoms), width / 2, length / 2, height / 2, grasp - height / 2, release)


_ORANGE, _WHITE, _GREEN, _GOLD, _YELLOW = [0.95, 0.5, 0.05], [0.95] * 3, [0.1, 0.5, 0.2], [0.85, 0.65, 0.15], [0.95, 0.85, 0.2]
_RED, _PURPLE, _COFFEE, _CYAN, _BLACK = [0.85, 0.1, 0.1], [0.5, 0.2, 0.65], [0.15, 0.08, 0.05], [0.1, 0.75, 0.8], [0.06] * 3
_MAROON, _STEEL, _LIME = [0.4, 0.05, 0.12], [0.32, 0.35, 0.4], [0.6, 0.9, 0.1]
_ROSE, _PINK = [0.85, 0.25, 0.5], [1.0, 0.65, 0.8]

THINGS = {
    thing.name: thing
    for thing in (
        CARTON,
        _thing(  # a pack of juice with its straw
            *("juice", 0.038, 0.060, 0.084, 0.057),
            _block(0.030, 0.019, 0.042, _ORANGE, 0.13),
            _block(0.0305, 0.0195, 0.008, _WHITE, at=(0, 0, 0.012)),
            _disc(0.003, 0.006, _WHITE, at=(0.02, 0, 0.048)),
        ),
        _thing(  # a hexagonal tin of tea
            *("tin", 0.046, 0.0531, 0.060, 0.042),
            *_prism(6, 0.023, 0.030, _GREEN, 0.15),
            _disc(0.018, 0.002, _GOLD, at=(0, 0, 0.032)),
        ),
        _thing(
            *("sponge", 0.045, 0.076, 0.035, 0.0255),
            _block(0.038, 0.0225, 0.0125, _YELLOW, 0.015, at=(0, 0, 0.005)),
            _block(0.038, 0.0225, 0.005, _GREEN, 0.005, at=(0, 0, -0.0125)),
        ),
        _thing(  # a toy brick with eight studs
            *("brick", 0.034, 0.064, 0.038, 0.028),
            _block(0.032, 0.017, 0.019, _RED, 0.05),
            *(_disc(0.005, 0.003, _RED, at=(x, y, 0.022)) for x in (-0.024, -0.008, 0.008, 0.024) for y in (-0.0085, 0.0085)),
        ),
        _thing(
            *("mug", 0.055, 0.085, 0.045, 0.031),
            *_prism(8, 0.0275, 0.0225, _PURPLE, 0.16),
            _disc(0.021, 0.001, _COFFEE, at=(0, 0, 0.0225)),
            _block(0.010, 0.005, 0.014, _PURPLE, 0.01, at=(0.0365, 0, 0)),
        ),
        _thing(  # held at its waist
            *("spool", 0.028, 0.080, 0.045, 0.028),
            _block(0.028, 0.014, 0.014, _BLACK, 0.02),
            *(_block(0.006, 0.0225, 0.0225, _CYAN, 0.025, at=(x, 0, 0)) for x in (-0.034, 0.034)),
        ),
        _thing(  # a block on a plate
            *("plinth", 0.034, 0.034, 0.054, 0.046),
            _block(0.030, 0.030, 0.007, _ROSE, 0.03, at=(0, 0, -0.020)),
            _block(0.017, 0.017, 0.020, _PINK, 0.03, at=(0, 0, 0.007)),
        ),
        _thing(  # held at its neck; the square foot keeps it from rolling
            *("pawn", 0.026, 0.026, 0.066, 0.030),
            _block(0.024, 0.024, 0.005, _BLACK, 0.02, at=(0, 0, -0.028)),
            _disc(0.013, 0.016, _BLACK, 0.01, at=(0, 0, -0.007)),
            _block(0.013, 0.013, 0.012, _GOLD, 0.01, at=(0, 0, 0.021), yaw=math.pi / 4),
        ),
        _thing(  # a deck of cards, upright
            *("cards", 0.025, 0.056, 0.072, 0.045),
            _block(0.028, 0.0125, 0.036, _MAROON, 0.06),
            _block(0.0285, 0.013, 0.007, _WHITE, at=(0, 0, 0.015)),
        ),
        _thing(  # the heaviest
            *("weight", 0.050, 0.050, 0.050, 0.032),
            _block(0.025, 0.025, 0.020, _STEEL, 0.15, at=(0, 0, -0.005)),
            _block(0.010, 0.010, 0.005, _LIME, 0.01, at=(0, 0, 0.020)),
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options(TaskOptions):
    """``object``: the object of every episode; any: drawn for each."""

    object: str = within(Choice((ANY, *THINGS), "the object; any is drawn for each episode"), default=ANY)


class PnpAnything(PickAndPlace):
    """Table, objects and a box at a random position along x. Objects that the episode does not use are parked below the table."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__()
        chosen = (options or Options()).object
        self._things = [*THINGS.values()] if chosen == ANY else [THINGS[chosen]]

    def add_to(self, spec: mujoco.MjSpec) -> None:
        # Rendering restores joint positions only, so the box has a joint; nothing but a reset moves it.
        add_box(spec).add_joint(name="box", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[1, 0, 0], damping=1e5, armature=1e3)
        spec.add_exclude(bodyname1="world", bodyname2="box")
        for thing in self._things:
            thing.add_to(spec)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        self.thing = self._things[rng.integers(len(self._things))]
        cell.data.joint("box").qpos[0] = rng.uniform(-BOX_RANGE, BOX_RANGE)
        self.place_at_random(cell, rng)
        self._park(cell)

    def _park(self, cell: Cell) -> None:
        """Park all objects but this episode's; with gravity compensated, they stay there."""
        for i, thing in enumerate(self._things):
            parked = thing is not self.thing
            cell.model.body_gravcomp[cell.model.body(thing.name).id] = parked
            if parked:
                cell.data.joint(thing.name).qpos[:3] = PARKED + 0.12 * np.array([i % 4, i // 4, 0])

    def score(self, cell: Cell) -> float:
        """0.5 for lifting the object, 1 for success."""
        return 1.0 if self.success(cell) else 0.5 * self._lifted

    def start(self, cell: Cell) -> tuple[float, ...]:
        box: Array = self.box(cell)
        return (*super().start(cell), float([*THINGS].index(self.thing.name)), float(box[0]))


TASK = Task(scene=PnpAnything, options=Options, start_labels=(*START_LABELS, "object", "box x (m)"))
