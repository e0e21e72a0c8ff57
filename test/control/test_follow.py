"""The arm's own watch over targets: nothing steps, nothing leaves the box, no joint is asked for more than it has."""

import dataclasses

import numpy as np
import pytest

from onedp_ros.control.follow import MAX_COASTED_TICKS, MAX_FAILED_SEARCHES, TICK, TargetFollower
from onedp_ros.control.joints import (
    JOINT_ACCELERATION,
    JOINT_JERK,
    JOINT_MAX,
    JOINT_MIN,
    JointGuard,
    JointMargins,
    joint_speed_limit,
)
from onedp_ros.geometry import columns_from_pose, gripper_down, pose_from_columns, rotation_angle
from onedp_ros.resources import resource
from onedp_ros.robot.settings import RobotSettings
from onedp_ros.settings import expected_values
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import HOME, build_model
from onedp_ros.twin.settings import TwinSettings

SETTINGS = RobotSettings.from_yaml(resource("config", "robot", "franka.yaml"))
FOLLOW, SERVO = SETTINGS.follow, TwinSettings.from_robot("twin").servo
MS = 1_000_000
START, DOWN = np.array([0.485, 0.0, 0.345]), gripper_down(0.0)
EASY = (HOME.tolist(), np.hstack([np.eye(6), np.zeros((6, 1))]))  # an arm whose joints can do anything


def follower(**servo: float) -> TargetFollower:
    made = TargetFollower(FOLLOW, dataclasses.replace(SERVO, **servo), SETTINGS.joints, lambda: EASY)
    made.start(START, DOWN, 0)
    return made


def go(made: TargetFollower, milliseconds: int, target: np.ndarray | None, now: int, turn: np.ndarray = DOWN) -> int:
    """Step with a target that is sent anew every 16 ms, or with none; the time after it, ns."""
    stamp, goal = 0, START if target is None else target
    for i in range(milliseconds):
        now += MS
        if target is not None and i % 16 == 0:
            stamp = now
        made.catch_up(1, None)
        made.step(stamp, tuple(goal), tuple(turn), now)
    return now


def test_a_target_near_by_is_followed_and_reached() -> None:
    made = follower()
    go(made, 1500, START + 0.04, 0, gripper_down(0.3))
    assert made.state == "following"
    np.testing.assert_allclose(made.filter.position, START + 0.04, atol=1e-4)
    assert rotation_angle(made.filter.quaternion, gripper_down(0.3)) < 1e-3


def test_the_least_speeds_that_a_robot_file_may_give_are_followed() -> None:
    low = {name: expected_values(SERVO)[name].low for name in ("linear_speed", "angular_speed")}  # type: ignore[union-attr]
    made = follower(**low)
    go(made, 1000, START + 0.04, 0)
    moved = float(np.linalg.norm(made.filter.position - START))
    assert 0.5 * low["linear_speed"] < moved < low["linear_speed"]


@pytest.mark.parametrize("away", [np.array([0.0, FOLLOW.resume_distance + 0.01, 0.0]), None])
def test_following_does_not_begin_far_away(away: np.ndarray | None) -> None:
    made = follower()
    turned = DOWN if away is not None else gripper_down(FOLLOW.resume_angle + 0.05)
    go(made, 160, START if away is None else START + away, 0, turned)
    assert made.state == "holding" and made.far == 10
    np.testing.assert_array_equal(made.filter.position, START)


def test_once_it_follows_it_follows_anywhere_in_the_box() -> None:
    made = follower()
    now = go(made, 100, START, 0)
    go(made, 3000, np.array([5.0, -5.0, -5.0]), now)
    low, high = np.array(FOLLOW.workspace_min) + FOLLOW.inset, np.array(FOLLOW.workspace_max) - FOLLOW.inset
    corner = [high[0], low[1], low[2]]
    np.testing.assert_allclose(made.filter.position, corner, atol=1e-3)
    assert made.far == 0


