import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.control.chunk import ActionChunk, Target
from onedp_ros.control.handover import HANDOVERS
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.control.safety import LONGEST_STEP, MeasuredPose, SafetyGate, jump
from onedp_ros.control.schedule import ChunkSchedule
from onedp_ros.control.servo import ServoLimits, TargetFilter
from onedp_ros.geometry import gripper_down, rotation_angle
from onedp_ros.resources import resource
from onedp_ros.settings import from_file

LIMITS = SafetyLimits.from_yaml(resource("config", "robot", "twin.yaml"))
MS = 1_000_000
STAMP = 1_000_000_000_000
HOME, DOWN = np.array([0.5, 0.0, 0.3]), gripper_down(0.0)


def started() -> SafetyGate:
    gate = SafetyGate(LIMITS)
    gate.start(HOME, DOWN, 0.08)
    return gate


def chunk(stamp: int = STAMP, **replace) -> ActionChunk:
    stamps = stamp + (np.arange(16) - 1) * 50 * MS
    fields = {"positions": np.tile(HOME, (16, 1)), "quaternions": np.tile(DOWN, (16, 1)), "openings": np.full(16, 0.05)}
    return ActionChunk(stamp, **{"stamps": stamps, **fields, **replace})


def spoiled(name: str, value: float) -> ActionChunk:
    array = getattr(chunk(), name).copy()
    array[7] = value
    return chunk(**{name: array})


def test_first_target_is_the_measured_pose():
    gate = SafetyGate(LIMITS)
    target = gate.start(HOME, 1.005 * DOWN, 0.03)
    np.testing.assert_array_equal(target.position, HOME)
    np.testing.assert_allclose(target.quaternion, DOWN, atol=1e-12)
    assert not gate.moving
    np.testing.assert_array_equal(gate.stop(0.008).position, HOME)


@pytest.mark.parametrize(
    ("position", "quaternion", "words"),
    [
        (np.array([np.nan, 0, 0.3]), DOWN, "is invalid"),
        (HOME, np.zeros(4), "is invalid"),
        (np.array([0.5, 0.0, 0.9]), DOWN, "outside the workspace"),
    ],
)
def test_refuses_to_begin_where_it_must_not(position, quaternion, words):
    with pytest.raises(ValueError, match=words):
        SafetyGate(LIMITS).start(position, quaternion, 0.08)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (spoiled("positions", np.nan), "not_finite"),
        (spoiled("openings", np.inf), "not_finite"),
        (spoiled("quaternions", np.nan), "not_finite"),
        (spoiled("quaternions", 0.9), "not_a_rotation"),
        (chunk(stamps=np.full(16, STAMP)), "times_not_rising"),
        (chunk(STAMP + 200 * MS), "from_the_future"),
        (chunk(STAMP - 600 * MS), "too_old"),
    ],
)
def test_rejects_and_counts(bad, reason):
    gate = started()
    assert not gate.check(bad, STAMP + 20 * MS)
    assert gate.rejected == {reason: 1}
    assert gate.check(chunk(), STAMP + 20 * MS)


def test_rejects_a_chunk_older_than_the_last_unless_the_clock_went_back():
    gate = started()
    assert gate.check(chunk(STAMP), STAMP + 20 * MS)
    assert gate.check(chunk(STAMP), STAMP + 30 * MS), "the same observation may be used twice"
    assert not gate.check(chunk(STAMP - 10 * MS), STAMP + 30 * MS)
    assert gate.rejected == {"out_of_order": 1}
    assert gate.check(chunk(STAMP - 10_000 * MS), STAMP - 9_980 * MS)


def test_a_jump_is_walked_at_the_speed_limits():
    gate = started()
    far = Target(HOME + np.array([0.2, 0, 0]), gripper_down(1.0), 0.0)
    last = gate.target
    for _ in range(100):
        new = gate.limit(far, 0.008)
        assert np.linalg.norm(new.position - last.position) <= LIMITS.linear_speed * 0.008 + 1e-9
        assert rotation_angle(new.quaternion, last.quaternion) <= LIMITS.angular_speed * 0.008 + 1e-9
        last = new
    np.testing.assert_allclose(last.position, far.position, atol=1e-9)
    assert rotation_angle(last.quaternion, far.quaternion) < 1e-9
    assert gate.limited["linear_speed"] == pytest.approx(0.2 / (LIMITS.linear_speed * 0.008), abs=1.1)
    assert gate.limited["angular_speed"] > 0


