"""The records exchanged by the processes of node, arm and hand. Monotonic stamps are ns of ``onedp_ros.clock``."""

from __future__ import annotations

import numpy as np

from onedp_ros.robot.shared import SharedMemory

REST, POSE, IMPEDANCE, END = range(4)  # requests to the arm's process
PHASES = ("connecting", "idle", "holding", "following", "stopping", "fault", "ended")
CONNECTING, IDLE, HOLDING, FOLLOWING, STOPPING, FAULT, ENDED = range(7)
ROBOT_MODES = ("other", "idle", "move", "guiding", "reflex", "user_stopped", "automatic_error_recovery")

WORK_BINS, GAP_BINS = 5000, 6000  # of 1 µs and 10 µs; the last bin holds everything longer

_ARM: dict[str, np.dtype] = {
    # node -> arm
    "request": np.dtype([("mode", "u1"), ("serial", "i8")]),  # a higher serial requests recovery from a fault
    "target": np.dtype([("stamp", "i8"), ("position", "f8", 3), ("quaternion", "f8", 4)]),  # monotonic
    # arm -> node
    "state": np.dtype(
        [
            ("stamp", "i8"),  # wall clock, ns
            ("alive", "i8"),  # monotonic
            ("phase", "u1"),
            ("robot_mode", "u1"),
            ("serial", "i8"),  # of the last recovery request that was handled
            ("q", "f8", 7),
            ("dq", "f8", 7),
            ("torque", "f8", 7),
            ("position", "f8", 3),
            ("quaternion", "f8", 4),
            ("reference_position", "f8", 3),
            ("wrench", "f8", 6),
            ("success_rate", "f8"),
            ("fraction", "f8"),  # of the wanted velocity that the joints can follow
            ("cycles", "i8"),
            ("lost", "i8"),  # cycles without a command in time
            ("far", "i8"),  # targets too far away to start following
        ]
    ),
    "fault": np.dtype([("text", "S1000"), ("names", "S500")]),
    "notes": np.dtype([("realtime", "S500"), ("tool", "f8", 16)]),
}
_HAND: dict[str, np.dtype] = {
    "intent": np.dtype(
        [
            ("request", "u1"),
            ("serial", "i8"),  # counts changes of the request
            ("stamp", "i8"),  # of the request's last repetition; monotonic
            ("homings", "i8"),  # counts homing requests
            ("homing_stamp", "i8"),
        ]
    ),
    "state": np.dtype(
        [
            ("alive", "i8"),  # monotonic
            ("connected", "?"),
            ("width", "f8"),
            ("moving", "?"),
            ("goal", "f8"),  # of the running command, with its start time and speed
            ("begin", "i8"),
            ("speed", "f8"),
            ("grasped", "?"),
            ("done", "i8"),  # finished commands
            ("failed", "i8"),  # of which failed
            ("problem", "S300"),  # of the last command; empty if it succeeded
        ]
    ),
}

OPEN, CLOSED, LEAVE = range(1, 4)  # requests to the hand's process; the last one ends it


def arm_memory(descriptor: int | None = None) -> SharedMemory:
    """Memory shared by the arm's process and its parent; the arrays ``work`` and ``gap`` are histograms of the control loop."""
    return SharedMemory(_ARM, {"work": (np.int64, WORK_BINS), "gap": (np.int64, GAP_BINS)}, descriptor)


def hand_memory(descriptor: int | None = None) -> SharedMemory:
    """Memory shared by the hand's process and its parent."""
    return SharedMemory(_HAND, {}, descriptor)


def record(group: str, name: str) -> np.ndarray:
    """An empty record: ``record("arm", "state")``."""
    return np.zeros((), {"arm": _ARM, "hand": _HAND}[group][name])
