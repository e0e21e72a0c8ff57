"""For launch files: a graph as launch's actions. The only module that needs ``launch``; what it starts, ``onedp`` starts too.

Besides ``launch`` it needs the standard library and YAML only, since ``ros2`` runs on the system's Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription  # type: ignore[attr-defined]  # mypy takes the folder launch/ for it
from onedp_ros.graph import shm
from onedp_ros.graph.processes import (
    LOG_LEVELS,
    NETWORKS,
    ROBOTS,
    NodeProcess,
    describe_network,
    enclave,
    graph_environment,
    placed,
)
from onedp_ros.resources import resource

ROBOT = {
    "robot": ("twin", f"one of {', '.join(ROBOTS)}"),
    "robot_file": ("", "workspace, speeds … of your own: path of a file like config/robot/franka.yaml; empty: the robot's"),
    "speed": ("1.0", "fraction of the robot file's speeds, above 0 and up to 1"),
    "image_transport": ("raw", "how the cameras publish: raw or compressed"),
    "robot_ip": ("", "address of the Franka"),
    "mode": ("", "cartesian_pose or cartesian_impedance; empty: the robot file's"),
    "realtime": ("enforce", "enforce, or ignore for a machine without a real-time kernel"),
    "cpu": ("-1", "processor of its own for the control loop; -1: any"),
    "robot_model": ("false", "true: robot_state_publisher with franka_description's FR3, for RViz; both have to be installed"),
}
PLACE = {
    "network": ("", f"{' or '.join(NETWORKS)}; empty: as ROS_AUTOMATIC_DISCOVERY_RANGE says, localhost where it is not set"),
    "namespace": ("", "of all nodes, topics and services, so that several robots share a ROS domain"),
    "use_sim_time": ("false", "true: the nodes' time is that of /clock"),
    "params_file": ("", "YAML file of parameters; those that this file's arguments set win over it"),
    "log_level": ("info", f"one of {', '.join(LOG_LEVELS)}"),
}


def flag(given: Mapping[str, str], name: str) -> bool | None:
    """A launch argument as a truth value; None when it is empty. ValueError names the argument."""
    text = given[name].lower()
    if text not in ("", "true", "false"):
        raise ValueError(f"launch argument {name} is '{given[name]}', expected true or false")
    return text == "true" if text else None


def integer(given: Mapping[str, str], name: str) -> int:
    """A launch argument as a whole number. ValueError names the argument."""
    try:
        return int(given[name])
    except ValueError as error:
        raise ValueError(f"launch argument {name} is '{given[name]}', expected a whole number") from error


def number(given: Mapping[str, str], name: str) -> float:
    """A launch argument as a finite number. ValueError names the argument."""
    try:
        value = float(given[name])
    except ValueError:
        value = float("nan")
    if value - value != 0.0:
        raise ValueError(f"launch argument {name} is '{given[name]}', expected a number")
    return value


def robot_arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """What :data:`ROBOT` was given, as arguments of the functions in ``graph``."""
    franka = {**{name: given[name] for name in ("robot_ip", "mode", "realtime")}, "cpu": integer(given, "cpu")}
    named = {name: given[name] for name in ("robot", "robot_file", "image_transport")}
    return {**named, "speed": number(given, "speed"), "franka": franka}


def description(
    arguments: Mapping[str, tuple[str, str]], make: Callable[[Mapping[str, str]], Sequence[NodeProcess]]
) -> LaunchDescription:
    """A launch description that starts the processes that ``make`` names.

    Args:
        arguments: name -> default, description. Those of :data:`PLACE` are added.
        make: from the arguments' values to the processes.
    """
    arguments = {**arguments, **PLACE}

    def start(context: LaunchContext) -> list[Any]:
        _refuse_unknown(context, arguments)
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        processes = placed(
            make(given),
            namespace=given["namespace"],
            use_sim_time=bool(flag(given, "use_sim_time")),
            params_file=given["params_file"],
            log_level=given["log_level"],
        )
        environment = graph_environment(os.environ, given["network"])
        reach = describe_network({**os.environ, **environment})
        done = shm.prepare((process.executable for process in processes), {**os.environ, **environment})
        variables = [SetEnvironmentVariable(name, value) for name, value in environment.items()]
        model = [_robot_model(given["namespace"])] if flag({"robot_model": "", **given}, "robot_model") else []
        return [*variables, *(LogInfo(msg=text) for text in (reach, done) if text), *map(_node, processes), *model]

    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in arguments.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def fixed(name: str, value: str, instead: str) -> OpaqueFunction:
    """An action that ends the launch with an error when argument ``name`` has another value; ``instead`` says what to do."""

    def check(context: LaunchContext) -> None:
        if (given := context.launch_configurations.get(name, value)) != value:
            raise ValueError(f"launch argument {name} is '{given}', but this file is for {value}; {instead}")

    return OpaqueFunction(function=check)


def _refuse_unknown(context: LaunchContext, arguments: Mapping[str, Any]) -> None:
    """ValueError for an argument of the command line that no one reads. Files that include ours may have others of their own."""
    ours = {path.name for path in resource("launch").glob("*.launch.py")}
    if not any(Path(word).name in ours for word in sys.argv):
        return
    given = [word.partition(":=")[0] for word in context.argv if ":=" in word]
    if unknown := [name for name in given if name not in arguments]:
        raise ValueError(f"unknown launch argument {', '.join(unknown)}; there are {', '.join(arguments)}")


def _robot_model(namespace: str) -> Node:
    """robot_state_publisher with the FR3 and its hand, whose root is the frame ``base``. ValueError when one is not installed."""
    try:
        share = Path(get_package_share_directory("franka_description"))
        for package in ("robot_state_publisher", "xacro"):
            get_package_share_directory(package)
    except PackageNotFoundError as error:
        distro = os.environ.get("ROS_DISTRO", "$ROS_DISTRO")
        packages = " ".join(f"ros-{distro}-{name}" for name in ("franka-description", "robot-state-publisher", "xacro"))
        raise ValueError(
            f"robot_model:=true needs packages that are not installed ({error}): sudo apt install {packages}"
        ) from error
    urdf = Command(["xacro ", str(share / "robots" / "fr3" / "fr3.urdf.xacro")])
    return Node(
        package="robot_state_publisher",
        executable="robot_state_publisher",
        namespace=namespace,
        parameters=[{"robot_description": ParameterValue(urdf, value_type=str)}],
        output="screen",
    )


def _node(process: NodeProcess) -> Node:
    level = ["--log-level", process.log_level] if process.log_level else []
    return Node(
        package="onedp_ros",
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=[*filter(None, [process.params_file]), dict(process.parameters)],
        ros_arguments=[*enclave(os.environ, process.executable), *level],
        output="screen",
        respawn=process.respawn,
        respawn_delay=1.0,
        on_exit=None if process.respawn else Shutdown(reason=f"{process.name} ended"),
    )