def test_targets_outside_the_workspace_end_at_its_wall():
    gate = started()
    for _ in range(200):
        target = gate.limit(Target(np.array([0.5, 0.0, -1.0]), DOWN, 0.5), 0.008)
    assert target.position[2] == LIMITS.workspace_min[2]
    assert target.opening == LIMITS.opening[1]
    assert gate.limited["workspace"] == gate.limited["opening"] == 200


def test_a_long_pause_allows_no_long_step():
    gate = started()
    target = gate.limit(Target(HOME + np.array([0.2, 0, 0]), DOWN, 0.05), 10.0)
    assert np.linalg.norm(target.position - HOME) <= LIMITS.linear_speed * LONGEST_STEP + 1e-9


def test_stop_slows_down_steadily_and_holds():
    gate, dt, speed = started(), 0.008, 0.4
    for i in range(40):
        last = gate.limit(Target(HOME + np.array([speed * dt * (i + 1), 0, 0]), DOWN, 0.02), dt)
    speeds = [speed]
    while gate.moving:
        new = gate.stop(dt)
        speeds.append(float(np.linalg.norm(new.position - last.position)) / dt)
        assert new.opening == 0.02
        last = new
    loss = -np.diff(speeds)
    assert np.all(loss >= -1e-9)
    assert np.all(loss <= LIMITS.linear_deceleration * dt + 5e-3)
    assert len(speeds) == pytest.approx(speed / (LIMITS.linear_deceleration * dt), abs=3)
    held = gate.stop(dt)
    np.testing.assert_array_equal(gate.stop(dt).position, held.position)


def servo_limits(robot: str) -> ServoLimits:
    return from_file(ServoLimits, resource("config", "robot", f"{robot}.yaml"), "servo", "")


@pytest.mark.parametrize("robot", ["franka", "twin"])
@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize("delay", [5, 15])  # ms, there and back
def test_a_stop_brings_the_arm_to_rest_within_its_braking_distance(robot, turning, delay):
    limits, gate, lead, sent_every = servo_limits(robot), started(), 0.18, 20
    arm, trail, targets = TargetFilter(limits), [], []
    arm.reset(HOME, DOWN)
    speed = 0.8 if turning else 0.3
    most = limits.angular_acceleration if turning else limits.linear_acceleration

    def wanted(t: float) -> Target:
        far = speed * (t + lead)
        return Target(HOME, gripper_down(far), 0.05) if turning else Target(HOME + np.array([0.0, far - 0.2, 0.0]), DOWN, 0.05)

    stopping = 1200  # ms
    for ms in range(2200):
        trail.append(MeasuredPose(STAMP + ms * MS, arm.position, arm.quaternion))
        if ms % sent_every == 0:
            measured = trail[max(ms - delay, 0)]
            target = gate.limit(wanted(ms / 1000), 0.02) if ms < stopping else gate.stop(0.02, measured)
            targets.append((ms + delay, target))
        newest = [target for at, target in targets if at <= ms][-1:]
        if newest:
            arm.step(newest[0].position, newest[0].quaternion, 0.001)

    def away(pose: MeasuredPose, other: MeasuredPose) -> float:
        return (
            rotation_angle(pose.quaternion, other.quaternion) if turning else float(np.linalg.norm(pose.position - other.position))
        )

    speeds = np.array([away(b, a) / 0.01 for a, b in zip(trail[stopping - 10 :], trail[stopping:], strict=False)])
    assert speeds[0] == pytest.approx(speed, rel=0.05)
    distances = [away(pose, trail[stopping]) for pose in trail[stopping:]]
    assert max(distances) < speed**2 / (2 * most) + (0.03 if turning else 0.01)
    assert np.nonzero(speeds > 0.03 * speed)[0][-1] / 1000 < speed / most + 0.1
    assert not gate.moving
    held = gate.stop(0.02, trail[-1])
    np.testing.assert_array_equal(gate.stop(0.02, trail[stopping]).position, held.position)
    assert held.opening == 0.05


def test_a_stop_without_a_measured_pose_slows_the_targets_down():
    gate = started()
    for i in range(40):
        gate.limit(Target(HOME + np.array([0.003 * (i + 1), 0, 0]), DOWN, 0.02), 0.008)
    gate.stop(0.008, MeasuredPose(STAMP, HOME, DOWN))
    assert gate.moving
    for _ in range(40):
        gate.stop(0.008)
    assert not gate.moving


