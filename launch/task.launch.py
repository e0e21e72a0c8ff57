"""The graph of a task: ros2 launch onedp_ros task.launch.py task:=pnp_milk robot:=twin method:=onedp_s"""

from launch import LaunchDescription
from onedp_ros.graph import METHODS, task_graph
from onedp_ros.launching import ROBOT, description, robot_arguments

ARGUMENTS = {
    "task": ("pnp_milk", "name of a file in config/tasks, or path of a task file"),
    "method": ("onedp_s", f"one of {', '.join(METHODS)}, or dp_ddimN"),
    "engine": ("auto", "auto, torch, cuda, openvino or openvino_bf16"),
    "model": ("", "directory of the policy; empty: the released one of the method"),
    "seed": ("0", "of the policy's noise"),
    "twin_seed": ("100000", "of the twin's first episode"),
    "enabled": ("", "whether the arm may move at once, or waits for action_node's service ~/enable; empty: only the twin"),
    **ROBOT,
}


def generate_launch_description() -> LaunchDescription:
    return description(
        ARGUMENTS,
        lambda given: task_graph(
            given["task"],
            method=given["method"],
            engine=given["engine"],
            model=given["model"] or None,
            seed=int(given["seed"]),
            twin_seed=int(given["twin_seed"]),
            enabled=given["enabled"].lower() == "true" if given["enabled"] else None,
            **robot_arguments(given),
        ),
    )
