"""The hand obeys the newest request, reports what failed, and never holds the arm up."""

import time

import pytest
from fakes import no_fault, pose_of, sway, until


def test_the_hand_grasps_and_opens_and_tells_its_width(cell):
    franka = cell.franka()
    franka.opening(0.0)
    until(lambda: franka.hand.state()["done"] == 1, "the grasp")
    assert franka.hand.state()["grasped"]
    assert franka.hand.width == pytest.approx(0.05, abs=0.001)
    franka.opening(0.08)
    widths = []
    until(lambda: franka.hand.state()["done"] == 2, "the opening", every=lambda: widths.append(franka.hand.width))
    assert widths == sorted(widths) and 0.05 < widths[len(widths) // 2] <= 0.08
    assert franka.hand.problem == ""


def test_a_grasp_of_nothing_is_reported_until_the_next_command(cell):
    franka = cell.franka()
    cell.fake.tell("object none")
    franka.opening(0.0)
    until(lambda: franka.hand.problem, "the report")
    assert "nothing" in franka.hand.problem and franka.hand.state()["failed"] == 1
    franka.opening(0.08)
    until(lambda: not franka.hand.problem, "the next command")


def test_the_newest_request_wins(cell):
    franka = cell.franka()
    for opening in (0.0, 0.08, 0.0, 0.08):
        franka.opening(opening)
        until(lambda: franka.hand.state()["moving"], "the first command")
    until(lambda: franka.hand.state()["done"] == 2 and not franka.hand.state()["moving"], "two of four commands")
    assert franka.hand.width == pytest.approx(0.08, abs=0.001)


def test_a_moving_hand_does_not_hold_the_arm_up(cell):
    franka = cell.franka()
    turn = 0
    while franka.hand.state()["done"] < 4 or franka.arm.state()["cycles"] < 2500:
        franka.opening(0.0 if turn % 2 else 0.08)
        turn += 1
        sway(franka, 0.5)
        assert franka.fault is None
    log = cell.log()
    assert no_fault(log)
    rates = log["success_rate"][log["mode"] == 2][200:]
    assert len(rates) > 1000 and rates.min() > 0.5, "a command of the hand takes hundreds of cycles"


def test_after_homing_the_hand_gets_the_request_again(cell):
    franka = cell.franka()
    franka.opening(0.0)
    until(lambda: franka.hand.state()["done"] == 1, "the grasp")
    franka.hand.home()
    until(lambda: franka.hand.state()["done"] == 2, "homing")
    franka.opening(0.0)
    until(lambda: franka.hand.state()["done"] == 3, "the grasp, again")


def test_homing_is_not_lost_among_requests_that_stream(cell):
    franka = cell.franka()
    requests = []

    def stream():
        requests.append(franka.opening(0.0))

    until(lambda: franka.hand.state()["done"] == 1, "the grasp", every=stream)
    franka.hand.home()
    stream()
    # homing, and then the grasp that is requested still
    until(lambda: franka.hand.state()["done"] == 3, "both", every=stream)
    until(lambda: franka.hand.state()["grasped"], "what it held", every=stream)
    assert franka.hand.state()["failed"] == 0 and len(requests) > 10


def test_a_hand_that_died_mid_grasp_is_told_again(cell):
    franka = cell.franka()
    sway(franka, 0.2)
    franka.opening(0.0)
    until(lambda: franka.hand.state()["moving"], "the grasp")
    franka.hand.child.kill()
    until(lambda: franka.fault, "the fault", every=franka.watch)
    assert "gripper" in str(franka.fault)
    franka.recover()
    time.sleep(0.3)
    assert not franka.hand.state()["done"] and not franka.hand.state()["moving"], "an earlier request is not repeated"
    until(lambda: franka.hand.state()["done"], "the grasp, again", every=lambda: franka.opening(0.0))
    assert franka.hand.state()["grasped"]
    assert pose_of(franka)[0] is not None
