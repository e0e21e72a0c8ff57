"""Nodes that were stopped (SIGSTOP, swap, a paused container) and go on: nothing from before is acted upon."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from onedp_ros.clock import REQUEST_DOUBT
from onedp_ros.data.bags.reader import read_metadata
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.encode import header, pose_message
from onedp_ros.robot.fake_franka import FakeFranka

ASIDE = np.array([0.0, 0.03, 0.0])


class NodeProcess:
    """A node in a process of its own, which can be stopped for a while."""

    def __init__(self, rig, folder, name, **parameters):
        self.rig, self.name = rig, name
        arguments = [word for key, value in {"task": "pnp_milk", **parameters}.items() for word in ("-p", f"{key}:={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"onedp_ros.nodes.{name}", "--ros-args", *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(rig.domain), "TMPDIR": str(folder)},  # for the mark of an arm under control
        )

    def stop_for(self, seconds, during=lambda: None):
        """Stop it and let it go on after some seconds, calling ``during`` 60 times a second meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            during()
            time.sleep(1 / 60)
        self.process.send_signal(signal.SIGCONT)

    def ask(self, service):
        """A request that is on its way when this returns, and what will be its answer."""
        client = self.rig.node.create_client(Trigger, f"{self.name}/{service}")
        self.rig.until(client.service_is_ready, f"the service {service}")
        return lambda: client.call_async(Trigger.Request())

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def started(rig, tmp_path):
    made = []

    def start(name, **parameters):
        made.append(NodeProcess(rig, tmp_path, name, **parameters))
        return made[-1]

    yield start
    for process in made:
        process.close()


def test_an_arm_whose_node_was_stopped_follows_no_old_target_and_waits_for_recover_after_a_long_pause(rig, started):
    poses = rig.listen(PoseStamped, "current_pose")
    target = rig.node.create_publisher(PoseStamped, "target_pose", 1)
    gripper = rig.node.create_publisher(JointState, "gripper_target", 1)

    def position():
        p = poses[-1].pose.position
        return np.array([p.x, p.y, p.z])

    def send(goal, opening=None, age=0.0):
        now = rig.node.get_clock().now().nanoseconds - int(age * 1e9)
        target.publish(pose_message(goal, gripper_down(0.0), now, "base"))
        if opening is not None:
            gripper.publish(JointState(header=header(now), name=["gripper"], position=[opening]))

    def moved(since, seconds, during=lambda: None):
        """The farthest that the arm got from a place within some seconds."""
        end, farthest = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            during()
            have = len(poses)
            rig.until(lambda: len(poses) > have or time.monotonic() > end, "poses")  # noqa: B023
            farthest = max(farthest, float(np.linalg.norm(position() - since)))
        return farthest

    with FakeFranka("--object", "0.05") as fake:
        node = started("franka_node", robot_ip=fake.address, realtime="ignore", autostart=True)
        rig.until(lambda: poses and rig.level("franka_node", b"\x00", "holding"), "a node that holds the arm")
        recover = node.ask("recover")
        goal = position() + ASIDE
        rig.until(lambda: send(goal) or np.linalg.norm(position() - goal) < 0.005, "the arm at the goal")
        moved(position(), 0.6)  # it holds

        # Fast DDS may lose what is sent to a process that does not run, and repeats a lost request after 3 s; so both are sent
        # again afterwards.
        here, commands = position(), rig.value("franka_node", "gripper_commands")
        begun = time.monotonic()
        node.stop_for(1.0, lambda: send(here + 2 * ASIDE) if time.monotonic() < begun + 0.5 else None)
        assert moved(here, 1.0, lambda: send(here + 2 * ASIDE, age=1.0)) < 1e-3, "those targets were sent while it stood still"
        rig.until(lambda: rig.value("franka_node", "refused.old") > 0, "an old target refused")

        node.stop_for(3.3, lambda: send(here + 2 * ASIDE, 0.0))
        answers, resumed = [], time.monotonic()
        while time.monotonic() < resumed + REQUEST_DOUBT - 1.0:
            answers.append(recover())  # as one that waited
            assert moved(here, 1.0, lambda: send(here + 2 * ASIDE, 0.0)) < 1e-3, "nobody expects that any more"
        rig.until(lambda: rig.error("franka_node", "franka_node was paused for 3."), "the fault")
        assert rig.value("franka_node", "gripper_commands") == commands
        refusals = [answer.result() for answer in answers if answer.done()]
        assert refusals and not any(refusal.success for refusal in refusals)
        assert all("call again" in refusal.message for refusal in refusals)

        moved(here, REQUEST_DOUBT)  # after which a request must be a new one
        answer = recover()
        rig.until(answer.done, "the answer")
        assert answer.result().success, answer.result().message
        goal = here + ASIDE
        rig.until(lambda: send(goal) or np.linalg.norm(position() - goal) < 0.005, "the arm at the goal")


def test_a_recorder_that_was_stopped_says_so_and_starts_nothing_that_was_asked_for_before(rig, started, tmp_path):
    rig.source()
    node = started("recorder_node", out=tmp_path, min_free_gb=0.0)
    start, stop = node.ask("start"), node.ask("stop")

    def begin():
        answer = start()
        rig.until(answer.done, "an answer of start")
        return answer.result().success

    rig.until(begin, "a recording to start")
    rig.until(lambda: rig.value("recorder_node", "seconds") > 1.0, "a second")
    node.stop_for(1.0)
    rig.until(lambda: rig.error("recorder_node", "was paused 1 time, the longest for 1."), "the error")
    node.process.send_signal(signal.SIGSTOP)
    ended = stop()
    node.stop_for(3.3)
    rig.until(ended.done, "the answer of stop")
    again = start()  # as one that waited
    rig.until(again.done, "the answer of start")
    assert ended.result().success and "was paused 2 times" in ended.result().message
    assert not again.result().success and "start again" in again.result().message
    problems = read_metadata(tmp_path / "episode_000000")["problems"]
    assert any("was paused 2 times" in problem for problem in problems)
    assert not any("synchronise the clocks" in problem for problem in problems)
    rig.until(begin, "the next recording to start")
