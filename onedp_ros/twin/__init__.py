"""The simulated cell. Importing this package registers the gymnasium environment ``onedp_ros/PnpMilk-v0``."""

import gymnasium

gymnasium.register(id="onedp_ros/PnpMilk-v0", entry_point="onedp_ros.twin.environment:PnpMilkEnv")
