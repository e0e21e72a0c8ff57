"""For launch files: a graph as launch actions. The only module that needs ``launch``; ``onedp`` can start the same graphs.

Besides ``launch`` it needs only the standard library and YAML, since ``ros2`` runs on the system's Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription  # type: ignore[attr-defined]  # mypy takes the folder launch/ for it
from onedp_ros.graph import shm
from onedp_ros.graph.options import PLACE, TASK, Option
from onedp_ros.graph.processes import NodeProcess, describe_network, enclave, graph_environment, placed
from onedp_ros.resources import resource

# Arguments that only launch files have.
SIMULATED = {"use_sim_time": Option(False, "true: the nodes' time is that of /clock")}
MODEL = {
    "robot_model": Option(False, "true: robot_state_publisher with franka_description's FR3, for RViz; both have to be installed")
}
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def parse(name: str, text: str, option: Option) -> Any:
    """Convert a launch argument to its option's type; the default if it is empty. ValueError names the argument."""
    if not text:
        return option.default
    try:
        if option.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = option.kind(text)
        if value != value or value in (float("inf"), -float("inf")):
            raise ValueError
        return value
    except (KeyError, ValueError) as error:
        raise ValueError(f"launch argument {name} is '{text}', expected {KINDS[option.kind]}") from error


def description(options: Mapping[str, Option], make: Callable[..., Sequence[NodeProcess]]) -> LaunchDescription:
    """A launch description that starts a graph.

    Args:
        options: arguments besides the task, :data:`SIMULATED`, :data:`~onedp_ros.graph.options.PLACE` and, if there is a ``robot``
            among them, :data:`MODEL`.
        make: called with the task and, by name, the options' values; returns the processes.
    """
    around = {**PLACE, **SIMULATED, **(MODEL if "robot" in options else {})}
    names = ("task", *options, *around)

    def start(context: LaunchContext) -> list[Any]:
        _refuse_unknown(context, names)
        given = {
            name: parse(name, LaunchConfiguration(name).perform(context), option) for name, option in {**options, **around}.items()
        }
        processes = placed(
            make(LaunchConfiguration("task").perform(context), **{name: given[name] for name in options}),
            namespace=given["namespace"],
            use_sim_time=given["use_sim_time"],
            params_file=given["params_file"],
            log_level=given["log_level"],
        )
        environment = graph_environment(os.environ, given["network"])
        reach = describe_network({**os.environ, **environment})
        done = shm.prepare((process.executable for process in processes), {**os.environ, **environment})
        variables = [SetEnvironmentVariable(name, value) for name, value in environment.items()]
        model = [_robot_model(given["namespace"])] if given.get("robot_model") else []
        return [*variables, *(LogInfo(msg=text) for text in (reach, done) if text), *map(_node, processes), *model]

    declared = [DeclareLaunchArgument("task", description=TASK)]
    for name, option in {**options, **around}.items():
        default = "" if option.default is None else str(option.default).lower() if option.kind is bool else str(option.default)
        declared.append(DeclareLaunchArgument(name, default_value=default, description=option.text))
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def task_description(file: str) -> LaunchDescription:
    """The description in ``<task>.launch.py``: ``task.launch.py`` next to it, for this task only."""
    task = Path(file).name.removesuffix(".launch.py")
    source = PythonLaunchDescriptionSource(str(Path(file).with_name("task.launch.py")))
    only = fixed("task", task, "ros2 launch onedp_ros task.launch.py takes any task")
    return LaunchDescription([only, IncludeLaunchDescription(source, launch_arguments={"task": task}.items())])


def fixed(name: str, value: str, instead: str) -> OpaqueFunction:
    """An action that fails the launch if argument ``name`` has another value; ``instead`` is the remedy."""

    def check(context: LaunchContext) -> None:
        if (given := context.launch_configurations.get(name, value)) != value:
            raise ValueError(f"launch argument {name} is '{given}', but this file is for {value}; {instead}")

    return OpaqueFunction(function=check)


def _refuse_unknown(context: LaunchContext, arguments: Sequence[str]) -> None:
    """ValueError for an unknown command-line argument. Launch files that include ours may have their own arguments."""
    ours = {path.name for path in resource("launch").glob("*.launch.py")}
    if not any(Path(word).name in ours for word in sys.argv):
        return
    given = [word.partition(":=")[0] for word in context.argv if ":=" in word]
    if unknown := [name for name in given if name not in arguments]:
        raise ValueError(f"unknown launch argument {', '.join(unknown)}, expected {', '.join(arguments)}")


def _robot_model(namespace: str) -> Node:
    """robot_state_publisher with the FR3 and its hand, rooted at the frame ``base``. ValueError if a package is not installed."""
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
