"""Scene and scripted expert shared by the tasks that pick up an object and put it into a box."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from onedp_ros.contract import MAX_OPENING
from onedp_ros.geometry import gripper_down, rotation_difference, tool_yaw
from onedp_ros.twin.cell import Array, Cell, Scene, Target

AREA_CENTRE, AREA_SIZE = np.array([0.50, 0.08]), np.array([0.23, 0.20])  # m, where objects start
BOX = np.array([0.50, -0.24])  # m, centre of the target box
BOX_HALF, BOX_HEIGHT, WALL = 0.065, 0.05, 0.004  # m, outer half side, height, half thickness
MAX_YAW = math.radians(30.0)
GRIP = {"friction": [1.0, 0.01, 0.001], "condim": 4, "solref": [0.004, 1]}  # contact parameters of graspable geoms
SEEN = {"contype": 0, "conaffinity": 0, "mass": 0}  # visual-only geoms
START_LABELS = ("x (m)", "y (m)", "yaw (rad)")


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object to be picked up. Its body is called ``name``; the fingers close along the body's y axis.

    Args:
        add_geoms: adds its geoms to the body, whose origin is ``half_height`` (m) above the lowest point. Must be picklable (a
            module-level function): scenes are sent to the process that renders.
        half_width, half_length: m, half its size along y and x at the height of the fingers. If equal, it can be grasped along x
            too.
        grasp_height: m, tool center point above the origin in a grasp, at most 4 cm below the top: the clearance under the palm.
        release: m, tool height above the table at release.
    """

    name: str
    add_geoms: Callable[[Any], None]
    half_width: float
    half_length: float
    half_height: float
    grasp_height: float
    release: float

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the body to the world, free to move."""
        body = spec.worldbody.add_body(name=self.name, pos=[*AREA_CENTRE, self.half_height])
        body.add_freejoint(name=self.name)
        self.add_geoms(body)

    def grasp_yaw(self, yaw: float) -> float:
        """The tool yaw (rad) closest to zero at which the hand can grasp the object at ``yaw``."""
        half = np.pi / 4 if self.half_length == self.half_width else np.pi / 2
        return float((yaw + half) % (2 * half) - half)


def add_box(spec: mujoco.MjSpec) -> Any:
    """Add the target box to the world. Returns its body."""
    geom = mujoco.mjtGeom
    box = spec.worldbody.add_body(name="box", pos=[*BOX, 0])
    blue = [0.2, 0.35, 0.7, 1]
    box.add_geom(type=geom.mjGEOM_BOX, size=[BOX_HALF, BOX_HALF, WALL], pos=[0, 0, WALL], rgba=blue)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        size = [WALL if x else BOX_HALF, WALL if y else BOX_HALF, BOX_HEIGHT / 2]
        place = [x * (BOX_HALF - WALL), y * (BOX_HALF - WALL), BOX_HEIGHT / 2]
        box.add_geom(type=geom.mjGEOM_BOX, size=size, pos=place, rgba=blue)
    return box


class PickAndPlace(Scene):
    """An object and a box. Success: the object is in the box, at rest and released.

    Attributes:
        thing: the object of this episode.
        noun: its name in messages.
    """

    thing: Thing
    noun = "object"

    def __init__(self) -> None:
        self._expert = Expert(self)
        self._lifted = self._missed = False

    def place_at_random(self, cell: Cell, rng: np.random.Generator, max_yaw: float = MAX_YAW) -> None:
        """Put the object at random in the area, upright, yawed by up to ``max_yaw`` (rad), and clear the last episode's state."""
        xy = AREA_CENTRE + AREA_SIZE * rng.uniform(-0.5, 0.5, 2)
        self.place(cell, np.array([*xy, self.thing.half_height + 5e-4]), rng.uniform(-max_yaw, max_yaw))
        self._lifted = self._missed = False

    def off_path(self, cell: Cell, rng: np.random.Generator) -> None:
        thing = self.thing
        kind, position, yaw, opening = _off_path(self, cell, rng)
        cell.data.qpos[:7] = cell.inverse_kinematics(position, gripper_down(yaw))
        cell.data.qpos[7:9] = opening / 2
        if kind == "holding":
            slip = np.array([*rng.normal(0, 0.004, 2), -thing.grasp_height + rng.normal(0, 0.004)])
            self.place(cell, position + slip, yaw)
            opening = 0.0
        elif kind == "delivered":
            drop = np.array([*(self.box(cell) + rng.normal(0, 0.008, 2)), 2 * WALL + thing.half_height + 1e-3])
            self.place(cell, drop, yaw + rng.normal(0, 0.1))
        cell.hold(opening)

    def watch(self, cell: Cell) -> None:
        # Searching the contacts costs most, and is seldom needed.
        if not self._lifted and cell.data.body(self.thing.name).xpos[2] > 0.08:
            self._lifted = cell.touching(self.thing.name) == 2
        if not self._missed and cell.fingers.sum() < 2 * self.thing.half_width - 0.008:
            self._missed = cell.touching(self.thing.name) < 2

    def place(self, cell: Cell, position: Array, yaw: float) -> None:
        """Put the object at ``position`` (3,) m, upright, at ``yaw`` (rad)."""
        joint = cell.data.joint(self.thing.name)
        joint.qpos[:] = [*position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        joint.qvel[:] = 0

    def pose(self, cell: Cell) -> tuple[Array, float, float]:
        """Origin (3,) m, yaw (rad) and tilt (rad from upright) of the object."""
        body = cell.data.body(self.thing.name)
        matrix = body.xmat.reshape(3, 3)
        yaw, tilt = np.arctan2(matrix[1, 0], matrix[0, 0]), np.arccos(np.clip(matrix[2, 2], -1, 1))
        return body.xpos.copy(), float(yaw), float(tilt)

    def box(self, cell: Cell) -> Array:
        """Centre (2,) m of the box."""
        return cell.data.body("box").xpos[:2].copy()

    def in_box(self, cell: Cell) -> bool:
        """Whether the object's origin is between the box's walls and low enough for it to stand on the floor."""
        centre = cell.data.body(self.thing.name).xpos
        between = np.all(np.abs(centre[:2] - self.box(cell)) < BOX_HALF - 2 * WALL)
        return bool(between and centre[2] < 2 * WALL + self.thing.half_height + 0.015)

    def success(self, cell: Cell) -> bool:
        speed = np.abs(cell.data.joint(self.thing.name).qvel).max()
        return bool(self.in_box(cell) and speed < 0.05 and cell.touching(self.thing.name) == 0)

    def failure(self, cell: Cell) -> str:
        centre, _, tilt = self.pose(cell)
        if centre[2] < -0.01:
            return f"{self.noun} fell off the table"
        if self.in_box(cell):
            return "not released"
        if cell.touching(self.thing.name) == 2:
            return "still holding"
        if self._lifted:
            return "dropped outside the box"
        if tilt > 0.5:
            return "knocked over"
        return "missed grasp" if self._missed else "never grasped"

    def expert(self, cell: Cell) -> Target:
        return self._expert.act(cell)

    def start(self, cell: Cell) -> tuple[float, ...]:
        centre, yaw, _ = self.pose(cell)
        return (*centre[:2].tolist(), yaw)


class Expert:
    """Scripted expert: feedback from the cell's true state to the next target, so that it recovers from any state.

    The target lies at most ``reach`` (m) and ``turn`` (rad) ahead of the measured pose, so it depends only on what a policy can
    observe, not on the path so far. Commands at the contract's control rate.
    """

    reach, turn = 0.035, 0.15
    hover, carry = 0.11, 0.22  # m: above the grasp, tool height while carrying

    def __init__(self, scene: PickAndPlace) -> None:
        self._scene = scene

    def act(self, cell: Cell) -> Target:
        """The target in the current state."""
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
        scene, thing = self._scene, self._scene.thing
        box = scene.box(cell)
        centre, thing_yaw, tilt = scene.pose(cell)
        holding = cell.touching(thing.name) == 2 and opening < 2 * thing.half_width + 0.012
        # Goals lie beyond every threshold: a policy with a few millimetres of error would otherwise stall just short of it.
        over = np.all(np.abs(position[:2] - box) < 0.025)
        if scene.in_box(cell) or (holding and over and position[2] < thing.release + 0.010):
            clear = opening > 0.068  # open first, then retreat
            return np.array([*box, self.carry]) if clear else position, 0.0, MAX_OPENING
        if holding:
            over_box = float(np.linalg.norm(position[:2] - box))
            if over_box < 0.06:  # descend as the error vanishes
                return np.array([*box, thing.release + 4 * max(over_box - 0.02, 0.0) - 0.006]), 0.0, 0.0
            if position[2] < self.carry - 0.08:  # straight up first
                return np.array([*position[:2], self.carry]), yaw, 0.0
            return np.array([*box, self.carry]), 0.0, 0.0
        best_yaw = thing.grasp_yaw(thing_yaw)
        grasp = np.array([*centre[:2], centre[2] + thing.grasp_height])
        if tilt > 0.5:  # on its side: no demonstration of that, wait above
            return np.array([*centre[:2], 0.3]), best_yaw, MAX_OPENING
        aside = float(np.linalg.norm(position[:2] - grasp[:2]))
        height = position[2] - grasp[2]
        closing = opening < 0.068  # once started, a grasp is completed unless the object is lost
        near = (0.018, 0.025) if closing else (0.012, 0.014)
        at_grasp = aside < near[0] and height < near[1] and opening > 2 * thing.half_width - 0.006
        if closing and not at_grasp:  # a missed grasp: open, and rise beside the object
            away = aside > 0.10
            return (
                np.array([*position[:2], max(position[2], grasp[2] + self.hover)]) if not away else position,
                best_yaw,
                MAX_OPENING,
            )
        if height < 0.06 and aside > 0.025:  # beside the object: straight up, so as not to knock it over
            return np.array([*position[:2], grasp[2] + self.hover]), yaw, MAX_OPENING
        if at_grasp:
            return grasp, best_yaw, 0.0
        # Descend along a funnel. The hand waits for the rotation only if it does not fit the object at its current yaw.
        error = abs(_wrap(best_yaw - yaw))
        room = MAX_OPENING / 2 - (thing.half_width * np.cos(error) + thing.half_length * np.sin(error))
        wait = self.hover * min(max((0.006 - room) / 0.006, 0.0), 1.0)
        funnel = min(max(5 * max(aside - 0.008, 0.0), wait), self.hover) - 0.004
        return np.array([*grasp[:2], grasp[2] + funnel]), best_yaw, MAX_OPENING


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _off_path(scene: PickAndPlace, cell: Cell, rng: np.random.Generator) -> tuple[str, Array, float, float]:
    """Draw a state that a policy's mistakes lead to, from a reset cell: its kind, tool position (3,) m, yaw (rad), opening (m).

    Five kinds: anywhere above the table; near the object, rotated; low beside the object, mostly with the hand closed (a missed
    grasp); holding the object anywhere on the way; above the box with the object delivered.
    """
    thing, box = scene.thing, scene.box(cell)
    centre, thing_yaw, _ = scene.pose(cell)
    yaw = rng.uniform(-0.7, 0.7)
    opening = float(rng.choice([MAX_OPENING, 0.0, rng.uniform(0, MAX_OPENING)], p=[0.5, 0.3, 0.2]))
    above = centre[2] + thing.grasp_height
    kind = rng.choice(["anywhere", "near", "missed", "holding", "delivered"], p=[0.2, 0.35, 0.15, 0.2, 0.1])
    if kind == "anywhere":
        position = np.array([*rng.uniform([0.34, -0.30], [0.66, 0.22]), rng.uniform(0.14, 0.36)])
    elif kind == "near":
        yaw = thing.grasp_yaw(thing_yaw) + rng.normal(0, 0.25)
        position = np.array([*(centre[:2] + rng.normal(0, 0.03, 2)), above + rng.uniform(0.055, 0.16)])
    elif kind == "missed":
        away = rng.uniform(-np.pi, np.pi)
        distance = rng.uniform(0.065, 0.09) + max(thing.half_length - 0.024, 0.0)
        aside = distance * np.array([np.cos(away), np.sin(away)])
        position = np.array([*(centre[:2] + aside), above + rng.uniform(-0.01, 0.05)])
        opening = float(rng.choice([0.0, MAX_OPENING], p=[0.7, 0.3]))
        yaw = away + np.pi / 2  # the closing direction points past the object
        yaw = float(np.clip((yaw + np.pi / 2) % np.pi - np.pi / 2, -0.9, 0.9))
    elif kind == "holding":
        along = rng.uniform()
        xy = (1 - along) * centre[:2] + along * box + rng.normal(0, 0.03, 2)
        position = np.array([*xy, rng.uniform(0.13, 0.26)])
        opening = 2 * thing.half_width + 1e-3
    else:
        position = np.array([*(box + rng.normal(0, 0.012, 2)), rng.uniform(thing.release - 0.003, 0.24)])
        yaw, opening = rng.normal(0, 0.15), float(rng.uniform(max(0.055, 2 * thing.half_width + 0.004), MAX_OPENING))
    return kind, position, yaw, opening
