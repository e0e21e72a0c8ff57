"""The policy on a recording: ros2 launch onedp_ros replay.launch.py method:=onedp_s

Beside it ros2 bag play BAG --clock 200 --topics, with those of the cameras and the robot; or, waiting for each chunk,
ros2 run onedp_ros player_node --ros-args -p bag:=BAG. Nothing moves: action_node is disabled. Nodes of a robot that run in the same
ROS domain would take the recording for theirs: set another ROS_DOMAIN_ID."""

from launch import LaunchDescription
from onedp_ros.graph.launching import description, integer
from onedp_ros.graph.processes import METHODS, replay_graph

ARGUMENTS = {
    "task": ("pnp_milk", "name of a file in config/tasks"),
    "method": ("onedp_s", f"one of {', '.join(METHODS)}, or dp_ddimN"),
    "engine": ("auto", "auto, torch, cuda, openvino or openvino_bf16"),
    "model": ("", "directory of the policy; empty: the released one of the method"),
    "seed": ("0", "of the policy's noise"),
    "image_transport": ("raw", "how the cameras were recorded: raw or compressed"),
}


def generate_launch_description() -> LaunchDescription:
    return description(
        ARGUMENTS,
        lambda given: replay_graph(
            given["task"],
            image_transport=given["image_transport"],
            with_action=True,
            method=given["method"],
            engine=given["engine"],
            model=given["model"] or None,
            seed=integer(given, "seed"),
        ),
    )
