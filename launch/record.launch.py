"""Demonstrations: ros2 launch onedp_ros record.launch.py task:=pnp_milk robot:=franka device:=phone host:=0.0.0.0"""

from launch import LaunchDescription
from onedp_ros.graph.launching import ROBOT, description, integer, robot_arguments
from onedp_ros.graph.processes import record_graph
from onedp_ros.teleop.devices import DEVICES

ARGUMENTS = {
    "task": ("pnp_milk", "name of a file in config/tasks, or path of a task file"),
    "device": ("phone", f"what the operator holds, one of {', '.join(DEVICES.names())}; none: teleop_node is started elsewhere"),
    "teleop": ("", "file of speeds, frame, operator's place …; empty: config/teleop.yaml"),
    "operator": ("", "who demonstrates, noted in the bags"),
    "out": ("", "folder of the bags; empty: out/<task>/bags"),
    "host": ("127.0.0.1", "address where a phone reaches this machine; 0.0.0.0: any"),
    "port": ("8443", "port where a phone reaches this machine"),
    "twin_seed": ("0", "of the twin's first episode"),
    **ROBOT,
}


def generate_launch_description() -> LaunchDescription:
    return description(
        ARGUMENTS,
        lambda given: record_graph(
            given["task"],
            device=given["device"],
            operator=given["operator"],
            out=given["out"],
            host=given["host"],
            port=integer(given, "port"),
            teleop=given["teleop"],
            twin_seed=integer(given, "twin_seed"),
            **robot_arguments(given),
        ),
    )
