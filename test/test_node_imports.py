"""What a node imports before it says a word: each large package would delay its start by tenths of a second."""

import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: a sourced distribution, or its wheels (make venv)")

NODES = ("observation_node", "action_node", "policy_node", "teleop_node", "recorder_node", "player_node")
HEAVY = ("scipy", "torch", "diffusers", "matplotlib", "mujoco", "gymnasium", "h5py", "pyarrow", "zarr", "openvino", "aiohttp")


def test_nodes_beside_the_arm_import_no_large_package() -> None:
    program = "import importlib, sys\n" + "".join(f"importlib.import_module('onedp_ros.nodes.{node}')\n" for node in NODES)
    program += f"print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
