"""Declares a node's parameters with description and range.

There are three kinds. Parameters that define a node (its task, robot, topics) are read once, at start: :func:`declare`. Numbers
that may change during motion: :func:`declare_dynamic`. Parameters that a lifecycle node uses in configure may change while it is
unconfigured: :func:`declare_unconfigured`. ``ros2 param set`` refuses anything else, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from onedp_ros.contract import Contract, task_contract
from onedp_ros.resources import named_file, names_of_files
from onedp_ros.settings import Choice, Range


def declare(node: Node, name: str, default: Any, description: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a parameter that is read once, at start, and return its value. ``low`` and ``high`` bound a number."""
    return node.declare_parameter(name, default, _descriptor(default, description, low, high, read_only=True)).value


def declare_dynamic(node: Node, name: str, default: float, description: str, low: float, high: float) -> Callable[[], Any]:
    """Declare a number that may change at any time between ``low`` and ``high``. Returns a getter, to be called at each use."""
    node.declare_parameter(name, default, _descriptor(default, f"{description}; may change at any time", low, high))
    return lambda: node.get_parameter(name).value


def declare_unconfigured(
    node: LifecycleNode, name: str, default: Any, description: str, low: float | None = None, high: float | None = None
) -> Callable[[], Any]:
    """Declare a parameter that may change while ``node`` is unconfigured and takes effect at the next configure; in other states
    ``ros2 param set`` fails with the remedy. Returns a getter."""
    description = f"{description}; may change while the node is unconfigured"
    node.declare_parameter(name, default, _descriptor(default, description, low, high))

    def check(parameters: Sequence[Parameter]) -> SetParametersResult:
        state = node._state_machine.current_state[1]  # rclpy has no public way to ask
        if state == "unconfigured" or name not in {p.name for p in parameters}:
            return SetParametersResult(successful=True)
        back = "deactivate and cleanup" if state == "active" else "cleanup"
        remedy = f"ros2 lifecycle set {node.get_fully_qualified_name()} {back}"
        reason = f"{name} may change only while the node is unconfigured, it is {state}: {remedy}, then set it and configure again"
        return SetParametersResult(successful=False, reason=reason)

    node.add_on_set_parameters_callback(check)
    return lambda: node.get_parameter(name).value


def _descriptor(
    default: Any, description: str, low: float | None, high: float | None, read_only: bool = False
) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if low is not None and high is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


def declare_within(node: Node, name: str, default: Any, expected: Range | Choice, description: str) -> Any:
    """Declare a parameter that is read once, at start, and return its value. ValueError if it is not ``expected``."""
    descriptor = ParameterDescriptor(description=description, additional_constraints=f"expected {expected}", read_only=True)
    if isinstance(expected, Range) and not expected.count:
        descriptor.floating_point_range = [FloatingPointRange(from_value=expected.low, to_value=expected.high)]
    default = list(default) if isinstance(default, tuple) else default
    try:
        return expected.check(f"parameter {name}", node.declare_parameter(name, default, descriptor).value)
    except ParameterException as error:
        raise ValueError(f"parameter {name}: {error}, expected {expected}") from error


def declare_contract(node: Node) -> Contract:
    """Declare ``task`` and read its contract. ValueError if it is not given."""
    task = declare(node, "task", "", "Task: the name of a file in config/tasks, or the path of a task file")
    if not task:
        known = ", ".join(names_of_files("tasks"))
        raise ValueError(f"parameter task is empty; give the name of a file in config/tasks ({known}) or the path of a task file")
    return task_contract(task)


def declare_robot_file(node: Node, default: str) -> Path:
    """Declare ``robot`` and find its file."""
    name = declare(node, "robot", default, "Robot: the name of a file in config/robot, or the path of a robot file")
    return named_file("robot", name)


def declare_speed(node: Node) -> float:
    """Declare ``speed``."""
    return float(declare(node, "speed", 1.0, "Fraction of the robot file's speeds", 0.01, 1.0))


def declare_cameras(node: Node, contract: Contract) -> tuple[Any, dict[str, str]]:
    """Declare ``image_transport``. Returns the type of the cameras' messages, and their topics by camera name.

    Raises:
        ValueError: neither raw nor compressed.
    """
    transport = declare(node, "image_transport", "raw", "How the cameras publish: raw, or compressed (topic/compressed)")
    if transport not in ("raw", "compressed"):
        raise ValueError(f"image_transport is '{transport}', expected raw or compressed")
    kind, suffix = (Image, "") if transport == "raw" else (CompressedImage, "/compressed")
    return kind, {name: camera.topic + suffix for name, camera in contract.cameras.items()}
