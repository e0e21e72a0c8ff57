"""coffee: put a pod into the holder of a coffee machine and close the lid (paper, section 4.2), with a scripted expert."""

from __future__ import annotations

import mujoco
import numpy as np

from onedp_ros.contract import MAX_OPENING
from onedp_ros.geometry import gripper_down
from onedp_ros.tasks.base import Task
from onedp_ros.twin.cell import Array, Cell, Scene, Target

AREA_CENTRE, AREA_SIZE = np.array([0.50, 0.08]), np.array([0.18, 0.20])  # m, where the pod starts
APOTHEM, HALF_HEIGHT = 0.020, 0.025  # m, of the pod: an octagonal prism, which stands stably and does not roll
GRASP_HEIGHT = 0.012  # m, tool center point above the pod's centre
HOLDER, SEAT = np.array([0.50, -0.22]), 0.030  # m, the holder's axis and floor
CLEARANCE = 0.0020  # m, between the pod's corners and the holder's wall
SIDES, WALL = 12, 0.003  # number of boxes that form the holder's ring, and their thickness (m)
DEPTH, CHAMFER = 0.014, 0.010  # m, depth of the ring's straight part, and length of the chamfer above it
MOUTH = DEPTH + CHAMFER / np.sqrt(2)  # m, height of the ring
RADIUS = APOTHEM / np.cos(np.pi / 8) + CLEARANCE  # m, from the axis to the wall
HINGE = np.array([HOLDER[0] - 0.070, SEAT + 2 * HALF_HEIGHT + 0.010])  # m, x and z of the lid's hinge, whose axis is along y
LID, LID_HALF_WIDTH = 0.100, 0.036  # m, length from the hinge, half width
OPEN, CLOSED = 1.85, 0.05  # rad, the lid's stop, leaning backwards, and the angle below which it counts as closed
GRIP = 6.0  # factor on the stiffness of the cell's hand: 12 N on the pod
SEATED = SEAT + HALF_HEIGHT  # m, height of the centre of an inserted pod


