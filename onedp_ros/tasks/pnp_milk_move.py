"""pnp-milk-move: the carton is moved away just before the gripper closes (paper, section 4.2). Run with a policy trained on
pnp-anything, which has no such demonstrations, it measures how fast the policy reacts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onedp_ros.geometry import rotation_difference, tool_yaw
from onedp_ros.settings import Range, within
from onedp_ros.tasks import pnp_anything
from onedp_ros.tasks.base import Task, TaskOptions
from onedp_ros.tasks.pick_and_place import START_LABELS, PickAndPlace
from onedp_ros.twin.cell import Array, Cell

JITTER, YAW_JITTER = 0.01, math.radians(5.0)  # m, rad: range of starts of the same trajectory
NEAR, LOW = 0.02, 0.035  # m, beside and above the grasp: within these the gripper is about to close
AWAY = 0.06  # m from the grasp: beyond this a new approach begins
ACCELERATION = 2.0  # m/s², of the hand that moves the carton
STIFFNESS, DAMPING = 900.0, 60.0  # 1/s², 1/s: of the spring between that hand and the carton
LAG = 0.015  # m that the carton may lag behind the hand before the hand waits for it
LIFT = 0.002  # m that the hand lifts the carton


@dataclasses.dataclass(frozen=True)
class Shove:
    """A move of ``distance`` m along the tool's x axis (clear of the open fingers), backwards if negative, at up to ``speed`` m/s;
    the direction turns left by ``bend`` rad/m on the way."""

    distance: float
    speed: float
    bend: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The carton's start, in m and degrees, and its shoves: one at each approach of the gripper."""

    x: float
    y: float
    yaw: float
    shoves: tuple[Shove, ...]


TRAJECTORIES = (
    Trajectory(0.43, 0.08, 0.0, (Shove(0.12, 0.15),)),
    Trajectory(0.57, 0.05, 10.0, (Shove(-0.12, 0.20),)),
    Trajectory(0.44, 0.14, -15.0, (Shove(0.10, 0.12, -6.0),)),
    Trajectory(0.56, 0.02, -15.0, (Shove(-0.10, 0.18, -6.0),)),
    Trajectory(0.48, 0.04, 25.0, (Shove(0.08, 0.10, 8.0),)),
    Trajectory(0.52, 0.13, 15.0, (Shove(-0.06, 0.20),)),
    Trajectory(0.44, 0.09, 0.0, (Shove(0.10, 0.15), Shove(-0.08, 0.18))),
    Trajectory(0.55, 0.12, -10.0, (Shove(-0.12, 0.12), Shove(0.07, 0.20))),
    Trajectory(0.42, 0.02, 25.0, (Shove(0.09, 0.20), Shove(0.06, 0.15, 5.0))),
    Trajectory(0.57, 0.11, -20.0, (Shove(-0.08, 0.16), Shove(-0.07, 0.10, 6.0))),
)


