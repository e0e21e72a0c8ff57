"""Pick the milk: ros2 launch onedp_ros pnp_milk.launch.py robot:=twin method:=onedp_s (``--show-args`` lists the rest)."""

from pathlib import Path

from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription
from onedp_ros.graph.launching import fixed


def generate_launch_description() -> LaunchDescription:
    source = PythonLaunchDescriptionSource(str(Path(__file__).with_name("task.launch.py")))
    task = fixed("task", "pnp_milk", "ros2 launch onedp_ros task.launch.py takes any task")
    return LaunchDescription([task, IncludeLaunchDescription(source, launch_arguments={"task": "pnp_milk"}.items())])
