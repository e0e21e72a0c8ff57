"""A fake robot with limits and communication constraints enforced, our side of it, and ways to move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onedp_ros.resources import resource
from onedp_ros.robot.fake_franka import FakeFranka, read_log
from onedp_ros.robot.franka import Franka
from onedp_ros.robot.settings import RobotSettings

ROBOT_FILE = resource("config", "robot", "franka.yaml")
SETTINGS = RobotSettings.from_yaml(ROBOT_FILE)


class Cell:
    """A fake robot and our side of it."""

    def __init__(self, fake: FakeFranka, log: Path) -> None:
        self.fake, self._log = fake, log
        self.frankas: list[Franka] = []

    def franka(self, **parameters: Any) -> Franka:
        """Connected and active, at rest."""
        settings = SETTINGS.replaced({name.replace("__", "."): value for name, value in parameters.items()})
        franka = Franka(self.fake.address, settings, enforce=False)
        self.frankas.append(franka)
        franka.connect()
        franka.activate()
        assert franka.fault is None
        return franka

    def log(self) -> np.ndarray:
        """What the robot wrote down so far."""
        self.fake.tell("flush")
        return read_log(self._log)


def until(condition: Callable[[], Any], what: str, timeout: float = 10.0, every: Callable[[], Any] = lambda: None) -> Any:
    """Wait for a condition, calling ``every`` all the while. A failure after ``timeout`` s says ``what``."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        every()
        time.sleep(0.01)
    return value


def pose_of(franka: Franka) -> tuple[np.ndarray, np.ndarray]:
    """Measured tool pose: (3,) m, (4,) xyzw."""
    state = franka.arm.state()
    return state["position"].copy(), state["quaternion"].copy()


def stream(franka: Franka, targets: Any, rate: float = 60.0) -> None:
    """Send (position, quaternion) after each other at a rate, Hz; stop at a fault."""
    begin = time.monotonic()
    for i, (position, quaternion) in enumerate(targets):
        franka.watch()
        if franka.fault is not None:
            return
        franka.target(position, quaternion)
        time.sleep(max(begin + (i + 1) / rate - time.monotonic(), 0.0))


def sway(franka: Franka, seconds: float, rate: float = 60.0, width: float = 0.1) -> None:
    """Send targets that go to and fro along y, from where the arm is."""
    position, quaternion = pose_of(franka)
    times = np.arange(0.0, seconds, 1 / rate)
    stream(franka, ((position + np.array([0.0, width * np.sin(2.0 * t), 0.0]), quaternion) for t in times), rate)


def speeds(log: np.ndarray) -> np.ndarray:
    """Speed of the tool point in each cycle, m/s."""
    return np.linalg.norm(log["twist"][:, :3], axis=1)


def no_fault(log: np.ndarray) -> bool:
    """Whether the robot saw no error in any cycle."""
    return not log["errors"].any()
