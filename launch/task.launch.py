"""The graph of a task: ros2 launch onedp_ros task.launch.py task:=pnp_milk robot:=twin method:=onedp_s"""

from launch import LaunchDescription
from onedp_ros.graph.launching import description
from onedp_ros.graph.options import ROBOT, RUN, Option, graph_arguments
from onedp_ros.graph.processes import task_graph

ENABLED = Option(
    None, "whether the arm may move at once, or waits for action_node's service ~/enable; by default only the twin may", bool
)


def generate_launch_description() -> LaunchDescription:
    return description({**RUN, "enabled": ENABLED, **ROBOT}, lambda task, **values: task_graph(task, **graph_arguments(values)))
