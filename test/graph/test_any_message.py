"""No message ends a node: whatever comes, its callbacks return, and what it keeps stays bounded.

The real callbacks of real nodes take messages of any content, the middleware aside. More of them:
``pytest test/graph/test_any_message.py --hypothesis-profile fuzz``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages_at_random import near
from pictures import picture
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState, Joy
from standin import load_standin
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import task_contract
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.geometry import gripper_down
from onedp_ros.graph.processes import free_domain
from onedp_ros.messages.encode import chunk_message, header, image_message, pose_message, state_message
from onedp_ros.nodes.action_node import ActionNode
from onedp_ros.nodes.crisp_node import CrispNode
from onedp_ros.nodes.franka_node import make_node as make_franka_node
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode
from onedp_ros.nodes.recorder_node import RecorderNode
from onedp_ros.nodes.teleop_node import TeleopNode
from onedp_ros.nodes.twin_node import TwinNode
from onedp_ros.robot.fake_franka import FakeFranka
from onedp_ros.teleop.devices import DEVICES
from onedp_ros.teleop.devices.base import Command, Device

CONTRACT = task_contract("pnp_milk")


class Hands(Device):
    """An operator who always pushes, and whose display takes what JSON can say."""

    shows_frames = True

    def poll(self) -> Command:
        return Command(True, (0.5, 0.0, 0.0, 0.0, 0.0, 0.0))

    def events(self) -> list[str]:
        return ["gripper", "home"]

    def show(self, status: Any) -> None:
        assert len(json.dumps(status, allow_nan=False)) < 100_000

    def show_frame(self, camera: str, jpeg: bytes) -> None:
        assert len(jpeg) < 1_000_000


@dataclasses.dataclass
class Sent:
    """A message to a subscription."""

    subscription: Any
    message: Any

    def __repr__(self) -> str:
        return f"{self.subscription.topic_name}: {str(self.message)[:500]}"


class Requests:
    def __init__(self, node: Any, name: str, settings: Any) -> None:
        self.problem = ""

    def request(self, request: str) -> None:
        pass


def template(kind: Any, topic: str, stamp: int) -> Any:
    """A message that the topic's subscriber takes, stamped at ``stamp`` (ns)."""
    if kind is PoseStamped:
        return pose_message([0.5, 0.0, 0.3], gripper_down(0.0), stamp, "base")
    if topic.endswith("observation/state"):
        return state_message(CONTRACT, np.array([0.5, 0, 0.3, 1, 0, 0, 0, 0.02, 0.02], np.float32), stamp)
    if topic.endswith("gripper_target"):
        return JointState(header=header(stamp), name=["gripper"], position=[0.04])
    if kind is JointState:
        return JointState(header=header(stamp), name=["fr3_joint1", *CONTRACT.arm.finger_joints], position=[0.5, 0.02, 0.02])
    if kind is Image:
        return image_message(picture(stamp // 1000 % 256), stamp)
    if kind is CompressedImage:
        data = cv2.imencode(".jpg", picture(stamp // 1000 % 256))[1].tobytes()
        return CompressedImage(header=header(stamp), format="jpeg", data=data)
    if kind is MultiDOFJointTrajectory:
        n = CONTRACT.horizon
        poses = np.tile([0.5, 0.0, 0.3], (n, 1)), np.tile(gripper_down(0.0), (n, 1))
        return chunk_message(ActionChunk(stamp, CONTRACT.action_stamps(stamp), *poses, np.full(n, 0.03)), "base")
    if kind is DiagnosticArray:
        values = [KeyValue(key="state", value="recording"), KeyValue(key="seconds", value="1.5")]
        status = DiagnosticStatus(level=DiagnosticStatus.ERROR, name="/recorder_node", message="disk", values=values)
        return DiagnosticArray(header=header(stamp), status=[status])
    assert kind is Joy
    return Joy(header=header(stamp), axes=[0.0] * 8, buttons=[0] * 12)


@pytest.fixture
def fake(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFranka]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the mark of an arm under control
    with FakeFranka() as made:
        yield made


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes a node in a domain of its own; it is not spun: the test calls what the executor would."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=free_domain())
    nodes: list[Any] = []

    def start(kind: Callable[..., Any], **parameters: Any) -> Any:
        overrides = [Parameter(n, value=v) for n, v in {"task": "pnp_milk", **parameters}.items()]
        nodes.append(kind(context=context, parameter_overrides=overrides))
        return nodes[-1]

    yield start
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def run(node: Any, fraction: float = 0.2) -> None:
    """Give the node's subscriptions sequences of messages at random, and let its timers run after each; a fraction of as many as
    the profile says."""
    left_out = ("/parameter_events", "/clock", "/target_stop")  # the last has no field that could vary
    subscriptions = [s for s in node.subscriptions if not s.topic_name.endswith(left_out)]
    assert subscriptions
    templates = {s.topic_name: template(s.msg_type, s.topic_name, 0) for s in subscriptions}
    messages = st.sampled_from(subscriptions).flatmap(lambda s: st.builds(Sent, st.just(s), near(templates[s.topic_name])))
    examples = round(fraction * settings.default.max_examples)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.lists(messages, min_size=1, max_size=6), st.booleans())
    def take(sent: list[Sent], good: bool) -> None:
        if good:  # so that what follows meets a node that works
            sent = [Sent(s, template(s.msg_type, s.topic_name, 0)) for s in subscriptions] + sent
        for subscription, message in ((s.subscription, s.message) for s in sent):
            if hasattr(message, "header") and message.header.stamp.sec == 0:
                message.header.stamp = node.get_clock().now().to_msg()
            if subscription.raw:
                subscription.callback(serialize_message(message), node.get_clock().now().nanoseconds)
            else:
                subscription.callback(message)
        for timer in node.timers:
            timer.callback()

    take()


@pytest.mark.parametrize("transport", ["raw", "compressed"])
@pytest.mark.concurrent
def test_observation_node(make: Callable[..., Any], transport: str) -> None:
    node = make(ObservationNode, image_transport=transport)
    run(node)
    assert sum(node._refused.values()) > 0
    assert len(node._refused) + len(node._assembler.dropped) < 100, "reasons do not come from messages"


@pytest.mark.concurrent
def test_teleop_node(make: Callable[..., Any]) -> None:
    DEVICES.add("hands", Hands)
    try:
        node = make(TeleopNode, device="hands")
    finally:
        DEVICES.remove("hands")
    run(node)
    assert len(node._others) <= 65 and len(node._refused) < 50


@pytest.mark.concurrent
def test_teleop_node_with_a_joystick(make: Callable[..., Any]) -> None:
    node = make(TeleopNode, device="gamepad")
    run(node)


@pytest.mark.concurrent
def test_policy_node(make: Callable[..., Any]) -> None:
    node = make(functools.partial(PolicyNode, load_standin))
    assert node.trigger_configure().name == node.trigger_activate().name == "SUCCESS"
    run(node)
    assert len(node._rejected) < 20


@pytest.mark.concurrent
def test_action_node(make: Callable[..., Any]) -> None:
    node = make(ActionNode, enabled=True)
    run(node)
    assert node._gate.target is None or np.all(np.isfinite(node._gate.target.position))


@pytest.mark.concurrent
def test_crisp_node(make: Callable[..., Any]) -> None:
    run(make(functools.partial(CrispNode, Requests)))


@pytest.mark.concurrent
def test_recorder_node(make: Callable[..., Any], tmp_path: Any) -> None:
    node = make(RecorderNode, out=str(tmp_path))
    node._start()
    run(node)


def test_twin_node(make: Callable[..., Any]) -> None:
    node = make(TwinNode)
    run(node, 0.1)
    assert node._thread.is_alive(), "physics goes on"
    assert np.all(np.isfinite(node._timed.cell.position))


def test_franka_node(fake: FakeFranka, make: Callable[..., Any]) -> None:
    node = make(make_franka_node, robot_ip=fake.address, realtime="ignore", autostart=True)
    run(node, 0.1)
    assert node._franka is not None and node._franka.fault is None
