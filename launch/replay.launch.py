"""The policy on a recording: ros2 launch onedp_ros replay.launch.py task:=pnp_milk method:=onedp_s

Beside it ros2 bag play BAG --clock 200 --topics, with those of the cameras and the robot; or, waiting for each chunk,
ros2 run onedp_ros player_node --ros-args -p bag:=BAG. Nothing moves: action_node is disabled. Nodes of a robot that run in the same
ROS domain would take the recording for theirs: set another ROS_DOMAIN_ID."""

from launch import LaunchDescription
from onedp_ros.graph.launching import description
from onedp_ros.graph.options import POLICY, ROBOT
from onedp_ros.graph.processes import replay_graph


def generate_launch_description() -> LaunchDescription:
    return description(
        {**POLICY, "image_transport": ROBOT["image_transport"]},
        lambda task, **values: replay_graph(task, with_action=True, **values),
    )
