"""The simulated cell. Importing this package registers the gymnasium environment ``onedp_ros/PnpMilk-v0``."""

import os
import sys

import gymnasium

if not os.environ.get("DISPLAY") and sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when mujoco is first imported

gymnasium.register(id="onedp_ros/PnpMilk-v0", entry_point="onedp_ros.twin.stepped:PnpMilkEnv")
