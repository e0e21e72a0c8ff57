"""Two colour image streams over DDS, to count the frames that arrive: ``python -m onedp_ros.bench.frame_load publish|subscribe``.

Publisher and subscriber run in separate processes, as cameras and policy do. The subscriber prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from onedp_ros.contract import NANOSECONDS
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import image_message

TOPICS = ("frame_load/wrist", "frame_load/front")
READY = "frame_load/ready"
MATCH_TIME = 20.0  # s that publisher and subscriber wait for each other


def publish(width: int, height: int, rate: float, seconds: float) -> None:
    """Publish both streams once a subscriber has matched."""
    node = rclpy.create_node("frame_load_publisher")
    publishers = [node.create_publisher(Image, topic, qos_profile_sensor_data) for topic in TOPICS]
    deadline = time.monotonic() + MATCH_TIME
    while not (all(p.get_subscription_count() for p in publishers) and node.count_publishers(READY)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no subscriber within {MATCH_TIME:g} s")
        rclpy.spin_once(node, timeout_sec=0.05)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    begin = time.monotonic()
    for i in range(int(rate * seconds)):
        for publisher in publishers:
            publisher.publish(image_message(image, time.time_ns()))
        time.sleep(max(0.0, begin + (i + 1) / rate - time.monotonic()))
    rclpy.spin_once(node, timeout_sec=0.5)  # let the last frames be sent
    node.destroy_node()


def subscribe() -> None:
    """Count frames and measure their age (ms) until none has arrived for two seconds."""
    node = rclpy.create_node("frame_load_subscriber")
    ages: list[float] = []
    last = [time.monotonic() + MATCH_TIME - 2.0]

    def on_image(message: Image) -> None:
        ages.append((time.time_ns() - stamp_ns(message)) / NANOSECONDS * 1e3)
        last[0] = time.monotonic()

    subscriptions = [node.create_subscription(Image, topic, on_image, qos_profile_sensor_data) for topic in TOPICS]
    deadline = time.monotonic() + MATCH_TIME
    while not all(s.get_publisher_count() for s in subscriptions) and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.02)
    node.create_publisher(Image, READY, 1)  # tells the publisher that no frame will be missed
    while time.monotonic() - last[0] < 2.0:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    percentiles = np.percentile(ages, [50, 95, 99]).round(2).tolist() if ages else [None] * 3
    print(json.dumps({"received": len(ages), **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", choices=["publish", "subscribe"])
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--rate", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    rclpy.init(args=[])
    try:
        subscribe() if args.end == "subscribe" else publish(args.width, args.height, args.rate, args.seconds)
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
