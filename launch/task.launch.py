"""The graph of a task: ros2 launch onedp_ros task.launch.py task:=pnp_milk robot:=twin method:=onedp_s"""

import os

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from onedp_ros.graph import METHODS, ROBOTS, graph_environment, task_graph

ARGUMENTS = {
    "task": ("pnp_milk", "name of a file in config/tasks"),
    "robot": ("twin", f"one of {', '.join(ROBOTS)}"),
    "method": ("onedp_s", f"one of {', '.join(METHODS)}, or dp_ddimN"),
    "engine": ("auto", "auto, torch, cuda, openvino or openvino_bf16"),
    "model": ("", "directory of the policy; empty: the released one of the method"),
    "seed": ("0", "of the policy's noise"),
    "twin_seed": ("100000", "of the twin's first episode"),
    "enabled": ("", "whether the arm may move at once, or waits for action_node's service ~/enable; empty: only the twin"),
}
FRANKA = {
    "robot_ip": ("", "address of the Franka"),
    "mode": ("", "cartesian_pose or cartesian_impedance; empty: the robot file's"),
    "realtime": ("enforce", "enforce, or ignore for a machine without a real-time kernel"),
    "speed": ("1.0", "share of the robot file's speeds, above 0 and up to 1"),
    "cpu": ("-1", "processor of its own for the control loop; -1: any"),
}


def start_graph(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in (*ARGUMENTS, *FRANKA)}
    processes = task_graph(
        given["task"],
        robot=given["robot"],
        method=given["method"],
        engine=given["engine"],
        model=given["model"] or None,
        seed=int(given["seed"]),
        twin_seed=int(given["twin_seed"]),
        enabled=given["enabled"].lower() == "true" if given["enabled"] else None,
        franka={**{n: given[n] for n in FRANKA}, "speed": float(given["speed"]), "cpu": int(given["cpu"])},
    )
    environment = [SetEnvironmentVariable(name, value) for name, value in graph_environment(os.environ).items()]
    nodes = [
        Node(
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
        for process in processes
    ]
    return [*environment, *nodes]


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in (ARGUMENTS | FRANKA).items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_graph)])
