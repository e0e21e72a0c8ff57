"""A process of the arm or of the hand that was stopped and goes on: nothing moves that nobody asks for then."""

import os
import signal
import time

import numpy as np
import pytest
from fakes import pose_of, sway, until

from onedp_ros.robot.settings import MODES


class Stopped:
    """Stops a process for a while; ``during`` is called again and again meanwhile."""

    def __init__(self, pid, seconds, during=lambda: None):
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            during()
            time.sleep(1 / 60)
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("mode", MODES)
def test_an_arm_whose_process_was_stopped_waits_for_recover(cell, mode):
    franka = cell.franka(arm__mode=mode, arm__auto_recover=["communication_constraints_violation"])
    sway(franka, 0.5)
    here = pose_of(franka)
    goal = here[0] + np.array([0.0, 0.05, 0.0]), here[1]

    def send():
        franka.watch()
        franka.target(*goal)

    Stopped(franka.arm.child.pid, 1.0, send)
    until(lambda: franka.fault, "the fault", every=send)
    assert "paused" in franka.fault.names and "was paused for 1." in str(franka.fault) and franka.recoveries == 0
    rested = pose_of(franka)[0]
    for _ in range(30):
        send()
        time.sleep(1 / 60)
    assert np.linalg.norm(pose_of(franka)[0] - rested) < 1e-3 and franka.fault is not None
    franka.recover()
    sway(franka, 0.3)
    assert franka.fault is None and franka.arm.phase == "following"


def test_a_hand_whose_process_was_stopped_obeys_later_requests_and_none_from_before(cell):
    franka = cell.franka()
    done = lambda: int(franka.hand.state()["done"])  # noqa: E731
    pid = franka.hand.child.pid
    os.kill(pid, signal.SIGSTOP)
    franka.opening(0.0)
    franka.hand.home()
    time.sleep(1.7)
    os.kill(pid, signal.SIGCONT)
    until(lambda: "homing was not started" in franka.hand.problem, "what became of the homing")
    time.sleep(0.5)
    assert done() == 0 and not franka.hand.state()["moving"], "nobody requests it any more"
    until(lambda: done() == 1, "the grasp", every=lambda: franka.opening(0.0))
    Stopped(pid, 1.7, lambda: franka.opening(0.08))
    until(lambda: done() == 2, "what is requested all the while", every=lambda: franka.opening(0.08))
    assert franka.fault is None and franka.hand.width == pytest.approx(0.08, abs=1e-3)
