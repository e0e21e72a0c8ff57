"""pnp-milk: pick a milk carton up and put it into a box (paper, section 4.2), and the scripted expert that does it."""

from __future__ import annotations

import dataclasses
import math

import mujoco
import numpy as np

from onedp_ros.contract import MAX_OPENING
from onedp_ros.geometry import gripper_down, rotation_difference, tool_yaw
from onedp_ros.settings import Range, within
from onedp_ros.tasks.base import Task, TaskOptions
from onedp_ros.twin.cell import Array, Cell, Scene, Target

AREA_CENTRE, AREA_SIZE = np.array([0.50, 0.08]), np.array([0.23, 0.20])  # m, where the carton starts
BOX = np.array([0.50, -0.24])  # m, centre of the target box
BOX_HALF, BOX_HEIGHT, WALL = 0.065, 0.05, 0.004  # m, outer half side, height, half thickness
HALF_WIDTH, HALF_HEIGHT = 0.024, 0.035  # m, the carton's body
GRASP_HEIGHT = 0.027  # m, tool point above the carton's centre: the palm clears the gable


@dataclasses.dataclass(frozen=True)
class Options(TaskOptions):
    """``max_yaw`` (rad) bounds the carton's turn; beyond pi/4 the nearest grasp of the square carton flips."""

    max_yaw: float = within(Range(0.0, math.pi, "rad", "greatest turn of the carton; pi is any"), default=math.radians(30.0))


