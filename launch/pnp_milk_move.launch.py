"""The graph of the task that this file is named after: ros2 launch onedp_ros pnp_milk_move.launch.py robot:=twin method:=onedp_s

``--show-args`` lists the rest. A copy under another task's name is that task's.
"""

from launch import LaunchDescription
from onedp_ros.graph.launching import task_description


def generate_launch_description() -> LaunchDescription:
    return task_description(__file__)
