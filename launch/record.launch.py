"""Demonstrations: ros2 launch onedp_ros record.launch.py task:=pnp_milk robot:=franka device:=phone host:=0.0.0.0"""

from launch import LaunchDescription
from onedp_ros.graph.launching import description
from onedp_ros.graph.options import RECORD, ROBOT, Option, graph_arguments
from onedp_ros.graph.processes import record_graph

TWIN_SEED = Option(0, "of the twin's first episode")


def generate_launch_description() -> LaunchDescription:
    return description(
        {**RECORD, "twin_seed": TWIN_SEED, **ROBOT}, lambda task, **values: record_graph(task, **graph_arguments(values))
    )
