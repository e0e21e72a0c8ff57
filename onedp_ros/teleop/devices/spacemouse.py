"""A SpaceMouse read directly, for machines without spacenav. Needs hidapi (libhidapi-hidraw0) and the right to read the device."""

from __future__ import annotations

from typing import Any

from onedp_ros.teleop.devices.base import Command, Setup
from onedp_ros.teleop.devices.joystick import Joystick

REPORTS = 32  # that may have come between two looks


class SpaceMouse(Joystick):
    """The first SpaceMouse that is found. RuntimeError, with the remedy, when there is none."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._seen = 0.0
        try:
            import pyspacemouse
            from pyspacemouse.types import AxisConvention

            self._mouse: Any = pyspacemouse.open(axis_convention=AxisConvention.ROS)
        except (RuntimeError, OSError, ValueError) as error:
            raise RuntimeError(
                f"no SpaceMouse: {error}; plug it in, install libhidapi-hidraw0, and allow its use by a udev rule "
                f'(SUBSYSTEM=="hidraw", ATTRS{{idVendor}}=="256f", MODE="0666"), or take device:=spacenav'
            ) from error

    def poll(self) -> Command:
        if self._mouse is None:
            return Command()
        try:
            for _ in range(REPORTS):
                state = self._mouse.read()
                if state.t == self._seen:  # nothing new: the last report grows old, and in the end lets go
                    break
                self._seen = state.t
                self.feed((state.x, state.y, state.z, state.roll, state.pitch, state.yaw), state.buttons)
        except Exception as error:  # hidapi's errors have no common base
            self.problem = f"the SpaceMouse is gone ({error}); plug it in and start teleop_node again"
            self.close()
            return Command()
        return super().poll()

    def close(self) -> None:
        mouse, self._mouse = self._mouse, None
        if mouse is not None:
            mouse.close()


DEVICE = SpaceMouse
