"""Messages of the phone's page: JSON objects with a ``type``, and what of them is not one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import WebSocketError, WSMessage, WSMsgType

from onedp_ros.teleop.devices.base import Command

LARGEST_MESSAGE = 4096  # bytes
REACH = 100.0  # m: greatest coordinate of a phone's position


def read_command(fields: Mapping[str, Any]) -> tuple[int, float, Command]:
    """A command's sequence, the newest ``time`` that the phone had received when it sent it, and its content.

    ``fields``: ``sequence``, ``time``, ``held`` (bool), ``velocity`` (6), ``position`` (3), ``quaternion`` (4), the latter as in
    :class:`~onedp_ros.teleop.devices.base.Command`. Velocity and position are clipped to their
    ranges. ValueError for anything else.
    """
    if set(fields) != {"sequence", "time", "held", "velocity", "position", "quaternion"}:
        raise ValueError("a command with other fields")
    if type(fields["sequence"]) is not int or type(fields["held"]) is not bool:
        raise ValueError("a command whose sequence is not an integer or whose held is not a truth value")
    (told,) = read_numbers([fields["time"]], 1)
    velocity = [min(max(v, -1.0), 1.0) for v in read_numbers(fields["velocity"], 6)]
    position = [min(max(v, -REACH), REACH) for v in read_numbers(fields["position"], 3)]
    quaternion = read_numbers(fields["quaternion"], 4)
    length = math.hypot(*quaternion)
    if not 0.5 < length < 2.0:
        raise ValueError("a command whose quaternion is not a rotation")
    x, y, z, w = (v / length for v in quaternion)
    vx, vy, vz, wx, wy, wz = velocity
    px, py, pz = position
    return fields["sequence"], told, Command(fields["held"], (vx, vy, vz, wx, wy, wz), (px, py, pz), (x, y, z, w))


def read_numbers(values: Any, count: int) -> list[float]:
    """``values``, if they are a list of ``count`` finite numbers. ValueError when they are not."""
    try:
        if isinstance(values, list) and len(values) == count and all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return [float(v) for v in values]
    except OverflowError:  # an integer beyond the floats
        pass
    raise ValueError(f"something else in the place of {count} finite numbers")


def is_gone(message: WSMessage) -> bool:
    """Whether the other end closed or lost the connection."""
    lost = message.type is WSMsgType.ERROR and not isinstance(message.data, WebSocketError)
    return lost or message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)


def read_object(message: WSMessage) -> dict[str, Any]:
    """The object in a text message. ValueError for anything else."""
    if message.type is WSMsgType.ERROR:
        raise ValueError(f"not a websocket message of at most {LARGEST_MESSAGE} bytes")
    if message.type is not WSMsgType.TEXT:
        raise ValueError(f"a message of type {message.type.name}")
    try:
        fields = json.loads(message.data)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(fields, dict):
        raise ValueError("JSON that is not an object")
    return fields
