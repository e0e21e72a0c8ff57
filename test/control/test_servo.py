"""The target filter keeps its limits whatever it is fed, and arrives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.control.servo import ServoLimits, TargetFilter
from onedp_ros.geometry import gripper_down, rotation_angle
from onedp_ros.resources import resource
from onedp_ros.settings import from_file

DT = 0.001
LIMITS = from_file(ServoLimits, resource("config", "robot", "twin.yaml"), "servo", "")


def check_limits(reference: TargetFilter, before: tuple[np.ndarray, ...]) -> None:
    velocity, acceleration, angular_velocity, angular_acceleration = before
    slack = 1 + 1e-6
    assert np.linalg.norm(reference.acceleration - acceleration) <= LIMITS.linear_jerk * DT * slack
    assert np.linalg.norm(reference.angular_acceleration - angular_acceleration) <= LIMITS.angular_jerk * DT * slack
    assert np.linalg.norm(reference.velocity - velocity) <= LIMITS.linear_acceleration * DT * slack
    assert np.linalg.norm(reference.angular_velocity - angular_velocity) <= LIMITS.angular_acceleration * DT * slack
    # the speed may exceed its bound by what one jerk-limited change of mind takes
    assert np.linalg.norm(reference.velocity) <= LIMITS.linear_speed * 1.1
    assert np.linalg.norm(reference.angular_velocity) <= LIMITS.angular_speed * 1.1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 50, 300]))
def test_limits_hold_for_random_targets(seed: int, every: int) -> None:
    rng = np.random.default_rng(seed)
    reference = TargetFilter(LIMITS)
    reference.reset(np.array([0.5, 0.0, 0.3]), gripper_down(0.0))
    position, quaternion = reference.position, reference.quaternion
    for i in range(1000):
        if i % every == 0:
            position = rng.uniform([0.2, -0.5, 0.0], [0.8, 0.5, 0.6])
            quaternion = rng.normal(size=4)
            quaternion /= np.linalg.norm(quaternion)
        before = (reference.velocity, reference.acceleration, reference.angular_velocity, reference.angular_acceleration)
        reference.step(position, quaternion, DT)
        check_limits(reference, before)
        assert np.linalg.norm(reference.quaternion) == pytest.approx(1.0, abs=1e-9)


def test_arrives_and_stays() -> None:
    reference = TargetFilter(LIMITS)
    reference.reset(np.array([0.5, 0.0, 0.3]), gripper_down(0.0))
    goal, turned = np.array([0.4, 0.2, 0.1]), gripper_down(0.8)
    furthest = 0.0
    for _ in range(2500):
        reference.step(goal, turned, DT)
        furthest = max(furthest, float((reference.position - goal) @ (goal - np.array([0.5, 0.0, 0.3]))))
    assert np.linalg.norm(reference.position - goal) < 1e-4
    assert rotation_angle(reference.quaternion, turned) < 1e-3
    assert np.linalg.norm(reference.velocity) < 1e-3
    assert furthest < 1e-3  # hardly any overshoot


def test_opposite_quaternion_is_the_same_target() -> None:
    filters = [TargetFilter(LIMITS), TargetFilter(LIMITS)]
    for sign, reference in zip((1, -1), filters, strict=True):
        reference.reset(np.zeros(3), gripper_down(0.0))
        for _ in range(300):
            reference.step(np.zeros(3), sign * gripper_down(0.5), DT)
    assert rotation_angle(filters[0].quaternion, filters[1].quaternion) < 1e-9