@dataclasses.dataclass(frozen=True)
class Options(TaskOptions):
    """``trajectory``: number of the trajectory in every episode; 0: drawn for each."""

    trajectory: float = within(Range(0, len(TRAJECTORIES), "", "a whole number; 0 draws one per episode"), default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory % 1:
            raise ValueError(f"option.trajectory is {self.trajectory}, expected a whole number")


class Hand:
    """A hand that moves the carton: a spring between the carton and a point that moves along a shove.

    Args:
        shove: the movement.
        heading: initial, rad.
        position: the carton's, (3,) m.
        yaw: the carton's, rad; the hand keeps it.
    """

    def __init__(self, shove: Shove, heading: float, position: Array, yaw: float) -> None:
        self._point = position + np.array([0.0, 0.0, LIFT])
        self._heading = heading if shove.distance > 0 else heading + math.pi
        self._left, self._most, self._bend = abs(shove.distance), shove.speed, shove.bend
        self._speed = 0.0
        self._yaw = yaw

    def advance(self, cell: Cell, body: str, seconds: float) -> bool:
        """Move the point and pull the carton. Returns whether the shove continues."""
        joint, number = cell.data.joint(body), cell.model.body(body).id
        x, y, z, w = joint.qpos[[4, 5, 6, 3]]
        behind = float(np.linalg.norm(self._point[:2] - joint.qpos[:2]))
        braking = math.sqrt(2 * ACCELERATION * self._left)
        self._speed = min(self._speed + ACCELERATION * seconds, self._most, braking) if behind < LAG else 0.0
        step = min(self._speed * seconds, self._left)
        ahead = np.array([math.cos(self._heading), math.sin(self._heading), 0.0])
        self._point += step * ahead
        self._heading += step * self._bend
        self._left -= step
        force = STIFFNESS * (self._point - joint.qpos[:3]) + DAMPING * (self._speed * ahead - joint.qvel[:3])
        force -= cell.model.opt.gravity
        rotation = cell.data.body(body).xmat.reshape(3, 3)
        upright = np.array([0.0, 0.0, math.sin(self._yaw / 2), math.cos(self._yaw / 2)])
        turn = STIFFNESS * rotation_difference(upright, np.array([x, y, z, w])) - DAMPING * (rotation @ joint.qvel[3:])
        mass, inertia = cell.model.body_mass[number], cell.model.body_inertia[number].mean()
        cell.data.xfrc_applied[number] = [*(mass * force), *(inertia * turn)]
        return self._left > 1e-3

    @staticmethod
    def let_go(cell: Cell, body: str) -> None:
        """Stop pulling the carton."""
        cell.data.xfrc_applied[cell.model.body(body).id] = 0.0


class PnpMilkMove(pnp_anything.PnpAnything):
    """The carton and box of pnp-anything, with the box at its nominal position; a hand moves the carton along one of ten
    trajectories."""

    noun = "carton"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(pnp_anything.Options(object="milk"))
        self._chosen = int((options or Options()).trajectory)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        super().reset(cell, rng)
        cell.data.joint("box").qpos[0] = 0.0
        drawn = 1 + int(rng.integers(len(TRAJECTORIES)))
        self.number = self._chosen or drawn
        trajectory = TRAJECTORIES[self.number - 1]
        xy = np.array([trajectory.x, trajectory.y]) + rng.uniform(-JITTER, JITTER, 2)
        yaw = math.radians(trajectory.yaw) + rng.uniform(-YAW_JITTER, YAW_JITTER)
        self.place(cell, np.array([*xy, self.thing.half_height + 5e-4]), yaw)
        self._shoves = list(trajectory.shoves)
        self._hand: Hand | None = None
        self._approaching, self._time = True, 0.0

    def watch(self, cell: Cell) -> None:
        super().watch(cell)
        name = self.thing.name
        seconds, self._time = cell.time - self._time, cell.time
        if self._hand is None:
            self._begin_shove(cell)
        elif cell.touching(name) == 2 or not self._hand.advance(cell, name, seconds):
            self._hand.let_go(cell, name)
            self._hand = None

    def _begin_shove(self, cell: Cell) -> None:
        """Start the next shove if the gripper is about to close on the carton but does not hold it yet."""
        if not self._shoves:
            return
        centre, yaw, tilt = self.pose(cell)
        away = cell.position - centre - [0.0, 0.0, self.thing.grasp_height]
        self._approaching |= bool(np.linalg.norm(away) > AWAY)
        near = np.linalg.norm(away[:2]) < NEAR and away[2] < LOW
        standing = tilt < 0.1 and centre[2] < self.thing.half_height + 0.005
        free = cell.touching(self.thing.name) < 2 and cell.fingers.sum() > 2 * self.thing.half_width + 0.005
        if self._approaching and near and standing and free:
            self._approaching = False
            self._hand = Hand(self._shoves.pop(0), tool_yaw(cell.quaternion), centre, yaw)

    def start(self, cell: Cell) -> tuple[float, ...]:
        return (*PickAndPlace.start(self, cell), float(self.number))


TASK = Task(scene=PnpMilkMove, options=Options, start_labels=(*START_LABELS, "trajectory"), study_by="trajectory")