def test_the_largest_finite_numbers_are_a_place_beyond_the_walls() -> None:
    made = follower()
    now = go(made, 100, START, 0)
    for sign in (1.0, -1.0):
        now = go(made, 500, sign * np.full(3, 1.7e308), now)
        position = made.filter.position
        assert np.all(position >= FOLLOW.workspace_min) and np.all(position <= FOLLOW.workspace_max)
    assert made.state == "following"


def test_a_target_from_before_the_start_is_none() -> None:
    made = follower()
    made.start(START, DOWN, 50 * MS)
    made.catch_up(1, None)
    made.step(49 * MS, tuple(START + 0.01), tuple(DOWN), 51 * MS)
    assert made.state == "holding"


def test_without_fresh_targets_it_brakes_to_rest_without_turning_back_and_can_go_on() -> None:
    made = follower()
    now = go(made, 250, START + np.array([0.0, 0.09, 0.0]), 0)
    at, speed = made.filter.position, np.linalg.norm(made.filter.velocity)
    assert speed > 0.1
    now = go(made, 1000, None, now)
    assert made.state == "holding"
    travelled = made.filter.position[1] - at[1]
    assert 0 < travelled < speed * FOLLOW.stale_after + speed**2, "it stops where it can, and stays ahead of where it was"
    held = made.filter.position
    go(made, 100, None, now)
    np.testing.assert_array_equal(made.filter.position, held)
    go(made, 300, held + 0.03, now)
    assert made.state == "following"


def test_a_stop_that_was_asked_for_does_not_wait_for_the_targets_to_end() -> None:
    made = follower()
    now = go(made, 200, START + np.array([0.0, 0.09, 0.0]), 0)
    for _ in range(600):
        now += MS
        made.catch_up(1, None)
        made.step(now, tuple(START), tuple(DOWN), now, stop=True)
    assert made.state == "holding"


class Robot:
    """Its own books of the pose that was commanded: what came, and where it goes on when nothing comes."""

    def __init__(self) -> None:
        self.poses = [np.array(columns_from_pose(START, DOWN))] * 3

    def take(self, columns: list[float] | None) -> None:
        if columns is None:  # libfranka: acceleration stays
            a, b, c = (p[12:15] for p in self.poses[-3:])
            columns = self.poses[-1].copy()
            columns[12:15] = c + (c - b) + (c - 2 * b + a)
        self.poses.append(np.array(columns))

    @property
    def says(self) -> list[float]:
        return self.poses[-1].astype(np.float32).astype(float).tolist()

    def jerks(self) -> np.ndarray:
        positions = np.array([p[12:15] for p in self.poses])
        return np.linalg.norm(np.diff(positions, n=3, axis=0), axis=1) / TICK**3


