"""For launch files: a graph as launch's actions. The only module that needs ``launch``; what it starts, ``onedp`` starts too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription  # type: ignore[attr-defined]  # mypy takes the folder launch/ for it
from onedp_ros.graph import ROBOTS, NodeProcess, graph_environment

ROBOT = {
    "robot": ("twin", f"one of {', '.join(ROBOTS)}"),
    "robot_file": ("", "workspace, speeds … of your own: path of a file like config/robot/franka.yaml; empty: the robot's"),
    "speed": ("1.0", "share of the robot file's speeds, above 0 and up to 1"),
    "image_transport": ("raw", "how the cameras publish: raw or compressed"),
    "robot_ip": ("", "address of the Franka"),
    "mode": ("", "cartesian_pose or cartesian_impedance; empty: the robot file's"),
    "realtime": ("enforce", "enforce, or ignore for a machine without a real-time kernel"),
    "cpu": ("-1", "processor of its own for the control loop; -1: any"),
}


def robot_arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """What :data:`ROBOT` was given, as arguments of the functions in ``graph``."""
    franka = {**{name: given[name] for name in ("robot_ip", "mode", "realtime")}, "cpu": int(given["cpu"])}
    named = {name: given[name] for name in ("robot", "robot_file", "image_transport")}
    return {**named, "speed": float(given["speed"]), "franka": franka}


def description(
    arguments: Mapping[str, tuple[str, str]], make: Callable[[Mapping[str, str]], Sequence[NodeProcess]]
) -> LaunchDescription:
    """A launch description with ``arguments`` (name -> default, description) that starts the processes that ``make`` names."""

    def start(context: LaunchContext) -> list[Any]:
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        environment = [SetEnvironmentVariable(name, value) for name, value in graph_environment(os.environ).items()]
        return [*environment, *map(_node, make(given))]

    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in arguments.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def _node(process: NodeProcess) -> Node:
    return Node(
        package="onedp_ros",
        executable=process.executable,
        name=process.name,
        parameters=[dict(process.parameters)],
        output="screen",
        sigterm_timeout="1.5",
        sigkill_timeout="0.3",
        respawn=process.respawn,
        respawn_delay=1.0,
        on_exit=None if process.respawn else Shutdown(reason=f"{process.name} ended"),
    )
