"""The graph of a task: ros2 launch onedp_ros task.launch.py task:=pnp_milk robot:=twin method:=onedp_s"""

from launch import LaunchDescription
from onedp_ros.graph.launching import ROBOT, description, flag, integer, number, robot_arguments
from onedp_ros.graph.processes import METHODS, task_graph

ARGUMENTS = {
    "task": ("pnp_milk", "name of a file in config/tasks, or path of a task file"),
    "method": ("onedp_s", f"one of {', '.join(METHODS)}, or dp_ddimN"),
    "engine": ("auto", "auto, torch, cuda, openvino or openvino_bf16"),
    "model": ("", "directory of the policy; empty: the released one of the method"),
    "seed": ("0", "of the policy's noise"),
    "twin_seed": ("100000", "of the twin's first episode"),
    "enabled": (
        "",
        "whether the arm may move at once, or waits for action_node's service ~/enable: true or false; empty: only the twin",
    ),
    "lead": ("", "how far ahead of the clock chunks are sampled, s; empty: action_node's own"),
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
            seed=integer(given, "seed"),
            twin_seed=integer(given, "twin_seed"),
            enabled=flag(given, "enabled"),
            lead=number(given, "lead") if given["lead"] else None,
            **robot_arguments(given),
        ),
    )
