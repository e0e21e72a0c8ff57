"""A device that is registered here, of which no other file knows, drives a session end to end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedp_ros.contract import MAX_OPENING
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.geometry import gripper_down
from onedp_ros.graph.processes import record_graph
from onedp_ros.resources import resource
from onedp_ros.teleop.devices import DEVICES, read_settings
from onedp_ros.teleop.devices.base import Command, Device, Setup
from onedp_ros.teleop.session import Motion, Session

DT = 1 / 60


class Lever(Device):
    """One axis on a topic of its own, held while it is away from rest; how far it goes is a setting."""

    joy_topic = "lever/joy"

    def __init__(self, setup: Setup) -> None:
        self._travel, self._axis = setup.settings, 0.0

    @classmethod
    def parse_settings(cls, section: Any) -> float:
        return float(section["travel"])

    def feed(self, axes: Any, buttons: Any) -> None:
        self._axis = axes[0] / self._travel

    def poll(self) -> Command:
        return Command(self._axis != 0.0, (0.0, 0.0, self._axis, 0.0, 0.0, 0.0))


@pytest.fixture
def lever(tmp_path: Path) -> Iterator[Path]:
    """Registers it, and gives a file with its section."""
    file = tmp_path / "teleop.yaml"
    file.write_text(resource("config", "teleop.yaml").read_text() + "lever: {travel: 0.5}\n")
    DEVICES.add("lever", Lever)
    yield file
    DEVICES.remove("lever")


def test_a_registered_device_moves_the_arm_with_the_settings_of_its_section(lever: Path) -> None:
    device = DEVICES.get("lever")(Setup(read_settings(lever, "lever")))
    motion = Motion.from_yaml(lever)
    session = Session(motion, SafetyLimits.from_yaml(resource("config", "robot", "twin.yaml")))
    measured = np.array([0.5, 0.0, 0.3]), gripper_down(0.0)
    assert session.step(device.poll(), measured, MAX_OPENING, DT) is None, "nothing is held"
    device.feed([0.25], [])
    for _ in range(30):
        target = session.step(device.poll(), measured, MAX_OPENING, DT)
        assert target is not None
        measured = target.position, target.quaternion
    np.testing.assert_allclose(measured[0][2], 0.3 + 0.5 * motion.linear_speed * 0.5, atol=0.01)
    assert device.events() == [] and device.problem == "" and device.refused == {}
    device.close()


def test_a_registered_device_is_offered_wherever_devices_are(lever: Path) -> None:
    (teleop,) = (p for p in record_graph("pnp_milk", device="lever", teleop=lever) if p.name == "teleop_node")
    assert teleop.parameters["device"] == "lever" and teleop.parameters["teleop"] == str(lever)
    with pytest.raises(ValueError, match="expected one of gamepad, keyboard, lever, phone"):
        record_graph("pnp_milk", device="wheel")
