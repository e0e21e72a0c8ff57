"""Real rclpy graphs for tests: every test has a ROS domain of its own; waiting is by condition."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture

pytest.importorskip("rclpy", reason="needs ROS 2: a sourced distribution, or its wheels (make venv)")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState

from onedp_ros.contract import NANOSECONDS, Normalizer, task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.graph.client import name_within
from onedp_ros.graph.processes import free_domain
from onedp_ros.messages.encode import header, image_message, pose_message
from onedp_ros.nodes.lib.executor import LeanExecutor
from onedp_ros.nodes.lib.lifecycle import LifecycleNode
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy

MS = 1_000_000
TASK = {"task": "pnp_milk"}  # parameter of all nodes that none is chosen for
ROTATION = np.array([1, 0, 0, 0, -1, 0], dtype=np.float32)


class Source:
    """Two cameras at 33 Hz, staggered, whose pictures differ in their first row, and a robot at 200 Hz whose hand moves to and fro
    along x at 0.1 m/s from where it was at ``zero``.

    Change the attributes to spoil what is published; ``offset`` (ns) shifts all stamps.
    """

    def __init__(self, node: Node) -> None:
        self.contract = task_contract("pnp_milk")
        self.zero = time.time_ns()
        self.offset = 0
        self.silent: set[str] = set()
        self.every: dict[str, int] = {}  # by camera, of how many frames one is published
        self.change_image: Callable[[Image], None] = lambda message: None
        self.change_joints: Callable[[JointState], None] = lambda message: None
        self.change_pose: Callable[[PoseStamped], None] = lambda message: None
        self.frames: dict[tuple[str, int], int] = {}
        self._cameras = {
            name: node.create_publisher(Image, camera.topic, qos_profile_sensor_data)
            for name, camera in self.contract.cameras.items()
        }
        self._joints = node.create_publisher(JointState, self.contract.arm.joint_states_topic, 10)
        self._pose = node.create_publisher(PoseStamped, self.contract.arm.pose_topic, 10)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def position(self, stamp: int) -> np.ndarray:
        return np.array([0.4 + 0.1 * abs(((stamp - self.zero) / NANOSECONDS + 2.0) % 4.0 - 2.0), 0.0, 0.3])

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        begin, step = time.monotonic(), 0
        while not self._closing.wait(max(0.0, begin + step * 0.005 - time.monotonic())):
            stamp = time.time_ns() + self.offset
            pose = pose_message(self.position(stamp), gripper_down(0.2), stamp, self.contract.base_frame)
            joints = JointState(
                header=header(stamp), name=["fr3_joint1", *self.contract.arm.finger_joints], position=[0.5, 0.02, 0.02]
            )
            self.change_pose(pose)
            self.change_joints(joints)
            if "pose" not in self.silent:
                self._pose.publish(pose)
            if "joints" not in self.silent:
                self._joints.publish(joints)
            if step % 3 == 0:  # every 15 ms, in turn
                name = list(self._cameras)[step // 3 % 2]
                if name not in self.silent and step // 6 % self.every.get(name, 1) == 0:
                    value = step // 3 % 251
                    image = image_message(picture(value), stamp)
                    self.change_image(image)
                    self.frames[name, stamp] = value
                    self._cameras[name].publish(image)
            step += 1


class Rig:
    """A context of its own, a node that listens and publishes for the test, and nodes under test spun in a thread."""

    def __init__(self) -> None:
        self.domain = free_domain()
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context, domain_id=self.domain)
        self.node = Node("test_rig", context=self.context, start_parameter_services=False)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self.status: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._nodes: list[Node] = []
        self._executors: list[LeanExecutor] = []
        self._threads: list[threading.Thread] = []
        self._sources: list[Source] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def add(self, make: Callable[..., Node], **parameters: Any) -> Any:
        """Make a node with parameters and spin it in a thread of its own."""
        overrides = [Parameter(name, value=value) for name, value in {**TASK, **parameters}.items()]
        node = make(context=self.context, parameter_overrides=overrides)
        executor = LeanExecutor(context=self.context)
        executor.add_node(node)

        self._nodes.append(node)
        self._executors.append(executor)
        self._threads.append(threading.Thread(target=executor.spin))
        self._threads[-1].start()
        return node

    def transition(self, node: LifecycleNode, name: str) -> TransitionCallbackReturn:
        """Make a transition, such as ``"configure"``, in the thread that spins the node, as a request of it does."""
        assert node.executor is not None
        task = node.executor.create_task(node.change_state, getattr(Transition, f"TRANSITION_{name.upper()}"))
        self.until(task.done, f"the transition {name}", 60.0)
        return task.result()

    def process(self, module: str, **parameters: Any) -> subprocess.Popen[bytes]:
        """A node in a process of its own, by its module; killed at the end."""
        arguments = [part for name, value in {**TASK, **parameters}.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", f"onedp_ros.nodes.{module}", "--ros-args", *arguments]
        self._processes.append(subprocess.Popen(command, env={**os.environ, "ROS_DOMAIN_ID": str(self.domain)}))
        return self._processes[-1]

    def source(self) -> Source:
        self._sources.append(Source(self.node))
        return self._sources[-1]

    def listen(self, message_type: Any, topic: str) -> list[Any]:
        """The messages of a topic, as they come; the list grows."""
        self.node.create_subscription(message_type, topic, self.received[topic].append, qos_profile_sensor_data)
        return self.received[topic]

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
        """Take messages until ``condition()`` holds, and return its value. A failure after ``timeout`` s says ``what``."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s in vain for {what}; status: {self.describe()}")
            self._executor.spin_once(timeout_sec=0.05)
        return value

    @staticmethod
    def parameter(name: str, value: Any) -> Parameter:
        return Parameter(name, value=value)

    def more(self, messages: list[Any], count: int, what: str) -> list[Any]:
        """Wait for ``count`` further messages of a list that grows, and return them."""
        have = len(messages)
        self.until(lambda: len(messages) >= have + count, what)
        return messages[have:]

    def value(self, node: str, key: str) -> float:
        """A number of a node's diagnostics; 0 when it is not there."""
        status = self.status.get(node)
        return float({v.key: v.value for v in status.values}.get(key, 0)) if status else 0.0

    def level(self, node: str, level: bytes, words: str) -> bool:
        """Whether the node's last status has the level, and a message with these words."""
        status = self.status.get(node)
        return status is not None and status.level == level and words in status.message

    def error(self, node: str, words: str) -> bool:
        return self.level(node, DiagnosticStatus.ERROR, words)

    def describe(self) -> dict[str, Any]:
        return {name: (s.level, s.message, {v.key: v.value for v in s.values}) for name, s in self.status.items()}

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.status[name_within(status.name, "/")] = status

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for source in self._sources:
            source.close()
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join()
        for node in (*self._nodes, self.node):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Sequence[float]], Path]:
    """Makes a policy by a name, which says: near a position (m), pointing down, whatever it sees."""

    def make(name: str, position: Sequence[float]) -> Path:
        torch.manual_seed(0)
        offset = np.concatenate([position, ROTATION, [0.04]]).astype(np.float32)
        scale = np.array([*[0.01] * 3, *[0.05] * 6, 0.01], dtype=np.float32)
        normalizer = Normalizer(np.zeros(9, np.float32), np.ones(9, np.float32), offset, scale)
        network = NetworkConfig(encoder_width=16, unet_channels=(16, 32))
        path = tmp_path_factory.mktemp("models") / name
        save_policy(path, Policy(task_contract("pnp_milk"), network, normalizer, "onedp_s"), {})
        return path

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[[str, Sequence[float]], Path]) -> Path:
    """Says: near (0.5, 0, 0.3), pointing down, whatever it sees."""
    return make_bundle("onedp_s", (0.5, 0, 0.3))


@pytest.fixture
def domain() -> int:
    """A ROS domain of the test's own."""
    return free_domain()
