"""What an operator's device says, and what it is told. Every device, whatever it is, speaks this."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

EVENTS = ("gripper", "home", "start", "stop", "fail", "discard")
"""What an operator can ask for besides motion: turn the gripper's opening; go home; begin (or, begun, end as a success), end as a
success or as a failure, or throw away the recording of an episode."""

SILENCE = 0.1  # s: a device that has said nothing for so long does not hold its dead man any more


@dataclasses.dataclass(frozen=True)
class Command:
    """What the operator's hands do at one moment. The default: nothing.

    The operator's frame has x ahead of the operator, y to the left, z up.

    Attributes:
        engaged: whether the dead man is held. Nothing moves without.
        velocity: shares, -1 to 1, of the greatest speeds along x, y, z and about x, y, z of the operator's frame (or the tool's).
        position, quaternion: pose of the device itself, m and xyzw, in any frame with z up whose x is "ahead"; only what it
            changes while engaged counts. Devices without a pose leave them.
    """

    engaged: bool = False
    velocity: tuple[float, float, float, float, float, float] = (0.0,) * 6
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)


class Device(Protocol):
    """A device of an operator. No call waits."""

    def poll(self) -> Command:
        """The newest command; not engaged when the device is gone or has been silent for :data:`SILENCE`."""

    def events(self) -> list[str]:
        """What of :data:`EVENTS` was asked for since the last call, in order."""

    def show(self, status: Mapping[str, Any]) -> None:
        """Tell the operator: what the arm does, the gripper, the recording, what is wrong."""

    def close(self) -> None:
        """Give the device back."""