class Coffee(Scene):
    """A pod and a machine. Success: the pod is in the holder, at rest, released, and the lid is closed.

    The lid stays where it is left from its stop to about 45 degrees, and falls shut from there.
    """

    def __init__(self) -> None:
        self._expert = Expert()
        self._lifted = self._missed = False

    def add_to(self, spec: mujoco.MjSpec) -> None:
        box = mujoco.mjtGeom.mjGEOM_BOX
        dark, silver = [0.13, 0.13, 0.15, 1], [0.75, 0.76, 0.80, 1]
        red, gold, blue = [0.75, 0.10, 0.10, 1], [0.95, 0.75, 0.10, 1], [0.15, 0.35, 0.85, 1]
        machine = spec.worldbody.add_body(name="machine", pos=[*HOLDER, 0])
        machine.add_geom(name="base", type=box, size=[0.070, 0.050, SEAT / 2], pos=[-0.030, 0, SEAT / 2], rgba=dark)
        height = HINGE[1] - 0.008 - SEAT
        machine.add_geom(name="column", type=box, size=[0.012, 0.050, height / 2], pos=[-0.085, 0, SEAT + height / 2], rgba=dark)
        holder = machine.add_body(name="holder", pos=[0, 0, SEAT])
        smooth = {"friction": [0.15, 0.002, 1e-4], "priority": 1, "solref": [0.004, 1]}
        for side, angle in enumerate(2 * np.pi * (np.arange(SIDES) + 0.5) / SIDES):
            # A vertical wall, and above it a 45 degree chamfer that guides the pod in.
            for part, tilt, half, height, radius in (
                ("wall", 0.0, DEPTH / 2, DEPTH / 2, RADIUS + WALL / 2),
                ("mouth", np.pi / 4, CHAMFER / 2, DEPTH + (CHAMFER - WALL) / np.sqrt(8), RADIUS + (CHAMFER + WALL) / np.sqrt(8)),
            ):
                turn, lean, quaternion = np.zeros(4), np.zeros(4), np.zeros(4)
                mujoco.mju_axisAngle2Quat(turn, [0, 0, 1], angle)
                mujoco.mju_axisAngle2Quat(lean, [0, 1, 0], tilt)
                mujoco.mju_mulQuat(quaternion, turn, lean)
                holder.add_geom(
                    name=f"holder_{part}_{side}",
                    type=box,
                    size=[WALL / 2, (radius + half * np.sin(tilt)) * np.tan(np.pi / SIDES), half],
                    pos=[radius * np.cos(angle), radius * np.sin(angle), height],
                    quat=quaternion,
                    rgba=silver,
                    **smooth,
                )
        lid = machine.add_body(name="lid", pos=[HINGE[0] - HOLDER[0], 0, HINGE[1]])
        lid.add_joint(
            name="lid",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, -1, 0],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            range=[0, OPEN],
            frictionloss=0.021,
            solimp_friction=[0.99, 0.9999, 0.001, 0.5, 2],  # or it creeps
            damping=0.008,
            armature=5e-4,
        )
        lid.add_geom(name="lid", type=box, size=[LID / 2, LID_HALF_WIDTH, 0.004], pos=[LID / 2, 0, 0], mass=0.06, rgba=red)
        hand = spec.actuator("hand")  # grip as strong as the real hand's: the pod must not rotate between the fingers
        hand.gainprm, hand.biasprm = GRIP * hand.gainprm, GRIP * hand.biasprm
        pod = spec.worldbody.add_body(name="pod", pos=[*AREA_CENTRE, HALF_HEIGHT])
        pod.add_freejoint(name="pod")
        grip = {"friction": [1.0, 0.01, 0.001], "condim": 4, "solref": [0.004, 1]}
        size = [APOTHEM, APOTHEM * np.tan(np.pi / 8), HALF_HEIGHT]
        for side in range(4):  # together they are the octagon
            angle = side * np.pi / 8
            quaternion = np.array([np.cos(angle), 0, 0, np.sin(angle)])
            pod.add_geom(name=f"pod_{side}", type=box, size=size, quat=quaternion, mass=0.01, rgba=gold, **grip)
        pod.add_geom(
            name="pod_top",
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[0.8 * APOTHEM, 5e-4, 0],
            pos=[0, 0, HALF_HEIGHT],
            contype=0,
            conaffinity=0,
            mass=0,
            rgba=blue,
        )

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        self.place(
            cell, np.array([*(AREA_CENTRE + AREA_SIZE * rng.uniform(-0.5, 0.5, 2)), HALF_HEIGHT + 2e-4]), rng.uniform(-0.15, 0.15)
        )
        self.turn_lid(cell, OPEN)
        self._lifted = self._missed = False

    def off_path(self, cell: Cell, rng: np.random.Generator) -> None:
        tool, opening, centre, angle = _off_path(pod(cell)[0], rng)
        cell.data.qpos[:7] = cell.inverse_kinematics(tool, gripper_down(0.0))
        cell.data.qpos[7:9] = opening / 2
        self.place(cell, centre)
        self.turn_lid(cell, angle)
        cell.hold(0.0 if centre[2] > 2 * SEATED else opening)  # a pod in the air is in the hand

    def place(self, cell: Cell, position: Array, yaw: float = 0.0) -> None:
        """Put the pod's centre at ``position`` (3,) m, upright, at ``yaw`` (rad)."""
        joint = cell.data.joint("pod")
        joint.qpos[:] = [*position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        joint.qvel[:] = 0

    def turn_lid(self, cell: Cell, angle: float) -> None:
        """Set the lid's angle (rad): 0 is closed."""
        cell.data.joint("lid").qpos[:], cell.data.joint("lid").qvel[:] = angle, 0

    def watch(self, cell: Cell) -> None:
        if self._lifted:
            return
        high = cell.data.body("pod").xpos[2] > HALF_HEIGHT + 0.02
        low = cell.fingers.sum() < 2 * APOTHEM - 0.006 and cell.position[2] < 3 * HALF_HEIGHT
        if high or low:  # searching the contacts costs most
            held = cell.touching("pod") == 2
            self._lifted = bool(held and high)
            self._missed |= bool(not held and low)

    def success(self, cell: Cell) -> bool:
        """The pod is in the holder, at rest, no finger touches it, and the lid is closed."""
        speed = max(np.abs(cell.data.joint(name).qvel).max() for name in ("pod", "lid"))
        return bool(inserted(cell) and lid_angle(cell) < CLOSED and speed < 0.05 and cell.touching("pod") == 0)

    def score(self, cell: Cell) -> float:
        """A third each for lifting the pod, inserting it into the holder, and closing the lid."""
        if not inserted(cell):
            return float(self._lifted) / 3
        return 1.0 if self.success(cell) else 2 / 3

    def failure(self, cell: Cell) -> str:
        centre, tilt = pod(cell)
        if centre[2] < -0.01:
            return "pod fell off the table"
        if cell.touching("pod") == 2:
            return "not released" if inserted(cell) else "still holding"
        if inserted(cell):
            return "lid open"
        if self._lifted:
            return "not inserted" if np.linalg.norm(centre[:2] - HOLDER) < 2 * RADIUS else "dropped"
        if tilt > 0.5:
            return "knocked over"
        return "missed the grasp" if self._missed else "never grasped"

    def expert(self, cell: Cell) -> Target:
        return self._expert.act(cell)

    def start(self, cell: Cell) -> tuple[float, ...]:
        return tuple(pod(cell)[0][:2].tolist())


def pod(cell: Cell) -> tuple[Array, float]:
    """Centre (3,) m and tilt (rad from upright) of the pod."""
    body = cell.data.body("pod")
    return body.xpos.copy(), float(np.arccos(np.clip(body.xmat[8], -1, 1)))


def lid_angle(cell: Cell) -> float:
    """Angle of the lid, rad: 0 is closed, a right angle is upright."""
    return float(cell.data.joint("lid").qpos[0])


def inserted(cell: Cell, above: float = 0.003) -> bool:
    """Whether the pod stands within the holder's wall, its bottom at most ``above`` (m) above the holder's floor."""
    centre = cell.data.body("pod").xpos
    return bool(np.linalg.norm(centre[:2] - HOLDER) < CLEARANCE + 0.002 and abs(centre[2] - SEATED) < above)


class Expert:
    """Scripted expert: feedback from the cell's true state to the next target, so that it recovers from any state.

    The target lies at most ``reach`` (m) ahead of the measured position, so it depends only on what a policy can observe, not on
    the path so far. The step is ``gain`` times the error, which compensates steady-state errors of a policy or an arm, and goals
    lie beyond every threshold: a policy with a few millimetres of error would otherwise stall just short of it. The hand always
    points straight down.
    """

    reach, careful, slow = 0.025, 0.012, 0.010  # m: in free space, where precision matters, and into the holder
    gain = 1.5
    hover, carry = 0.10, 0.150  # m: above the grasp, tool height while carrying
    over, push = 0.225, HINGE[1] + 0.065  # m, tool height: above the upright lid, behind it
    free = SEATED + HALF_HEIGHT + 0.03  # m, tool height at which the fingertips are above an inserted pod

    def act(self, cell: Cell) -> Target:
        """The target in the current state."""
        position, opening = cell.position, float(cell.fingers.sum())
        centre, tilt = pod(cell)
        held = cell.touching("pod") == 2 and opening < 2 * APOTHEM + 0.010
        # Release once the pod can only fall into place, or if it slid up between the fingers, to regrasp it.
        slid = position[2] < SEATED + GRASP_HEIGHT and bool(np.linalg.norm(centre[:2] - HOLDER) < 0.010)
        if inserted(cell, DEPTH - 0.003 if held else 0.003) or (held and slid):
            goal, opening, reach = self._close_lid(position, opening, lid_angle(cell))
        elif held:
            goal, opening, reach = self._insert(position, centre)
        else:
            goal, opening, reach = self._grasp(position, opening, centre, tilt)
        offset = self.gain * (goal - position)
        offset *= min(1.0, reach / max(float(np.linalg.norm(offset)), 1e-9))
        return position + offset, gripper_down(0.0), opening

    def _grasp(self, position: Array, opening: float, centre: Array, tilt: float) -> tuple[Array, float, float]:
        if tilt > 0.5:  # on its side: no demonstration of that, wait above
            return np.array([*centre[:2], 0.3]), MAX_OPENING, self.reach
        grasp = _above(centre, GRASP_HEIGHT)
        aside, height = float(np.linalg.norm(position[:2] - grasp[:2])), position[2] - grasp[2]
        closing = opening < 0.068  # once started, a grasp is completed unless the pod is lost
        near = (0.016, 0.022) if closing else (0.010, 0.012)
        at_grasp = aside < near[0] and height < near[1] and opening > 2 * APOTHEM - 0.006
        if at_grasp:
            return grasp, 0.0, self.careful
        if (closing and height < 0.05 and aside < 0.10) or (height < 0.05 and aside > 0.025):
            # A missed grasp, or beside the pod: open and go straight up, so as not to knock it over.
            return np.array([*position[:2], grasp[2] + self.hover]), MAX_OPENING, self.reach
        funnel = min(5 * max(aside - 0.006, 0.0), self.hover) - 0.004
        return _above(grasp, funnel), MAX_OPENING, self.careful if height < 0.03 else self.reach

    def _insert(self, position: Array, centre: Array) -> tuple[Array, float, float]:
        offset = HOLDER - centre[:2]
        aside = float(np.linalg.norm(offset))
        if aside > 0.05:
            if position[2] < self.carry - 0.05:  # straight up first
                return np.array([*position[:2], self.carry]), 0.0, self.reach
            return np.array([*(position[:2] + offset), self.carry]), 0.0, self.reach
        height = centre[2] - SEATED
        goal = -0.006  # once the chamfer guides it; until then descend as the error vanishes
        if height > MOUTH or aside > 0.010:
            goal = min(MOUTH - 0.004 + 3 * max(aside - 0.006, 0.0), self.carry - SEATED)
        down = -self.slow if height < MOUTH + 0.015 else -self.careful
        step = np.clip(goal - height, down / self.gain, self.careful / self.gain)
        return np.array([*(position[:2] + offset), position[2] + step]), 0.0, self.careful + 0.004

    def _close_lid(self, position: Array, opening: float, angle: float) -> tuple[Array, float, float]:
        x, y, z = position
        above_holder = float(np.linalg.norm(position[:2] - HOLDER)) < 0.05
        if above_holder and z < self.free and angle > CLOSED:  # fingers around the pod: open first, then retreat
            grasped = SEATED + GRASP_HEIGHT
            height = self.over if opening > 0.066 else z if z > grasped + DEPTH else grasped
            return np.array([*HOLDER, height]), MAX_OPENING, self.careful
        up = np.array([x, y, self.over])
        if angle < 0.5:  # it falls shut by itself
            return up, 0.0, self.reach
        face = HINGE[0] + (self.push - 0.010 - HINGE[1]) / np.tan(angle)  # x of the lid's back at the fingertips' height
        behind = np.array([face - 0.040, HOLDER[1], self.push])
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        from_hinge = np.array([x, z - 0.010]) - HINGE  # to the fingertips
        if from_hinge @ across < 0.008 and z < self.over - 0.02 and from_hinge @ along < LID + 0.03:  # in front of the lid
            return up, 0.0, self.reach
        aside = float(np.linalg.norm(position[:2] - behind[:2]))
        if z < self.push + 0.020 and abs(y - HOLDER[1]) < 0.035 and x > behind[0] - 0.02:
            return np.array([x + self.careful, HOLDER[1], self.push]), 0.0, self.careful
        funnel = min(3 * max(aside - 0.015, 0.0), self.over - self.push) - 0.004
        return _above(behind, funnel), 0.0, self.reach


def _above(point: Array, height: float) -> Array:
    return point + np.array([0.0, 0.0, height])


def _off_path(centre: Array, rng: np.random.Generator) -> tuple[Array, float, Array, float]:
    """Draw a state that a policy's mistakes lead to, given the reset pod's position (3,) m: tool position (3,) m, opening (m), pod
    position (3,) m, lid angle (rad)."""
    opening = float(rng.choice([MAX_OPENING, 0.0, rng.uniform(0, MAX_OPENING)], p=[0.5, 0.3, 0.2]))
    grasp, angle, seated = _above(centre, GRASP_HEIGHT), OPEN, np.array([*HOLDER, SEATED + 2e-4])
    kinds = {"anywhere": 0.1, "near": 0.2, "missed": 0.1, "holding": 0.15, "misaligned": 0.15, "inserted": 0.1, "lid": 0.2}
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    if kind == "anywhere":
        return np.array([*rng.uniform([0.40, -0.28], [0.64, 0.20]), rng.uniform(0.20, 0.36)]), opening, centre, angle
    if kind == "near":
        return grasp + np.array([*rng.normal(0, 0.025, 2), rng.uniform(0.06, 0.15)]), opening, centre, angle
    if kind == "missed":  # low beside the pod, mostly with the hand closed
        away = rng.uniform(-np.pi, np.pi)
        aside = rng.uniform(0.075, 0.095) * np.array([np.cos(away), np.sin(away)])
        opening = float(rng.choice([0.0, MAX_OPENING], p=[0.7, 0.3]))
        return grasp + np.array([*aside, rng.uniform(-0.01, 0.05)]), opening, centre, angle
    slip = np.array([rng.normal(0, 0.004), 0.0, rng.normal(0, 0.003) - GRASP_HEIGHT])
    if kind == "holding":  # anywhere on the way to the holder
        along = rng.uniform()
        xy = (1 - along) * centre[:2] + along * HOLDER + rng.normal(0, 0.02, 2)
        tool = np.array([*xy, rng.uniform(0.13, 0.22)])
        return tool, 2 * APOTHEM + 1e-3, tool + slip, angle
    if kind == "misaligned":  # above the holder
        tool = np.array([*(HOLDER + rng.normal(0, 0.010, 2)), rng.uniform(0.105, 0.16)])
        return tool, 2 * APOTHEM + 1e-3, tool + slip, angle
    if kind == "inserted":  # released, retreating
        return np.array([*(HOLDER + rng.normal(0, 0.008, 2)), rng.uniform(0.066, 0.20)]), rng.uniform(0.058, 0.08), seated, angle
    # The lid is open or half-way down, the hand behind, beside or above it.
    angle = float(rng.choice([OPEN, rng.uniform(0.9, OPEN)]))
    shift = np.array([rng.uniform(-0.09, -0.03), rng.normal(0, 0.02), rng.uniform(-0.03, 0.08)])
    behind = np.array([HINGE[0] + 0.055 / np.tan(angle), HOLDER[1], Expert.push]) + shift
    above = np.array([*(HOLDER + rng.normal(0, 0.05, 2)), rng.uniform(0.21, 0.30)])
    return (behind if rng.uniform() < 0.6 else above), 0.0, seated, angle


TASK = Task(scene=lambda options: Coffee(), max_time=30.0, start_labels=("x (m)", "y (m)"))