def test_a_stop_does_not_follow_a_measured_pose_for_ever():
    gate = started()
    gate.limit(Target(HOME + np.array([0.003, 0, 0]), DOWN, 0.02), 0.008)
    last = HOME
    for i in range(200):
        last = gate.stop(0.01, MeasuredPose(STAMP + i * 10 * MS, HOME + np.array([0.001 * i, 0, 0]), DOWN)).position
    assert not gate.moving and last[0] - HOME[0] < 0.06


@pytest.mark.parametrize(
    ("away", "turned", "ms", "words"),
    [(0.3, 0.0, 5, "0.30 m"), (0.3, 0.0, 20, "0.30 m"), (0.0, 1.0, 20, "1.00 rad"), (0.012, 0.05, 5, ""), (0.5, 1.0, 500, "")],
)
def test_measured_poses_that_are_not_one_arms_are_told(away, turned, ms, words):
    said = jump(MeasuredPose(STAMP, HOME, DOWN), MeasuredPose(STAMP + ms * MS, HOME + np.array([0, away, 0]), gripper_down(turned)))
    assert (words in said) if words else not said


def test_needs_a_start():
    with pytest.raises(RuntimeError, match="start"):
        SafetyGate(LIMITS).stop(0.01)


anything = st.one_of(st.floats(-2, 2), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 1.7e308, -1.7e308, 0.0]))
rows = st.lists(st.tuples(*[anything] * 8), min_size=2, max_size=4)
rotations = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)


@st.composite
def arrivals(draw):
    """(chunk, age ms, pause ms before it, ms after it): half of the chunks have sound rotations, so that many are followed."""
    values = np.array(draw(rows))
    if draw(st.booleans()):
        values = np.nan_to_num(values, nan=0.1, posinf=3.0, neginf=-3.0)
        q = np.array([draw(rotations) for _ in values])
        values[:, 3:7] = q / np.linalg.norm(q, axis=-1, keepdims=True)
    spacing = draw(st.sampled_from([50, 50, 50, 1, 0, -50]))
    return values, spacing, draw(st.integers(-200, 700)), draw(st.integers(0, 400))


@pytest.mark.parametrize("handover", HANDOVERS)
@given(sequence=st.lists(arrivals(), min_size=1, max_size=8), dt_ms=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_every_target_is_safe(handover, sequence, dt_ms):
    gate, schedule, now, dt = started(), ChunkSchedule(0.0, LIMITS.stale_after, handover), STAMP, dt_ms / 1000
    last = gate.target
    low, high = np.array(LIMITS.workspace_min), np.array(LIMITS.workspace_max)
    for values, spacing, age, duration in sequence:
        stamp = now - age * MS
        stamps = stamp + (np.arange(len(values), dtype=np.int64) - 1) * spacing * MS
        arrived = ActionChunk(stamp, stamps, values[:, :3], values[:, 3:7], values[:, 7])
        if gate.check(arrived, now):
            schedule.add(arrived, now, gate.target)
        for _ in range(1 + duration // max(dt_ms, 20)):
            wanted = schedule.sample(now)
            target = gate.stop(dt) if wanted is None else gate.limit(wanted, dt)
            assert np.all(np.isfinite(target.position)) and np.isfinite(target.opening)
            assert abs(np.linalg.norm(target.quaternion) - 1) < 1e-6
            assert np.all(target.position >= low) and np.all(target.position <= high)
            assert LIMITS.opening[0] <= target.opening <= LIMITS.opening[1]
            assert np.linalg.norm(target.position - last.position) <= LIMITS.linear_speed * dt + 1e-9
            assert rotation_angle(target.quaternion, last.quaternion) <= LIMITS.angular_speed * dt + 1e-6
            last = target
            now += dt_ms * MS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"linear_speed": 0.0}, "linear_speed"),
        ({"stale_after": float("nan")}, "stale_after"),
        ({"workspace_min": (0.9, -0.4, 0.0)}, "workspace_min"),
        ({"opening": (0.08, 0.0)}, "opening"),
    ],
)
def test_senseless_limits_are_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LIMITS, **change)


def test_a_robot_file_with_missing_limits_is_refused_by_name(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("safety: {linear_speed: 1.0}\n")
    with pytest.raises(ValueError, match=r"robot\.yaml.*workspace_min"):
        SafetyLimits.from_yaml(path)
