"""Load for the recorder: ``python -m onedp_ros.bench.recorder_load cameras|robot``, until SIGTERM.

Two noisy 640x480 cameras, which hardly compress, at 30 Hz each and half a period apart; or joints and pose at 200 Hz and targets at
50 Hz. Each part is a separate process, as drivers are. On exit prints a line of JSON: the stamps (ns) sent, by topic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState

from onedp_ros.contract import Contract, task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.encode import MESSAGES, header, image_message, pose_message
from onedp_ros.resources import default_task

WIDTH, HEIGHT, CAMERA_HZ = 640, 480, 30
STATE_HZ, TARGET_EVERY = 200, 4
SCENES = 20  # different images, generated beforehand

Turn = list[tuple[str, Any]]  # topics and the messages to publish on them at one instant


def camera_turns(contract: Contract) -> Iterator[Turn]:
    """The cameras in turn, each with the next image."""
    rng = np.random.default_rng(0)
    slope = np.linspace(40, 200, WIDTH)[None, :, None] + np.zeros((HEIGHT, 1, 3))
    scenes = [image_message(np.clip(rng.normal(slope, 3), 0, 255).astype(np.uint8), 0) for _ in range(SCENES)]
    topics = [camera.topic for camera in contract.cameras.values()]
    for topic, scene in zip(itertools.cycle(topics), itertools.cycle(scenes)):
        yield [(topic, scene)]


def robot_turns(contract: Contract) -> Iterator[Turn]:
    """Joints and pose every time, targets every fourth time."""
    pose = pose_message([0.5, 0.0, 0.3], gripper_down(0.0), 0, "base")
    joints = JointState(name=[f"joint_{i}" for i in range(9)], position=[0.1] * 9, velocity=[0.0] * 9)
    arm = contract.arm
    state: Turn = [(arm.joint_states_topic, joints), (arm.pose_topic, pose)]
    targets: Turn = [(arm.target_topic, pose), (arm.gripper_topic, JointState(name=["gripper"], position=[0.04]))]
    for i in itertools.count():
        yield state if i % TARGET_EVERY else state + targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["cameras", "robot"])
    part = parser.parse_args().part
    ended = threading.Event()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    node, contract = rclpy.create_node(f"recorder_load_{part}"), task_contract(default_task())
    if part == "cameras":
        topics = {camera.topic: Image for camera in contract.cameras.values()}
        quality, turns, rate = qos_profile_sensor_data, camera_turns(contract), CAMERA_HZ * len(topics)
    else:
        topics = {topic: MESSAGES[name] for topic, name in {**contract.state_topics, **contract.action_topics}.items()}
        quality, turns, rate = QoSProfile(depth=10), robot_turns(contract), STATE_HZ
    publishers = {topic: node.create_publisher(kind, topic, quality) for topic, kind in topics.items()}
    sent: dict[str, list[int]] = {topic: [] for topic in topics}
    begin = time.monotonic()
    for i, turn in enumerate(turns):
        if ended.wait(max(begin + i / rate - time.monotonic(), 0.0)):
            break
        for topic, message in turn:
            stamp = time.time_ns()
            message.header = header(stamp)
            publishers[topic].publish(message)
            sent[topic].append(stamp)
    node.destroy_node()
    rclpy.try_shutdown()
    print(json.dumps(sent))


if __name__ == "__main__":
    main()
