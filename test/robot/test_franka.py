"""An arm that is driven by the real client: smooth whatever the targets, named faults, and back from them."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from fakes import ROBOT_FILE, SETTINGS, no_fault, pose_of, speeds, stream, sway, until

from onedp_ros.control.limits import SafetyLimits
from onedp_ros.control.safety import pose_fault
from onedp_ros.geometry import gripper_down, quaternion_from_rotation_vector, quaternion_multiply
from onedp_ros.robot.arm import Arm
from onedp_ros.robot.fake_franka import FakeFranka
from onedp_ros.robot.faults import Fault
from onedp_ros.robot.franka import Franka
from onedp_ros.robot.settings import MODES

LIMITS = SafetyLimits.from_yaml(ROBOT_FILE)
AT_REST = 0.005  # m/s


def adversary(seconds, rng, start):
    """(wait s, position, quaternion): steps, slow and fast streams, noise, flipped quaternions, NaN and targets far outside."""
    low, high = np.array(SETTINGS.safety.workspace_min), np.array(SETTINGS.safety.workspace_max)
    position, quaternion = start
    kinds = ("steps", "slow", "noise", "sign", "nan", "burst", "outside")
    for kind in kinds:
        spent = 0.0
        while spent < seconds / len(kinds):
            wait = {"slow": 0.1, "burst": 0.005}.get(kind, 1 / 60)
            p, q = position + rng.normal(size=3) * 0.05, quaternion
            if kind == "steps":
                if spent % 0.5 < wait:
                    way, axis = rng.normal(size=(2, 3))
                    far = 0.5 * (low + high) + 0.15 * way / np.linalg.norm(way)
                    turn = quaternion_from_rotation_vector(0.5 * np.pi * axis / np.linalg.norm(axis))
                p, q = far, quaternion_multiply(turn, quaternion)
            elif kind == "noise":
                p, q = 0.5 * (low + high) + 0.2 * rng.normal(size=3), rng.normal(size=4)
            elif kind == "sign":
                q = quaternion * rng.choice([-1.0, 1.0])
            elif kind == "nan":
                p = np.where(rng.random(3) < 0.3, np.nan, p)
            elif kind == "outside":
                p = rng.choice([-5.0, 5.0], 3)
            yield wait, p, q / np.linalg.norm(q)
            spent += wait


@pytest.mark.parametrize("mode", MODES)
def test_adversarial_targets_cause_no_reflex_and_leave_neither_box_nor_speed_limits(cell, mode):
    franka = cell.franka(arm__mode=mode)
    start = pose_of(franka)
    stream(franka, [start] * 10)
    refused, phases = 0, []
    for wait, position, quaternion in adversary(14.0, np.random.default_rng(0), start):
        refused += bool(pose_fault(position, quaternion))
        franka.target(position, quaternion)
        franka.watch()
        assert franka.fault is None, franka.fault
        phases.append(franka.arm.phase)
        time.sleep(wait)
    assert franka.refused["not_finite"] == refused > 0
    until(lambda: franka.arm.phase == "holding", "rest in the silence after them")
    log = cell.log()
    positions = log["pose"][:, 12:15]
    assert no_fault(log)
    assert np.all(positions >= SETTINGS.safety.workspace_min) and np.all(positions <= SETTINGS.safety.workspace_max)
    assert phases.count("following") > 0.9 * len(phases)
    assert 0.2 < speeds(log).max() <= LIMITS.linear_speed
    assert 0.2 < np.linalg.norm(log["twist"][:, 3:], axis=1).max() <= LIMITS.angular_speed


@pytest.mark.parametrize("mode", MODES)
def test_an_arm_that_is_sent_through_the_walls_at_speed_stays_inside(cell, mode):
    franka = cell.franka(arm__mode=mode)
    _, quaternion = start = pose_of(franka)
    low, high = np.array(SETTINGS.safety.workspace_min), np.array(SETTINGS.safety.workspace_max)
    center = 0.5 * (low + high)
    stream(franka, [start] * 10)

    def go(goal, axis, side):
        """Until that coordinate is near the wall, or the goal."""
        end = min(high[axis], goal[axis]) if side > 0 else max(low[axis], goal[axis])
        send = lambda: stream(franka, [(goal, quaternion)])  # noqa: E731
        until(lambda: franka.fault or side * (end - pose_of(franka)[0][axis]) < 0.03, "the wall", timeout=20.0, every=send)
        stream(franka, [(goal, quaternion)] * 15)

    for axis, side in ((2, -1), (2, 1), (1, 1), (1, -1)):
        go(center + np.eye(3)[axis] * side * 0.8, axis, side)
        go(center, axis, -side)
    assert franka.fault is None, franka.fault
    log = cell.log()
    positions = log["pose"][:, 12:15]
    assert no_fault(log)
    outside = 1e3 * np.maximum(low - positions, positions - high).max()
    assert outside < 0, f"{outside:.1f} mm"
    assert speeds(log).max() > 0.25


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_reached_and_the_arm_starts_and_ends_without_a_jerk(cell, mode):
    franka = cell.franka(arm__mode=mode)
    position, quaternion = pose_of(franka)
    np.testing.assert_allclose(quaternion, gripper_down(0.0), atol=2e-3)
    goal, turned = position + np.array([0.04, -0.06, 0.04]), gripper_down(0.4)
    stream(franka, [(goal, turned)] * 150)
    measured = pose_of(franka)
    assert np.linalg.norm(measured[0] - goal) < 0.005
    assert abs(measured[1] @ turned) > np.cos(0.5 * 0.02)
    franka.deactivate()
    assert franka.fault is None
    log = cell.log()
    assert no_fault(log)
    moving = log["mode"] == 2
    edges = np.flatnonzero(np.diff(moving.astype(int)))
    assert len(edges) >= 2, "one beginning and one end"
    assert speeds(log)[edges + 1].max() < AT_REST


def test_modes_take_turns_without_a_jump(cell):
    for mode in (*MODES, *MODES):
        franka = cell.franka(arm__mode=mode)
        before = pose_of(franka)[0]
        sway(franka, 1.0, width=0.03)
        franka.deactivate()
        assert franka.fault is None
        assert np.linalg.norm(pose_of(franka)[0] - before) < 0.05
        franka.close()
        cell.frankas.remove(franka)
    log = cell.log()
    assert no_fault(log)
    moving = log["mode"] == 2
    assert speeds(log)[np.flatnonzero(np.diff(moving.astype(int))) + 1].max() < AT_REST


def test_without_targets_the_arm_slows_down_and_holds_and_goes_on_with_the_next(cell):
    franka = cell.franka()
    sway(franka, 1.0)
    until(lambda: franka.arm.phase == "holding", "the hold")
    held = pose_of(franka)[0]
    sway(franka, 0.5)
    assert franka.arm.phase == "following"
    assert np.linalg.norm(pose_of(franka)[0] - held) > 0.01
    assert no_fault(cell.log())


def test_following_does_not_begin_with_a_target_that_is_far_away(cell):
    franka = cell.franka()
    position, quaternion = pose_of(franka)
    stream(franka, [(position + np.array([0.0, 0.3, 0.0]), quaternion)] * 20)
    assert franka.arm.phase == "holding"
    assert franka.arm.state()["far"] > 10
    assert np.linalg.norm(pose_of(franka)[0] - position) < 1e-3
    stream(franka, [(position + np.array([0.0, 0.05, 0.0]), quaternion)] * 20)
    assert franka.arm.phase == "following"


def test_a_reflex_is_named_and_needs_to_be_recovered_from(cell):
    franka = cell.franka()
    sway(franka, 0.5)
    cell.fake.tell("reflex")
    until(lambda: franka.fault, "the fault", every=franka.watch)
    assert "cartesian_reflex" in franka.fault.names and "recover" in str(franka.fault)
    assert franka.target(*pose_of(franka)) == "fault"
    franka.recover()
    assert franka.fault is None
    still = pose_of(franka)[0]
    sway(franka, 0.5)
    assert np.linalg.norm(pose_of(franka)[0] - still) > 0.01


def test_recover_without_a_fault_stops_and_goes_on(cell):
    franka = cell.franka()
    for _ in range(2):
        sway(franka, 0.5)
        franka.recover()
        assert franka.fault is None and franka.arm.phase == "holding"
    sway(franka, 0.3)
    assert franka.arm.phase == "following"
    assert no_fault(cell.log())


def test_harmless_reflexes_are_recovered_from_when_listed(cell):
    franka = cell.franka(arm__auto_recover=["cartesian_reflex"])
    sway(franka, 0.3)
    cell.fake.tell("reflex")
    until(lambda: franka.recoveries == 1 and franka.fault is None, "the recovery", every=franka.watch)
    sway(franka, 0.3)
    assert franka.arm.phase == "following"
    cell.fake.tell("reflex")
    until(lambda: franka.fault, "a fault that came back at once", every=franka.watch)


def test_the_user_stop_is_named_and_recovery_has_to_wait_for_its_release(cell):
    franka = cell.franka()
    sway(franka, 0.3)
    cell.fake.tell("press")
    until(lambda: franka.fault, "the fault", every=franka.watch)
    assert "user_stop" in franka.fault.names and "release" in str(franka.fault)
    with pytest.raises(Fault, match="user stop"):
        franka.recover()
    cell.fake.tell("release")
    franka.recover()
    sway(franka, 0.3)
    assert franka.fault is None and franka.arm.phase == "following"


@pytest.mark.parametrize("part", ["arm", "hand"])
def test_a_killed_process_brings_the_arm_to_rest_and_is_started_anew(cell, part):
    franka = cell.franka()
    sway(franka, 0.5)
    os.kill(getattr(franka, part).child.pid, signal.SIGKILL)
    until(lambda: franka.fault, "the fault", every=franka.watch)
    assert "SIGKILL" in str(franka.fault)
    if part == "hand":  # of the arm's the robot notices itself, and writes nothing without a client
        until(lambda: speeds(cell.log()[-20:]).max() < AT_REST, "rest")
    before = len(cell.log())
    franka.recover()
    assert speeds(cell.log()[before:]).max() < 0.02, "the arm rests until there is a new target"
    sway(franka, 0.5)
    assert franka.fault is None and franka.arm.phase == "following"


def test_when_its_node_is_killed_the_arm_comes_to_rest_by_itself_and_the_next_node_asks(cell, tmp_path):
    script = """
        import sys, time
        from onedp_ros.robot.franka import Franka
        from onedp_ros.robot.settings import RobotSettings
        from onedp_ros.resources import resource
        import tempfile
        tempfile.tempdir = sys.argv[1]
        franka = Franka("127.0.0.1", RobotSettings.from_yaml(resource("config", "robot", "franka.yaml")), enforce=False)
        franka.connect()
        franka.activate()
        state = franka.arm.state()
        position, quaternion = state["position"].copy(), state["quaternion"].copy()
        for i in range(10_000):
            franka.target(position + [0, 0, min(0.002 * i, 0.08)], quaternion)
            if i == 30:
                print("moving", flush=True)
            time.sleep(1 / 60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout.readline().strip() == "moving"
        assert speeds(cell.log()[-20:]).max() > 0.02
        node.kill()
    until(lambda: speeds(cell.log()[-20:]).max() < AT_REST, "rest")
    assert no_fault(cell.log()), "the arm's process brought it to rest and ended the motion"
    franka = Franka("127.0.0.1", SETTINGS, enforce=False)
    cell.frankas.append(franka)
    franka.connect()
    franka.activate()
    assert franka.fault is not None and "left_active" in franka.fault.names
    franka.recover()
    sway(franka, 0.3)
    assert franka.arm.phase == "following"


def test_an_end_that_nobody_wanted_is_remembered_until_recover(cell):
    franka = cell.franka()
    franka.close(wanted=False)
    cell.frankas.remove(franka)
    again = Franka(cell.fake.address, SETTINGS, enforce=False)
    again.connect()
    again.close()  # as a node does that failed to start: what the one before left stays
    again = Franka(cell.fake.address, SETTINGS, enforce=False)
    cell.frankas.append(again)
    again.connect()
    again.activate()
    assert "left_active" in again.fault.names and again.arm.phase == "idle"
    again.recover()
    again.close()
    cell.frankas.remove(again)
    last = cell.franka()
    assert last.fault is None


def test_an_end_with_a_fault_is_no_accident(cell):
    franka = cell.franka()
    cell.fake.tell("press")
    until(lambda: franka.fault, "the user stop", every=franka.watch)
    franka.close()
    cell.frankas.remove(franka)
    cell.fake.tell("release")
    assert cell.franka().fault is None


def test_an_address_without_a_robot_is_named_in_time():
    begin = time.monotonic()
    with pytest.raises(Fault, match=r"127\.0\.0\.77.*FCI"):
        connect("127.0.0.77")
    assert time.monotonic() - begin < 5.0


def test_a_robot_that_does_not_answer_is_named(cell):
    cell.franka()
    with pytest.raises(Fault, match=r"no answer from .* within 4 s: another program may hold the"):
        connect(cell.fake.address)  # the robot serves one client and lets the second wait


def test_a_robot_of_another_version_is_named():
    with FakeFranka("--incompatible", address="127.0.0.3"), pytest.raises(Fault, match=r"another version.*5\.9"):
        connect("127.0.0.3")


def connect(address):
    franka = Franka(address, SETTINGS, enforce=False)
    try:
        franka.connect()
    finally:
        franka.close()


def test_the_loop_needs_neither_ros_nor_torch():
    modules = "import sys, onedp_ros.robot.arm_process; print(*sorted(sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"rclpy", "torch", "cv2", "mujoco", "matplotlib", "openvino"}


def test_realtime_scheduling_that_is_not_allowed_is_refused_in_words(cell):
    arm = Arm(cell.fake.address, SETTINGS, enforce=True)
    arm.start()
    try:
        until(lambda: arm.phase != "connecting" or arm.fault(), "an answer")
        fault = arm.fault()
        if fault is not None:  # a machine without a real-time kernel
            assert "realtime" in fault.names and "realtime:=ignore" in str(fault)
        else:
            assert "granted" in arm.notes[0] and "SCHED_FIFO 80" in arm.notes[0] and "refused SCHED" not in arm.notes[0]
    finally:
        arm.close()


def test_an_arm_whose_mark_cannot_be_written_is_not_controlled(cell, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    franka = Franka(cell.fake.address, SETTINGS, enforce=False)
    cell.frankas.append(franka)
    franka.connect()
    with pytest.raises(FileNotFoundError, match="gone"):
        franka.activate()
    assert not franka.active
    franka.recover()
    assert franka.arm.phase == "idle"


def test_what_makes_it_give_up_while_it_recovers_is_not_forgotten(cell):
    franka = cell.franka()
    cell.fake.tell("reflex")
    until(lambda: franka.watch() or franka.fault is not None, "the reflex")
    pause = Fault("it stood still", ("paused",))
    franka._idle = lambda: franka.give_up(pause)
    with pytest.raises(Fault, match="it stood still"):
        franka.recover()
    assert franka.arm.phase == "idle" and franka.fault is pause
    franka._idle = lambda: None
    franka.recover()
    assert franka.arm.phase == "holding"
