"""The arm itself, without a robot: it stays in the workspace, whatever is aimed at, and a stop is as short as its limits allow."""

import itertools

import numpy as np
import pytest

from onedp_ros.control.follow import TargetFollower
from onedp_ros.control.servo import ImpedanceGains, impedance_torque
from onedp_ros.geometry import gripper_down
from onedp_ros.resources import resource
from onedp_ros.robot.settings import RobotSettings
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import HOME, Cell

POSE = RobotSettings.from_yaml(resource("config", "robot", "franka.yaml"))
SETTINGS = POSE.replaced({"arm.mode": "cartesian_impedance"})
LOW, HIGH = np.array(SETTINGS.safety.workspace_min), np.array(SETTINGS.safety.workspace_max)
CENTER, DOWN, MS = 0.5 * (LOW + HIGH), gripper_down(0.0), 1_000_000
WALLS = [np.eye(3)[axis] * side for axis in range(3) for side in (-0.8, 0.8)]
CORNERS = [np.array(sides) * 0.8 for sides in itertools.product((-1.0, 1.0), repeat=3)]


class Arm:
    """An FR3 with motors and gears, in free space: the arm's process without a robot. In pose mode under a stiff controller, as the
    robot's own is."""

    def __init__(self, settings: RobotSettings) -> None:
        import mujoco

        self._mujoco = mujoco
        self.cell = Cell(PnpMilk())
        self.cell.reset(np.random.default_rng(0))
        model = self.cell.model
        model.geom_contype[:] = model.geom_conaffinity[:] = 0
        model.dof_armature[:7] = 0.195
        self._jacobian, self._torque = np.zeros((6, model.nv)), np.zeros(7)
        self._follower = TargetFollower(settings.follow, settings.servo, settings.joints, self._joints)
        soft = settings.arm.mode == "cartesian_impedance"
        self._gains = settings.impedance if soft else ImpedanceGains(3000.0, 300.0, 300.0, 30.0, 10.0, 2.0, 0.03, 0.3)
        self._follower.start(self.cell.position.tolist(), self.cell.quaternion.tolist(), 0, self._motion if soft else None)
        self._mass = np.zeros((model.nv, model.nv))
        self._now = self._stamp = 0
        self.positions: list[np.ndarray] = []

    def _joints(self):
        cell = self.cell
        self._mujoco.mj_jacSite(cell.model, cell.data, self._jacobian[:3], self._jacobian[3:], cell.model.site("tool").id)
        return cell.data.qpos[:7].tolist(), self._jacobian[:, :7]

    def _motion(self):
        return self.cell.position, self.cell.quaternion, self._joints()[1] @ self.cell.data.qvel[:7]

    def go(self, milliseconds: int, position: np.ndarray, fresh: bool = True) -> None:
        """Aim at a position, or with nothing ``fresh`` at none."""
        cell, data = self.cell, self.cell.data
        for _ in range(milliseconds):
            self._now += MS
            self._stamp = self._now if fresh else 0
            self._follower.catch_up(1, None)
            self._follower.step(self._stamp, tuple(position.tolist()), tuple(DOWN.tolist()), self._now)
            pose, (q, jacobian) = (cell.position, cell.quaternion), self._joints()
            posture, mass = HOME - np.array(q), None
            if self._follower.state == "stopping":
                self._mujoco.mj_fullM(cell.model, self._mass, data.qM)
                mass = self._mass[:7, :7]
            torque = impedance_torque(self._gains, self._follower.filter, *pose, jacobian, data.qvel[:7], posture, mass)
            self._torque = data.qfrc_applied[:7] = np.clip(torque, self._torque - 0.9, self._torque + 0.9)
            self._mujoco.mj_step(cell.model, data)
            self._mujoco.mj_kinematics(cell.model, data)
            self.positions.append(cell.position)


@pytest.mark.parametrize("stiffness", [300.0, 1000.0])
def test_an_arm_behind_a_spring_stays_in_the_box(stiffness: float) -> None:
    arm = Arm(SETTINGS.replaced({"impedance.linear_stiffness": stiffness}))
    arm.go(300, arm.cell.position)
    for aim in (WALLS[4], WALLS[5], WALLS[3], CORNERS[1], CORNERS[6]):
        arm.go(600, CENTER)
        arm.go(900, CENTER + aim)
    arm.go(600, CENTER)
    arm.go(350, CENTER + WALLS[4])
    arm.go(600, CENTER, fresh=False)
    positions = np.array(arm.positions)
    assert np.all(positions > LOW) and np.all(positions < HIGH), (
        f"{1e3 * np.maximum(LOW - positions, positions - HIGH).max():.1f} mm out"
    )
    assert positions[:, 2].min() < LOW[2] + 0.05 * 1000.0 / stiffness, "it goes where it is sent"


@pytest.mark.parametrize("settings", [POSE, SETTINGS], ids=["cartesian_pose", "cartesian_impedance"])
@pytest.mark.parametrize("direction", [*np.eye(3), *-np.eye(3)], ids=["x", "y", "z", "-x", "-y", "-z"])
def test_a_stop_takes_the_way_and_the_time_of_the_brake_and_little_more(settings, direction) -> None:
    """From 0.3 m/s, or near that."""
    arm, start = Arm(settings), np.array([0.5, -0.1, 0.25]) - 0.13 * direction
    arm.go(50, arm.cell.position)
    arm.go(1200, np.clip(start, LOW, HIGH))
    for millisecond in range(533):
        arm.go(1, start + 0.3e-3 * millisecond * direction)
    moving = len(arm.positions)
    arm.go(500, arm.positions[-1], fresh=False)
    positions = np.array(arm.positions[moving - 6 :])
    speeds = np.linalg.norm(positions[5:] - positions[:-5], axis=1) / 0.005
    distance, brake = np.linalg.norm(positions - positions[5], axis=1)[5:].max(), settings.servo.linear_acceleration
    assert speeds[0] > 0.2 and distance < speeds[0] ** 2 / (2 * brake) + 0.01, (speeds[0], distance)
    assert np.all(speeds[round(1000 * (speeds[0] / brake + 0.1)) :] < 0.01), "at rest"
