"""What a device of an operator is: everything that teleop_node needs of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
EVENTS = ("gripper", "home", "start", "stop", "fail", "discard")
"""What an operator can request besides motion: turn the gripper's opening; go home; begin (or, begun, end as a success), end as a
success or as a failure, or throw away the recording of an episode."""

SILENCE = 0.1  # s: a device that has reported nothing for so long does not hold its dead-man switch any more


@dataclasses.dataclass(frozen=True)
class Command:
    """What the operator's hands do at one moment. The default: nothing.

    The operator's frame has x ahead of the operator, y to the left, z up.

    Attributes:
        engaged: whether the dead-man switch is held. Nothing moves without.
        velocity: fractions, -1 to 1, of the greatest speeds along and about x, y, z of the operator's frame (or the tool's).
        position, quaternion: pose of the device itself, m and xyzw, in any frame with z up whose x is "ahead"; only what it
            changes while engaged counts. Devices without a pose leave them.
    """

    engaged: bool = False
    velocity: tuple[float, float, float, float, float, float] = (0.0,) * 6
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a device is opened with. It takes what it needs.

    Attributes:
        settings: what its :meth:`Device.parse_settings` made of its section of ``config/teleop.yaml``.
        cameras: names of the cameras whose pictures it may be shown.
        host, port: where this machine serves a device on the network.
        tell: shows a text to whoever started the node.
    """

    settings: Any = None
    cameras: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 8443
    tell: Callable[[str], None] = lambda text: None


class Device:
    """A device of an operator, open from its construction until :meth:`close`. No call waits.

    A file of this folder defines one as ``DEVICE``; ``teleop_node`` opens it with a :class:`Setup`.

    Attributes:
        joy_topic: topic of the sensor_msgs/Joy that :meth:`feed` takes; empty for a device that is read otherwise.
        shows_frames: whether it shows the cameras' pictures.
        uses_terminal: whether it reads from the terminal of its process, and writes a line there.
        problem: what is wrong with the device, and the remedy; empty when nothing is.
        refused: how often a report of the device was refused, by reason.
    """

    joy_topic: ClassVar[str] = ""
    shows_frames: ClassVar[bool] = False
    uses_terminal: ClassVar[bool] = False
    problem: str = ""
    refused: Mapping[str, int] = {}

    def __init__(self, setup: Setup) -> None:
        """Open the device. RuntimeError or OSError, with the remedy, when that is not possible."""

    @classmethod
    def parse_settings(cls, section: Any) -> Any:
        """The settings in the device's section of a file such as ``config/teleop.yaml``, None where there is none.

        Raises:
            ValueError: names the field that cannot be used. Unless overridden: there are any.
        """
        if section:
            raise ValueError("this device has no settings; remove the section")
        return None

    def poll(self) -> Command:
        """The newest command; not engaged when the device is gone or has been silent for :data:`SILENCE`."""
        raise NotImplementedError

    def events(self) -> list[str]:
        """What of :data:`EVENTS` was requested since the last call, in order."""
        return []

    def feed(self, axes: Sequence[float], buttons: Sequence[int]) -> None:
        """Take a message of :attr:`joy_topic`: axes, -1 to 1, and buttons, 0 or 1."""

    def show(self, status: Mapping[str, Any]) -> None:
        """Show the operator ``arm``, ``gripper`` (open, closed), ``recorder`` (idle, recording or another word), ``episode``,
        ``seconds`` (of the recording) and ``problem`` (empty when there is none)."""

    def show_frame(self, camera: str, jpeg: bytes) -> None:
        """Show a picture of a camera, where :attr:`shows_frames`."""

    def close(self) -> None:
        """Give the device back."""
