"""The commands of a recording, sampled as actions at any time."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS, Contract, ContractError
from onedp_ros.contract.features import POSE
from onedp_ros.geometry import interpolate
from onedp_ros.messages.decode import bare_name, check_frame, pose_arrays

TARGET_MAX_AGE = 0.25  # s without a new target before a recording counts as not commanded


class _Commands:
    """The commands on one topic, by stamp."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.values: list[Any] = []  # a pose (p, q), or an array

    def insert(self, stamp: int, value: Any) -> None:
        i = bisect.bisect_right(self.stamps, stamp)
        self.stamps.insert(i, stamp)
        self.values.insert(i, value)

    def last(self, stamp: int) -> int:
        """Index of the newest command at ``stamp``; -1: none yet."""
        return bisect.bisect_right(self.stamps, stamp) - 1

    def at(self, stamp: int) -> Any:
        """Interpolated between two commands in close succession, rotations by slerp; else the last command."""
        i = self.last(stamp)
        value = self.values[i]
        if stamp == self.stamps[i] or i + 1 == len(self.stamps):
            return value
        span = self.stamps[i + 1] - self.stamps[i]
        if span > TARGET_MAX_AGE * NANOSECONDS:
            return value
        return interpolate(value, self.values[i + 1], (stamp - self.stamps[i]) / span)


class Targets:
    """The commands on the contract's action topics.

    Poses, joints and plain values are streamed: valid for :data:`TARGET_MAX_AGE`, and interpolated. An opening holds until the next
    one: a gripper is commanded in steps.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._commands = {bare_name(topic): _Commands() for topic in contract.action_topics}
        held = {bare_name(feature.topic) for feature in contract.action if feature.kind == "opening"}
        self._streamed = [commands for topic, commands in self._commands.items() if topic not in held]
        self._held = [self._commands[topic] for topic in sorted(held)]

    @property
    def stamps(self) -> list[int]:
        """Stamps (ns) of the commands on the first streamed topic, in order."""
        return self._streamed[0].stamps if self._streamed else self._held[0].stamps

    def commands(self, topic: str) -> tuple[list[int], list[Any]]:
        """Stamps (ns) and values of one topic: poses (position, quaternion), or arrays."""
        found = self._commands[bare_name(topic)]
        return found.stamps, found.values

    @property
    def complete(self) -> bool:
        """Whether every topic whose commands hold has received one."""
        return all(commands.stamps for commands in self._held)

    def add(self, topic: str, stamp: int, message: Any) -> None:
        """Add a message of an action topic. ContractError if it is not a valid target."""
        name = bare_name(topic)
        features = [feature for feature in self.contract.action if bare_name(feature.topic) == name]
        if features[0].message_type == POSE:
            check_frame(self.contract, topic, message)
            position, quaternion = pose_arrays(message.pose)
            if not (np.all(np.isfinite(position)) and abs(np.linalg.norm(quaternion) - 1.0) < 0.05):
                raise ContractError(f"{topic} at {stamp} ns is {position} {quaternion}, expected numbers and a unit quaternion")
            self._commands[name].insert(stamp, (position, quaternion))
            return
        wanted = [joint for feature in features for joint in feature.message_names]
        if not wanted:
            if len(message.position) != 1 or not np.isfinite(message.position[0]):
                raise ContractError(f"{topic} at {stamp} ns has positions {list(message.position)}, expected one opening")
            self._commands[name].insert(stamp, np.array([float(message.position[0])]))
            return
        named = dict(zip(message.name, message.position, strict=False))
        if not all(joint in named and np.isfinite(named[joint]) for joint in wanted):
            raise ContractError(
                f"{topic} at {stamp} ns has {named}, expected numbers for {wanted}; use the message's names in the task file"
            )
        self._commands[name].insert(stamp, np.array([float(named[joint]) for joint in wanted]))

    def hold(self, stamp: int) -> bool:
        """Whether every topic had a command at ``stamp``, streamed ones a fresh one."""
        return self.hold_stream(stamp) and all(commands.last(stamp) >= 0 for commands in self._held)

    def hold_stream(self, stamp: int) -> bool:
        """Whether every streamed topic had a fresh command at ``stamp``."""
        for commands in self._streamed:
            i = commands.last(stamp)
            if i < 0 or stamp - commands.stamps[i] > TARGET_MAX_AGE * NANOSECONDS:
                return False
        return True

    def action(self, stamp: int, measured: Mapping[str, float] | None = None) -> NDArray[np.float32]:
        """Action (action_dim,) at a ``stamp`` with commands; ``measured``: openings by feature, used before the first command."""
        parts = []
        taken: dict[str, int] = {}
        for feature in self.contract.action:
            name = bare_name(feature.topic)
            commands = self._commands[name]
            if feature.kind == "opening" and commands.last(stamp) < 0:
                parts.append(np.array([(measured or {}).get(feature.name, np.nan)]))
                continue
            value = commands.values[commands.last(stamp)] if feature.kind == "opening" else commands.at(stamp)
            if feature.is_pose:
                parts.append(feature.encode_pose(*value))
            else:
                first = taken.get(name, 0)
                taken[name] = first + feature.dim
                parts.append(value[first : first + feature.dim])
        return np.concatenate(parts).astype(np.float32)
