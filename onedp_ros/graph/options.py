"""The options of a graph: those of ``onedp run``, ``record`` and ``demo``, and arguments of the launch files.

Launch files import this module, on the system's Python: it needs only the standard library and YAML.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onedp_ros.graph.processes import (
    DEFAULT_DEVICE,
    DEFAULT_METHOD,
    LOG_LEVELS,
    NETWORKS,
    NO_DEVICE,
    REALTIME,
    ROBOTS,
    TRANSPORTS,
)
from onedp_ros.policy.engines import AUTO, describe_engines
from onedp_ros.policy.methods import describe_methods
from onedp_ros.robot import MODES
from onedp_ros.teleop.devices import DEVICES


@dataclasses.dataclass(frozen=True)
class Option:
    """One option. ``text`` describes it, and ``kind`` is its value's type, by default that of ``default``. The value is checked
    where it is used."""

    default: Any
    text: str
    kind: type = str

    def __post_init__(self) -> None:
        if self.default is not None:
            object.__setattr__(self, "kind", type(self.default))


TASK = "name of a file in config/tasks, or path of a task file"
POLICY = {
    "method": Option(DEFAULT_METHOD, f"how actions are sampled: {describe_methods()}"),
    "engine": Option(AUTO, f"inference engine: {describe_engines()}"),
    "model": Option("", "checkpoint directory; by default the released one for the method"),
    "seed": Option(0, "seed of the policy's noise"),
}
RUN = {
    **POLICY,
    "twin_seed": Option(100_000, "seed of the twin's first episode"),
    "lead": Option(None, "how far ahead of the clock chunks are sampled, s; by default action_node's own", float),
}
RECORD = {
    "device": Option(DEFAULT_DEVICE, f"operator's device: {', '.join((*DEVICES.names(), *NO_DEVICE))}"),
    "teleop": Option("", "file with the device's speeds, frame, buttons …; by default config/teleop.yaml"),
    "operator": Option("", "name of the operator, stored in the bags"),
    "out": Option("", "folder of the bags; by default out/<task>/bags"),
    "host": Option("127.0.0.1", "address at which a phone reaches this machine; 0.0.0.0: any"),
    "port": Option(8443, "port at which a phone reaches this machine"),
}
FRANKA = {
    "robot_ip": Option("", "address of the Franka"),
    "mode": Option("", f"{' or '.join(MODES)}; by default the robot file's"),
    "realtime": Option(REALTIME[0], f"{' or '.join(REALTIME)}, the latter for a machine without a real-time kernel"),
    "cpu": Option(-1, "CPU core dedicated to the Franka's control loop; -1: any"),
}
ROBOT = {
    "robot": Option("twin", f"what moves: {', '.join(ROBOTS)}"),
    "robot_file": Option("", "path of a file like config/robot/franka.yaml: workspace, speeds …; by default the robot's"),
    "speed": Option(1.0, "fraction of the robot file's speeds, above 0 and up to 1"),
    "image_transport": Option(TRANSPORTS[0], f"how the cameras publish: {' or '.join(TRANSPORTS)}"),
    **FRANKA,
}
PLACE = {
    "network": Option(
        "",
        f"who can reach the graph: {' or '.join(NETWORKS)}; by default ROS_AUTOMATIC_DISCOVERY_RANGE, else localhost",
    ),
    "namespace": Option("", "namespace of all nodes, topics and services, so that several robots can share a ROS domain"),
    "params_file": Option("", "YAML file of parameters; options override it"),
    "log_level": Option("info", f"one of {', '.join(LOG_LEVELS)}"),
}


def graph_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of options, including :data:`ROBOT`, to arguments of the functions in :mod:`.processes`."""
    franka = {name: values[name] for name in FRANKA}
    return {**{name: value for name, value in values.items() if name not in FRANKA}, "franka": franka}
