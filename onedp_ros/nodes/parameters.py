"""Declaring a node's parameters with description and range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from onedp_ros.contract import Contract
from onedp_ros.ranges import Choice, Range
from onedp_ros.resources import named_file, task_contract


def declare(node: Node, name: str, default: Any, description: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a parameter that is read once, at start, and return its value. ``low`` and ``high`` bound a number."""
    descriptor = ParameterDescriptor(description=description, read_only=True)
    if low is not None and high is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return node.declare_parameter(name, default, descriptor).value


def declare_within(node: Node, name: str, default: Any, expected: Range | Choice, description: str) -> Any:
    """Declare a parameter that is read once, at start, with what is expected of it, and return its value. ValueError says that."""
    descriptor = ParameterDescriptor(description=description, additional_constraints=f"expected {expected}", read_only=True)
    if isinstance(expected, Range) and not expected.count:
        descriptor.floating_point_range = [FloatingPointRange(from_value=expected.low, to_value=expected.high)]
    default = list(default) if isinstance(default, tuple) else default
    try:
        return expected.check(f"parameter {name}", node.declare_parameter(name, default, descriptor).value)
    except ParameterException as error:
        raise ValueError(f"parameter {name}: {error}, expected {expected}") from error


def declare_contract(node: Node) -> Contract:
    """Declare ``task`` and read its contract."""
    return task_contract(declare(node, "task", "pnp_milk", "Task: the name of a file in config/tasks, or the path of a task file"))


def declare_robot_file(node: Node, default: str) -> Path:
    """Declare ``robot`` and find its file."""
    name = declare(node, "robot", default, "Robot: the name of a file in config/robot, or the path of a robot file")
    return named_file("robot", name)


def declare_speed(node: Node) -> float:
    """Declare ``speed``."""
    return float(declare(node, "speed", 1.0, "Share of the robot file's speeds", 0.01, 1.0))


def declare_cameras(node: Node, contract: Contract) -> tuple[Any, dict[str, str]]:
    """Declare ``image_transport`` and read from it the type of the cameras' messages, and their topics by the cameras' names.

    Raises:
        ValueError: neither raw nor compressed.
    """
    transport = declare(node, "image_transport", "raw", "How the cameras publish: raw, or compressed (topic/compressed)")
    if transport not in ("raw", "compressed"):
        raise ValueError(f"image_transport is '{transport}', expected raw or compressed")
    kind, suffix = (Image, "") if transport == "raw" else (CompressedImage, "/compressed")
    return kind, {name: camera.topic + suffix for name, camera in contract.cameras.items()}
