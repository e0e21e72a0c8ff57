"""From hands to targets: nothing moves without the dead-man switch, nothing jumps, and everything stays within the limits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.contract import MAX_OPENING
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.geometry import gripper_down, quaternion_from_rotation_vector, quaternion_multiply, rotation_angle
from onedp_ros.resources import resource
from onedp_ros.teleop.devices.base import Command
from onedp_ros.teleop.session import BRAKING, LAG, NEAR, Motion, Session

pytestmark = pytest.mark.concurrent

MOTION = dataclasses.replace(Motion.from_yaml(resource("config", "teleop.yaml")), operator_yaw=0.0, locked=())
LIMITS = SafetyLimits.from_yaml(resource("config", "robot", "twin.yaml"))
START = np.array([0.5, 0.0, 0.3]), gripper_down(0.0)
DT = 1 / 60
NOTHING = Command()


def engaged(**kwargs):
    return Command(engaged=True, **kwargs)


def along(**fractions):
    """An engaged command with these fractions of velocity."""
    return engaged(velocity=tuple(float(fractions.get(axis, 0.0)) for axis in ("x", "y", "z", "roll", "pitch", "yaw")))


class Arm:
    """A session with an arm that is where it was told to be, or is ``lag`` (s) behind and moves at ``most`` (m/s)."""

    def __init__(self, motion=MOTION, opening=MAX_OPENING, lag=0.0, most=np.inf):
        self.session, self.opening = Session(motion, LIMITS), opening
        self.measured, self.lag, self.most = START, lag, most
        self.targets = []

    def run(self, command, seconds=DT):
        for _ in range(max(1, round(seconds / DT))):
            target = self.session.step(command, self.measured, self.opening, DT)
            if target is not None:
                self.targets.append(target)
                step = (target.position - self.measured[0]) * (DT / max(self.lag, DT))
                step *= min(1.0, self.most * DT / max(np.linalg.norm(step), 1e-12))
                self.measured = self.measured[0] + step, target.quaternion
        return target


def test_nothing_is_said_before_the_dead_man_switch_is_held():
    arm = Arm()
    assert arm.run(Command(velocity=(1.0,) * 6), 1.0) is None
    assert arm.session.state == "waiting"


def test_held_and_pushed_the_target_moves_at_the_speed_asked_for():
    arm = Arm()
    first = arm.run(engaged())
    np.testing.assert_array_equal(first.position, START[0])
    after = arm.run(along(x=0.5, z=-1.0), 0.4)
    moved = after.position - START[0]
    np.testing.assert_allclose(moved, [0.5 * 0.4 * MOTION.linear_speed, 0, -0.4 * MOTION.linear_speed], atol=0.005)
    turned = arm.run(along(yaw=1.0), 0.5)
    assert rotation_angle(turned.quaternion, gripper_down(0.5 * MOTION.angular_speed)) < 0.02


def test_letting_go_brakes_and_holds():
    arm = Arm()
    arm.run(along(x=1.0), 0.5)
    speeds = []
    for _ in range(60):
        before = arm.targets[-1].position
        speeds.append(np.linalg.norm(arm.run(NOTHING).position - before) / DT)
        if len(speeds) == 1:
            assert arm.session.state == "stopping"
    assert np.all(np.diff(speeds) <= 1e-9) and speeds[-1] == 0.0
    braking = MOTION.linear_speed / LIMITS.linear_deceleration
    assert sum(s > 1e-3 for s in speeds) <= np.ceil(braking / DT) + 1
    assert arm.session.state == "holding"


@pytest.mark.parametrize("lag", [0.05, 0.2])
def test_an_arm_with_the_usual_lag_is_braked_ahead_of_where_it_is(lag):
    arm = Arm(lag=lag)
    arm.run(along(x=1.0), 0.8)
    begin = len(arm.targets)
    arm.run(NOTHING, 1.0)
    assert np.all(np.diff([t.position[0] for t in arm.targets[begin - 1 :]]) >= 0), "the target does not turn back"


@pytest.mark.parametrize("most", [0.0, 0.03, 0.06])
def test_targets_do_not_run_away_from_a_slow_arm_which_stays_when_let_go(most):
    arm = Arm(most=most)
    for _ in range(120):
        ahead = arm.run(along(x=1.0)).position - arm.measured[0]
        assert np.linalg.norm(ahead) < LAG * NEAR + MOTION.linear_speed * DT
    assert np.linalg.norm(ahead) > 0.05
    let_go = arm.measured[0]
    before = arm.targets[-1].position
    for _ in range(60):
        target = arm.run(NOTHING)
        assert np.linalg.norm(target.position - before) <= LIMITS.linear_speed * DT + 1e-9
        before = target.position
    assert np.linalg.norm(arm.measured[0] - let_go) <= BRAKING * most + 1e-3
    np.testing.assert_allclose(target.position, arm.measured[0], atol=1e-3)
    assert arm.session.state == "holding"
    near = arm.run(along(x=1.0)).position  # a new grip begins there
    assert np.linalg.norm(near - arm.measured[0]) < 0.01


def test_the_way_home_waits_for_a_slow_arm():
    arm = Arm(most=0.02)
    arm.run(engaged())
    assert arm.session.home()
    arm.run(engaged(), 1.0)
    assert np.linalg.norm(arm.targets[-1].position - arm.measured[0]) < LAG * NEAR + MOTION.linear_speed * DT


def test_the_same_hands_mean_other_directions_for_an_operator_who_faces_the_robot():
    arm = Arm(dataclasses.replace(MOTION, operator_yaw=np.pi))
    moved = arm.run(along(x=1.0, y=0.5), 0.3).position - START[0]
    assert moved[0] < -0.05 and moved[1] < -0.02 and abs(moved[2]) < 1e-9


def test_in_the_tools_frame_directions_are_the_hands_own():
    arm = Arm(dataclasses.replace(MOTION, frame="tool"))
    moved = arm.run(along(z=1.0), 0.3).position - START[0]  # the tool points down
    assert moved[2] < -0.05 and np.linalg.norm(moved[:2]) < 1e-9


def test_locked_axes_stay():
    arm = Arm(dataclasses.replace(MOTION, locked=("y", "roll", "pitch", "yaw")))
    tilted = tuple(quaternion_from_rotation_vector(np.array([0.3, 0.2, 0.1])))
    arm.run(engaged())
    after = arm.run(engaged(velocity=(1.0, 1.0, 0.0, 1.0, 1.0, 1.0), quaternion=tilted, position=(0.0, 0.03, 0.0)), 0.2)
    assert after.position[0] > 0.53 and after.position[1] == 0.0
    assert rotation_angle(after.quaternion, START[1]) < 1e-9


def test_a_phone_moves_the_arm_by_what_it_does_from_engaging_on():
    arm = Arm()
    heading = quaternion_from_rotation_vector(np.array([0.0, 0.0, 1.2]))  # it points anywhere; ahead is where it points
    far_away = np.array([3.0, -2.0, 1.0])
    first = arm.run(engaged(position=tuple(far_away), quaternion=tuple(heading)))
    np.testing.assert_array_equal(first.position, START[0])
    ahead = np.array([np.cos(1.2), np.sin(1.2), 0.0])
    turn = quaternion_from_rotation_vector(np.array([0.0, 0.0, 0.2]))
    command = engaged(position=tuple(far_away + 0.03 * ahead), quaternion=tuple(quaternion_multiply(turn, heading)))
    after = arm.run(command, 1.0)
    np.testing.assert_allclose(after.position - START[0], [0.03, 0, 0], atol=1e-6)
    assert rotation_angle(after.quaternion, gripper_down(0.2)) < 1e-6


def test_a_phone_that_lies_flat_points_where_its_top_does():
    arm = Arm()
    flat = quaternion_from_rotation_vector(np.array([0.0, np.pi / 2, 0.0]))  # the camera, its x, looks down; its top, z, ahead
    arm.run(engaged(quaternion=tuple(flat)))
    after = arm.run(engaged(quaternion=tuple(flat), position=(0.02, 0.0, 0.0)), 1.0)
    np.testing.assert_allclose(after.position - START[0], [0.02, 0, 0], atol=1e-6)


def test_a_clutch_lets_the_hand_go_back_without_the_arm():
    arm = Arm()
    for _ in range(3):
        arm.run(engaged(position=(0.0, 0.0, 0.0)), 0.1)
        arm.run(engaged(position=(0.0, 0.03, 0.0)), 1.0)
        arm.run(Command(position=(0.0, 0.03, 0.0)), 0.5)
    np.testing.assert_allclose(arm.targets[-1].position - START[0], [0, 0.09, 0], atol=2e-3)


def test_engaging_far_from_the_last_target_begins_at_the_arm():
    arm = Arm()
    arm.run(along(x=1.0), 0.3)
    arm.run(NOTHING, 0.5)
    arm.measured = np.array([0.4, 0.1, 0.25]), gripper_down(0.5)  # somebody moved it
    target = arm.run(engaged())
    np.testing.assert_allclose(target.position, arm.measured[0])
    near = target.position + np.array([0.0, 0.0, -0.01])  # it sags
    arm.run(NOTHING, 0.2)
    arm.measured = near, arm.measured[1]
    np.testing.assert_allclose(arm.run(engaged()).position, target.position)


def test_a_held_arm_that_something_takes_away_is_not_drawn_back():
    arm = Arm()
    arm.run(along(x=1.0), 0.3)
    arm.run(NOTHING, 0.5)
    assert arm.session.state == "holding"
    arm.measured = arm.measured[0] - np.array([0.05, 0.0, 0.0]), arm.measured[1]  # a reset, or a hand
    assert arm.session.step(NOTHING, arm.measured, 0.08, DT) is None and arm.session.state == "waiting"
    np.testing.assert_allclose(arm.run(engaged()).position, arm.measured[0])


def test_without_the_fingers_nothing_moves():
    assert Arm(opening=None).run(along(x=1.0), 0.3) is None


def test_without_a_measured_pose_nothing_moves():
    arm = Arm()
    assert arm.session.step(along(x=1.0), None, 0.08, DT) is None
    arm.run(along(x=1.0), 0.2)
    before = arm.targets[-1].position
    arm.measured = None
    target = arm.session.step(along(x=1.0), None, 0.08, DT)
    assert arm.session.state == "stopping" and np.linalg.norm(target.position - before) < MOTION.linear_speed * DT


@pytest.mark.parametrize("pose", [(np.full(3, np.nan), START[1]), (START[0], np.zeros(4))], ids=["NaN", "no rotation"])
def test_what_is_no_pose_lets_go_and_is_forgotten(pose):
    arm = Arm()
    arm.run(along(x=1.0), 0.2)
    good, target = arm.measured, arm.session.step(along(x=1.0), pose, 0.08, DT)
    assert arm.session.state == "stopping" and np.all(np.isfinite([*target.position, *target.quaternion]))
    arm.measured = good
    arm.run(NOTHING, 0.5)
    assert np.all(np.isfinite(arm.run(along(x=1.0), 0.3).position)) and arm.session.state == "moving"


def test_home_needs_the_dead_man_and_gives_way_to_the_operator():
    arm = Arm()
    assert not arm.session.home()
    arm.run(engaged())
    assert arm.session.home()
    arm.run(engaged(), 0.1)
    assert arm.session.state == "homing"
    arm.run(along(y=1.0), 0.1)
    assert arm.session.state == "moving"
    arm.session.home()
    arm.run(engaged(), 2.0)
    np.testing.assert_allclose(arm.targets[-1].position, MOTION.home_position, atol=1e-6)
    arm.run(NOTHING)
    arm.run(engaged(), 0.1)
    assert arm.session.state == "moving", "letting go ends the way home"


def test_the_gripper_begins_as_it_is_and_turns():
    assert Arm(opening=0.079).run(engaged()).opening == MAX_OPENING
    arm = Arm(opening=0.05)  # around something
    assert arm.run(engaged()).opening == 0.0
    arm.session.turn_gripper()
    assert arm.run(engaged()).opening == MAX_OPENING
    arm.session.turn_gripper()
    assert arm.run(NOTHING).opening == 0.0


def test_engaging_outside_the_workspace_says_where_that_is():
    arm = Arm()
    arm.measured = np.array([0.9, 0.0, 0.3]), START[1]
    with pytest.raises(ValueError, match=r"0\.9.*outside the workspace"):
        arm.run(engaged())


@pytest.mark.parametrize("pause", [0.3, 1.0, 20.0, 3600.0])
def test_after_a_pause_nothing_moves_until_the_dead_man_is_released_and_pressed_anew(pause):
    arm = Arm()
    arm.run(along(x=1.0), 0.5)
    arm.measured = arm.measured[0] + np.array([0.0, 0.02, 0.0]), arm.measured[1]  # where it came to rest by itself
    rest, sent = arm.measured[0], len(arm.targets)
    assert arm.session.step(along(x=1.0), arm.measured, 0.08, pause) is None
    arm.run(along(x=1.0), 1.0)
    assert arm.session.state == "waiting" and arm.session.must_release and len(arm.targets) == sent
    arm.run(NOTHING)
    np.testing.assert_array_equal(arm.run(engaged()).position, rest)
    assert arm.run(along(x=1.0), 0.3).position[0] > rest[0] + 0.02


def test_reports_that_waited_for_the_end_of_a_pause_release_nothing():
    arm = Arm()
    arm.run(along(x=1.0), 0.5)
    assert arm.session.step(NOTHING, arm.measured, 0.08, 5.0) is None
    sent = len(arm.targets)
    for _ in range(3):  # the operator let go and pressed during the pause
        arm.run(NOTHING)
        arm.run(along(x=1.0))
    arm.run(along(x=1.0), 1.0)
    assert len(arm.targets) == sent


def test_a_short_stall_is_no_pause():
    arm = Arm()
    arm.run(along(x=1.0), 0.5)
    assert arm.session.step(along(x=1.0), arm.measured, 0.08, 0.9 * LIMITS.stale_after) is not None
    assert arm.session.state == "moving"


share = st.floats(-1.5, 1.5)
hands = st.builds(
    Command,
    engaged=st.booleans(),
    velocity=st.tuples(*[share] * 6),
    position=st.tuples(*[st.floats(-3, 3)] * 3),
    quaternion=st.lists(st.floats(-1, 1), min_size=4, max_size=4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: tuple(np.array(q) / np.linalg.norm(q))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(hands, st.integers(1, 15)), min_size=1, max_size=12))
def test_whatever_hands_do_targets_stay_in_the_workspace_and_below_the_speeds(script):
    arm = Arm()
    for command, count in script:
        arm.run(command, count * DT)
    positions = np.array([START[0], *(t.position for t in arm.targets)])
    assert np.all(positions >= LIMITS.workspace_min) and np.all(positions <= LIMITS.workspace_max)
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max(initial=0) <= LIMITS.linear_speed * DT * 1.001
    turns = [rotation_angle(a.quaternion, b.quaternion) for a, b in zip(arm.targets, arm.targets[1:], strict=False)]
    assert max(turns, default=0) <= LIMITS.angular_speed * DT * 1.001
    assert all(abs(np.linalg.norm(t.quaternion) - 1) < 1e-9 for t in arm.targets)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"frame": "world"}, "frame is 'world'"), ({"locked": ["w"]}, r"locked is \['w'\]"), ({"scale": 0.0}, "scale is 0")],
)
def test_settings_that_make_no_sense_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        Motion.from_dict({**dataclasses.asdict(MOTION), **change})