@pytest.mark.parametrize("told", [True, False])
def test_after_lost_commands_it_goes_on_from_where_the_robot_went(told: bool) -> None:
    """Commands are dropped without our knowing (they came too late), or whole cycles are (we came too late to read)."""
    made, robot, rng = follower(), Robot(), np.random.default_rng(1)
    now, ticks, silent = 0, 1, 0
    for i in range(3000):
        now += ticks * MS
        goal = START + np.array([0.0, 0.08 * (-1) ** (i // 300), 0.0])
        made.catch_up(ticks, robot.says)
        made.step(now, tuple(goal), tuple(DOWN), now)
        columns, ticks = columns_from_pose(*made.filter.pose), 1
        if silent == 0 and rng.random() < 0.01:
            silent = int(rng.integers(1, 12))
        if silent and not told:
            silent -= 1
            robot.take(None)  # our command was late
            continue
        robot.take(columns)
        if silent:
            for _ in range(silent):
                robot.take(None)
            ticks, silent = 1 + silent, 0
    assert robot.jerks()[3:].max() < 3 * made.filter.limits.linear_jerk
    assert MAX_COASTED_TICKS >= 12


def test_books_that_never_agree_are_not_searched_for_ever() -> None:
    """A robot that reports its commanded pose otherwise must not cost a search in each cycle."""
    made = follower()
    go(made, 100, START + 0.05, 0)
    for away in (1e-5, 1.0):  # close to what we sent, and nothing like it
        made._failed_searches = 0
        for _ in range(60):
            strange = columns_from_pose(made.filter.pose[0], made.filter.pose[1])
            strange[12] += away
            made.catch_up(1, strange)
            made.step(0, tuple(START), tuple(DOWN), 10**12)
        assert made._failed_searches == MAX_FAILED_SEARCHES


def test_joint_speeds_end_at_the_ends_of_the_ranges() -> None:
    assert joint_speed_limit(0, 5.0) == 2.62
    assert joint_speed_limit(0, 0.0) == joint_speed_limit(3, -0.1) == 0.0
    assert joint_speed_limit(1, 0.1) == pytest.approx(np.sqrt(2 * 2.585 * 0.1) - 0.2)


@pytest.mark.parametrize("seed", range(6))
def test_no_joint_is_asked_for_more_than_it_has(seed: int) -> None:
    """Ten seconds of targets all over the box and in all orientations, on the FR3's kinematics, resolved as the robot does."""
    import mujoco

    rng = np.random.default_rng(seed)
    model = build_model(PnpMilk())
    data, jacobian, tool = mujoco.MjData(model), np.zeros((6, model.nv)), model.site("tool").id
    q = HOME.copy()

    def look() -> np.ndarray:
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], tool)
        return jacobian[:, :7].copy()

    look()
    matrix = data.site_xmat[tool].reshape(3, 3).T.flatten().tolist()
    columns = [*matrix[:3], 0, *matrix[3:6], 0, *matrix[6:], 0, *data.site_xpos[tool].tolist(), 1]
    made = TargetFollower(FOLLOW, SETTINGS.servo, SETTINGS.joints, lambda: (q.tolist(), look()))
    made.start(*pose_from_columns(columns), 0)
    made._accept(*made.filter.pose)
    low, high = np.array(SETTINGS.safety.workspace_min), np.array(SETTINGS.safety.workspace_max)
    speeds, positions = [np.zeros(7)], []
    every = int(rng.choice([5, 16, 100, 500]))
    for i in range(10_000):
        if i % every == 0:
            position, quaternion = rng.uniform(low, high), rng.normal(size=4)
            quaternion /= np.linalg.norm(quaternion)
        made.catch_up(1, None)
        made.step((i + 1) * MS, tuple(position), tuple(quaternion), (i + 1) * MS)
        inverse = np.linalg.pinv(look())
        speeds.append(inverse @ np.array(made.filter.twist))
        fastest = [joint_speed_limit(j, min(q[j] - JOINT_MIN[j], JOINT_MAX[j] - q[j])) for j in range(7)]
        assert np.all(np.abs(speeds[-1]) < np.maximum(fastest, 0.05))
        q = q + TICK * speeds[-1]
        positions.append(made.filter.pose[0])
    accelerations = np.abs(np.diff(speeds, axis=0)) / TICK
    assert np.abs(np.diff(speeds, n=2, axis=0)).max() / TICK**2 < JOINT_JERK
    assert accelerations.max() < JOINT_ACCELERATION
    assert np.all(q > JOINT_MIN) and np.all(q < JOINT_MAX)
    assert np.all(positions > low) and np.all(positions < high)


def test_at_a_singularity_nothing_is_left() -> None:
    jacobian = np.eye(6, 7)
    jacobian[2, 2] = 1e-3
    guard = JointGuard(JointMargins())
    guard.look(HOME.tolist(), jacobian, 0.0)
    fraction, push, drag = guard.fractions([0.01] * 6, [0.0, 0.0, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert fraction < 0.02 and push < 0.01 and drag > 0