class PnpMilk(Scene):
    """Table, carton and box. Success: the carton is in the box, at rest, and the hand has let go of it."""

    def __init__(self, options: Options | None = None) -> None:
        self._max_yaw = (options or Options()).max_yaw
        self._expert = Expert()
        self._lifted = False

    def add_to(self, spec: mujoco.MjSpec) -> None:
        geom = mujoco.mjtGeom
        box = spec.worldbody.add_body(name="box", pos=[*BOX, 0])
        blue = [0.2, 0.35, 0.7, 1]
        box.add_geom(type=geom.mjGEOM_BOX, size=[BOX_HALF, BOX_HALF, WALL], pos=[0, 0, WALL], rgba=blue)
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            size = [WALL if x else BOX_HALF, WALL if y else BOX_HALF, BOX_HEIGHT / 2]
            place = [x * (BOX_HALF - WALL), y * (BOX_HALF - WALL), BOX_HEIGHT / 2]
            box.add_geom(type=geom.mjGEOM_BOX, size=size, pos=place, rgba=blue)
        milk = spec.worldbody.add_body(name="milk", pos=[*AREA_CENTRE, HALF_HEIGHT])
        milk.add_freejoint(name="milk")
        white, label, red = [0.95, 0.95, 0.95, 1], [0.1, 0.4, 0.8, 1], [0.8, 0.1, 0.1, 1]
        w, h = HALF_WIDTH, HALF_HEIGHT
        grip = {"friction": [1.0, 0.01, 0.001], "condim": 4, "solref": [0.004, 1]}
        seen = {"contype": 0, "conaffinity": 0, "mass": 0}
        milk.add_geom(type=geom.mjGEOM_BOX, size=[w, w, h], mass=0.1, rgba=white, **grip)
        milk.add_geom(type=geom.mjGEOM_BOX, size=[w + 5e-4, w + 5e-4, 0.010], pos=[0, 0, -0.005], rgba=label, **seen)
        r, eighth = w / np.sqrt(2.0), np.pi / 8
        milk.add_geom(
            type=geom.mjGEOM_BOX,
            size=[r, w, r],
            pos=[0, 0, h],
            quat=[np.cos(eighth), 0, np.sin(eighth), 0],
            mass=0.01,
            rgba=white,
            **grip,
        )
        milk.add_geom(type=geom.mjGEOM_BOX, size=[0.002, w, 0.006], pos=[0, 0, h + 0.024], rgba=red, **seen)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        xy = AREA_CENTRE + AREA_SIZE * rng.uniform(-0.5, 0.5, 2)
        self.place(cell, np.array([*xy, HALF_HEIGHT + 5e-4]), rng.uniform(-self._max_yaw, self._max_yaw))
        self._lifted = False

    def off_path(self, cell: Cell, rng: np.random.Generator) -> None:
        kind, position, yaw, opening = _off_path(cell, rng)
        cell.data.qpos[:7] = cell.inverse_kinematics(position, gripper_down(yaw))
        cell.data.qpos[7:9] = opening / 2
        if kind == "holding":
            slip = np.array([*rng.normal(0, 0.004, 2), -GRASP_HEIGHT + rng.normal(0, 0.004)])
            self.place(cell, position + slip, yaw)
            opening = 0.0
        elif kind == "delivered":
            drop = np.array([*(BOX + rng.normal(0, 0.008, 2)), 2 * WALL + HALF_HEIGHT + 1e-3])
            self.place(cell, drop, yaw + rng.normal(0, 0.1))
        cell.hold(opening)

    def watch(self, cell: Cell) -> None:
        if not self._lifted:
            self._lifted = bool(cell.data.body("milk").xpos[2] > 0.08 and cell.touching("milk") == 2)

    def place(self, cell: Cell, position: Array, yaw: float) -> None:
        """Put the carton at (3,) m, upright, turned by yaw (rad)."""
        joint = cell.data.joint("milk")
        joint.qpos[:] = [*position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        joint.qvel[:] = 0

    def success(self, cell: Cell) -> bool:
        """The carton is inside the box, at rest, and no finger touches it."""
        speed = np.abs(cell.data.joint("milk").qvel).max()
        return bool(in_box(cell) and speed < 0.05 and cell.touching("milk") == 0)

    def failure(self, cell: Cell) -> str:
        centre, _, tilt = carton(cell)
        if centre[2] < -0.01:
            return "carton fell off the table"
        if in_box(cell):
            return "not released"
        if cell.touching("milk") == 2:
            return "still holding"
        if self._lifted:
            return "dropped outside the box"
        if tilt > 0.5:
            return "knocked over"
        return "never grasped"

    def expert(self, cell: Cell) -> Target:
        return self._expert.act(cell)

    def start(self, cell: Cell) -> tuple[float, ...]:
        centre, yaw, _ = carton(cell)
        return (*centre[:2].tolist(), yaw)


def carton(cell: Cell) -> tuple[Array, float, float]:
    """Centre (3,) m, yaw (rad) and tilt (rad from upright) of the carton."""
    body = cell.data.body("milk")
    matrix = body.xmat.reshape(3, 3)
    return body.xpos.copy(), float(np.arctan2(matrix[1, 0], matrix[0, 0])), float(np.arccos(np.clip(matrix[2, 2], -1, 1)))


def in_box(cell: Cell) -> bool:
    """Whether the carton's centre is between the walls of the box and low enough to stand on its floor."""
    centre = cell.data.body("milk").xpos
    return bool(np.all(np.abs(centre[:2] - BOX) < BOX_HALF - 2 * WALL) and centre[2] < 2 * WALL + HALF_HEIGHT + 0.015)


def grasp_yaw(yaw: float) -> float:
    """Nearest of the four yaws at which the hand fits a square carton, within ±45 degrees."""
    return (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4


class Expert:
    """Scripted expert: a feedback law from the cell's true state to the next target, so that it recovers from anywhere.

    The target lies at most ``reach`` (m) and ``turn`` (rad) ahead of the measured pose, so it is a function of what a policy
    can see, and never of the path before. Commands at the contract's control rate.
    """

    reach, turn = 0.035, 0.15
    hover, carry, release = 0.11, 0.22, 0.078  # m: over the grasp, tool height while carrying, tool height when letting go

    def act(self, cell: Cell) -> Target:
        """The target in the present state."""
        position, opening = cell.position, float(cell.fingers.sum())
        yaw = tool_yaw(cell.quaternion)
        goal, goal_yaw, goal_opening = self._goal(cell, position, yaw, opening)
        offset = goal - position
        offset *= min(1.0, self.reach / max(float(np.linalg.norm(offset)), 1e-9))
        rotation = rotation_difference(gripper_down(goal_yaw), cell.quaternion)
        turn = float(np.linalg.norm(rotation))
        if turn < self.turn:
            return position + offset, gripper_down(goal_yaw), goal_opening
        return position + offset, gripper_down(yaw + np.sign(_wrap(goal_yaw - yaw)) * self.turn), goal_opening

    def _goal(self, cell: Cell, position: Array, yaw: float, opening: float) -> tuple[Array, float, float]:
        centre, carton_yaw, tilt = carton(cell)
        holding = cell.touching("milk") == 2 and opening < 2 * HALF_WIDTH + 0.012
        # Targets aim through every threshold: a policy with an error of millimetres would otherwise wait before it for ever.
        if in_box(cell) or (holding and np.all(np.abs(position[:2] - BOX) < 0.025) and position[2] < self.release + 0.010):
            clear = opening > 0.068  # first open, then leave
            return np.array([*BOX, self.carry]) if clear else position, 0.0, MAX_OPENING
        if holding:
            over_box = float(np.linalg.norm(position[:2] - BOX))
            if over_box < 0.06:  # lower while the error vanishes
                return np.array([*BOX, self.release + 4 * max(over_box - 0.02, 0.0) - 0.006]), 0.0, 0.0
            if position[2] < self.carry - 0.08:  # straight up first
                return np.array([*position[:2], self.carry]), yaw, 0.0
            return np.array([*BOX, self.carry]), 0.0, 0.0
        best_yaw = grasp_yaw(carton_yaw)
        grasp = np.array([*centre[:2], centre[2] + GRASP_HEIGHT])
        if tilt > 0.5:  # lies on its side: nothing to teach
            return np.array([*centre[:2], 0.3]), best_yaw, MAX_OPENING
        aside = float(np.linalg.norm(position[:2] - grasp[:2]))
        height = position[2] - grasp[2]
        closing = opening < 0.068  # once begun, a grasp is finished unless the carton is lost
        near = (0.018, 0.025) if closing else (0.012, 0.014)
        at_grasp = aside < near[0] and height < near[1] and opening > 2 * HALF_WIDTH - 0.006
        if closing and not at_grasp:  # a miss: open, and rise from beside the carton
            away = aside > 0.10
            return (
                np.array([*position[:2], max(position[2], grasp[2] + self.hover)]) if not away else position,
                best_yaw,
                MAX_OPENING,
            )
        if height < 0.06 and aside > 0.025:  # beside the carton: straight up, or it is knocked over
            return np.array([*position[:2], grasp[2] + self.hover]), yaw, MAX_OPENING
        if at_grasp:
            return grasp, best_yaw, 0.0
        # Down along a funnel. The open hand fits the carton at any yaw, so height does not wait for the turn.
        funnel = min(5 * max(aside - 0.008, 0.0), self.hover) - 0.004
        return np.array([*grasp[:2], grasp[2] + funnel]), best_yaw, MAX_OPENING


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _off_path(cell: Cell, rng: np.random.Generator) -> tuple[str, Array, float, float]:
    """Where a policy's mistakes lead from a cell just reset: kind of the place, tool position (3,) m, its yaw (rad), opening (m).

    Five kinds: anywhere over the table; near the carton, turned; beside the carton, low, with the hand closed (a missed
    grasp); holding the carton anywhere on the way; over the box with the carton delivered.
    """
    centre, carton_yaw, _ = carton(cell)
    yaw = rng.uniform(-0.7, 0.7)
    opening = float(rng.choice([MAX_OPENING, 0.0, rng.uniform(0, MAX_OPENING)], p=[0.5, 0.3, 0.2]))
    above = centre[2] + GRASP_HEIGHT
    kind = rng.choice(["anywhere", "near", "missed", "holding", "delivered"], p=[0.2, 0.35, 0.15, 0.2, 0.1])
    if kind == "anywhere":
        position = np.array([*rng.uniform([0.34, -0.30], [0.66, 0.22]), rng.uniform(0.14, 0.36)])
    elif kind == "near":
        yaw = grasp_yaw(carton_yaw) + rng.normal(0, 0.25)
        position = np.array([*(centre[:2] + rng.normal(0, 0.03, 2)), above + rng.uniform(0.055, 0.16)])
    elif kind == "missed":
        away = rng.uniform(-np.pi, np.pi)
        position = np.array(
            [*(centre[:2] + rng.uniform(0.065, 0.09) * np.array([np.cos(away), np.sin(away)])), above + rng.uniform(-0.01, 0.05)]
        )
        opening = float(rng.choice([0.0, MAX_OPENING], p=[0.7, 0.3]))
        yaw = away + np.pi / 2  # the fingers' line points past the carton
        yaw = float(np.clip((yaw + np.pi / 2) % np.pi - np.pi / 2, -0.9, 0.9))
    elif kind == "holding":
        along = rng.uniform()
        xy = (1 - along) * centre[:2] + along * BOX + rng.normal(0, 0.03, 2)
        position = np.array([*xy, rng.uniform(0.13, 0.26)])
        opening = 2 * HALF_WIDTH + 1e-3
    else:
        position = np.array([*(BOX + rng.normal(0, 0.012, 2)), rng.uniform(0.075, 0.24)])
        yaw, opening = rng.normal(0, 0.15), float(rng.uniform(0.055, MAX_OPENING))
    return kind, position, yaw, opening


TASK = Task(scene=PnpMilk, options=Options, start_labels=("x (m)", "y (m)", "yaw (rad)"))
