"""A policy's stand-in that drives an arm to and fro at a pace, and how the arm comes to rest after that."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
from geometry_msgs.msg import PoseStamped
from std_srvs.srv import SetBool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, task_contract
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.decode import pose_arrays, stamp_ns
from onedp_ros.messages.encode import chunk_message

RANGE = 0.2  # m to either side, along y
REST = 0.02  # m/s; slower is at rest
CONTRACT = task_contract("pnp_milk")


class Process(subprocess.Popen):
    """A node in a process of its own, in the rig's domain (``ROS_DOMAIN_ID``)."""

    def __init__(self, node, **parameters):
        given = [word for name, value in {"task": CONTRACT.task, **parameters}.items() for word in ("-p", f"{name}:={value}")]
        super().__init__([sys.executable, "-m", f"onedp_ros.nodes.{node}", "--ros-args", *given])

    def __exit__(self, *details):
        self.kill()
        super().__exit__(*details)


def check_stop(driving, stop, deceleration, after=0.0, margin=0.01, time_margin=0.1):
    """Whether the arm rests within its braking distance and time, and a margin (m, s). It may go on for ``after`` s first."""
    speed = driving.speed()
    distance, seconds = driving.way_to_rest(stop)
    assert distance < speed * after + speed**2 / (2 * deceleration) + margin, (speed, distance, seconds)
    assert seconds < after + speed / deceleration + time_margin, (speed, distance, seconds)


class Driving:
    """Chunks, 60 a second and each 20 ms old, for a graph with action_node and an arm; and the arm's poses."""

    def __init__(self, rig, poses, pace=0.3):
        self.rig, self.poses, self._pace = rig, poses, pace
        self.targets = rig.listen(PoseStamped, "target_pose")
        self.silent = False
        self._publisher = rig.node.create_publisher(MultiDOFJointTrajectory, "action/chunk", 1)
        self._client = rig.node.create_client(SetBool, "action_node/enable")
        self._leg, self._lock = None, threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._thread.join()

    def _run(self):
        while not self._closing.wait(1 / 60):
            if self._leg is not None and not self.silent:
                begin, position, quaternion, side = self._leg
                stamp = time.time_ns() - 20_000_000
                stamps = CONTRACT.action_stamps(stamp)
                shift = self._pace * np.maximum((stamps - begin) / NANOSECONDS, 0.0)
                positions = position + np.outer(side * shift, [0, 1, 0])
                positions[:, 1] = np.clip(positions[:, 1], -0.35, 0.35)
                fields = {"quaternions": np.tile(quaternion, (16, 1)), "openings": np.full(16, 0.08)}
                message = chunk_message(ActionChunk(stamp, stamps, positions, **fields), "base")
                with self._lock:
                    if not self.silent:
                        self._publisher.publish(message)

    def ask(self, wanted):
        self.rig.until(self._client.service_is_ready, "action_node")
        return self._client.call_async(SetBool.Request(data=wanted))

    def enable(self):
        def enabled():
            call = self.ask(True)
            self.rig.until(call.done, "the answer")
            return call.result().success

        self.rig.until(enabled, "action_node to be enabled")

    def speed(self):
        """m/s, over the last 25 ms or so."""
        (a, _), (b, _) = (pose_arrays(self.poses[i].pose) for i in (-6, -1))
        return float(np.linalg.norm(b - a)) / max((stamp_ns(self.poses[-1]) - stamp_ns(self.poses[-6])) / NANOSECONDS, 1e-3)

    def fall_silent(self):
        """Send no more chunks."""
        self.silent = True

    def die(self):
        """No more publish chunks."""
        with self._lock:
            self.silent = True
            self.rig.node.destroy_publisher(self._publisher)

    def drive(self):
        """Enable, and return when the arm moves at the pace (m/s)."""
        self._leg = None
        self.silent = False
        self.enable()
        self._turn()
        begin = len(self.poses)

        def steady():
            nonlocal begin
            y = self.poses[-1].pose.position.y
            if len(self.poses) > begin + 100 and self.speed() < 0.02:  # at the end of the leg: too late, on a busy machine
                self._turn()
                begin = len(self.poses)
            return len(self.poses) > begin + 100 and abs(self.speed() - self._pace) < 0.05 and abs(y) < RANGE + 0.07

        self.rig.until(steady, f"an arm at {self._pace} m/s")

    def _turn(self):
        """Lead to the other side from where the arm is."""
        position, quaternion = pose_arrays(self.poses[-1].pose)
        self._leg = time.time_ns(), position, quaternion, -1 if position[1] > 0 else 1

    def way_to_rest(self, stop):
        """Call ``stop()`` and wait for the arm to rest: how far it went (m) and how long it took (s)."""
        begin = time.time_ns()
        stop()
        self.rig.until(lambda: stamp_ns(self.poses[-1]) > begin + NANOSECONDS, "a second to pass")
        after = [(stamp_ns(m), pose_arrays(m.pose)[0]) for m in self.poses if stamp_ns(m) >= begin]
        stamps, positions = np.array([s for s, _ in after]), np.array([p for _, p in after])
        speeds = np.linalg.norm(positions[5:] - positions[:-5], axis=1) / ((stamps[5:] - stamps[:-5]) / NANOSECONDS)
        moving = np.nonzero(speeds > REST)[0]
        assert len(moving) and moving[-1] < len(speeds) - 1, "the arm did not move, or did not come to rest"
        return float(np.linalg.norm(positions - positions[0], axis=1).max()), (stamps[moving[-1]] - begin) / NANOSECONDS
