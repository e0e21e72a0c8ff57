"""A bag -> episodes: observations on the control grid, each with the action that was commanded at its stamp.

Messages pass, in log order, through the ObservationAssembler of ``contract.py``, as they do in the live node. Of the
observations those nearest to a grid of ``dt = 1 / control_hz`` are kept, from the first one that has a target.

What is imported from other data sets passes through :func:`on_grid`, to the same grid.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import (
    NANOSECONDS,
    Contract,
    ContractError,
    Observation,
    ObservationAssembler,
    decode_action,
    encode_action,
)
from onedp_ros.data.bags import GRIPPER_TARGET_TOPIC, TARGET_POSE_TOPIC, BagError, read_bag
from onedp_ros.data.messages import bare_name, feed, pose_arrays
from onedp_ros.geometry import slerp

TARGET_MAX_AGE = 0.25  # s without a new target pose before a recording counts as not commanded
_TOO_SHORT = "steps in pieces shorter than the observation horizon"


class SourceError(RuntimeError):
    """A data set that cannot be read as episodes; the message names the file, the field and what to do."""


@dataclasses.dataclass
class Episode:
    """Steps spaced by ``dt``: stamps (T,) int64 ns, images (T, height, width, 3) uint8, state (T, 9), action (T, 10) float32."""

    stamps: NDArray[np.int64]
    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to convert: a bag, or an episode of another data set. It can be sent to another process.

    ``path`` is the file or folder it lies in, ``name`` what messages call it, ``notes`` what its recorder noted (contract, seed,
    success, …). ``read`` gives its episodes under a contract, one unless it has gaps, and counts of what was dropped.

    ``read`` raises:
        BagError, SourceError: it cannot be read or holds no step.
        ContractError: it holds what the contract forbids.
    """

    path: Path
    name: str
    read: Callable[[Contract], tuple[list[Episode], Counter[str]]]
    notes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Piece:
    """An episode on its way into a data set: its images encoded in ``folder``, its state (T, 9) and action (T, 10) here."""

    folder: Path
    state: NDArray[np.float32]
    action: NDArray[np.float32]


Run = Callable[[Callable[..., None], Sequence[tuple[Any, ...]]], Any]
"""Calls a function with each of these arguments, in several processes."""


class Targets:
    """The recorded commands, read at any time."""

    def __init__(self) -> None:
        self.pose_stamps: list[int] = []
        self.poses: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self.opening_stamps: list[int] = []
        self.openings: list[float] = []

    def add(self, topic: str, stamp: int, message: Any, contract: Contract) -> None:
        """Take a message of the target topics. ContractError for one that is no target."""
        if topic == TARGET_POSE_TOPIC:
            if message.header.frame_id != contract.base_frame:
                raise ContractError(f"{topic} is in frame '{message.header.frame_id}', expected '{contract.base_frame}'")
            position, quaternion = pose_arrays(message.pose)
            if not (np.all(np.isfinite(position)) and abs(np.linalg.norm(quaternion) - 1.0) < 0.05):
                raise ContractError(f"{topic} at {stamp} ns is {position} {quaternion}, expected numbers and a unit quaternion")
            self._insert(self.pose_stamps, self.poses, stamp, (position, quaternion))
        else:
            if len(message.position) != 1 or not np.isfinite(message.position[0]):
                raise ContractError(f"{topic} at {stamp} ns has positions {list(message.position)}, expected one opening in m")
            self._insert(self.opening_stamps, self.openings, stamp, float(message.position[0]))

    @staticmethod
    def _insert(stamps: list[int], values: list[Any], stamp: int, value: Any) -> None:
        i = bisect.bisect_right(stamps, stamp)
        stamps.insert(i, stamp)
        values.insert(i, value)

    def hold(self, stamp: int) -> bool:
        """Whether both targets had been given at ``stamp``, the pose not too long ago."""
        i, j = self._last(stamp)
        return i >= 0 and j >= 0 and stamp - self.pose_stamps[i] <= TARGET_MAX_AGE * NANOSECONDS

    def action(self, stamp: int) -> NDArray[np.float32]:
        """Action (10,) at a ``stamp`` where they :meth:`hold`.

        Between two target poses the position is linear and the rotation a slerp; the opening is the last one commanded, since
        a gripper is commanded in steps.
        """
        i, j = self._last(stamp)
        position, quaternion = self.poses[i]
        if stamp > self.pose_stamps[i] and i + 1 < len(self.poses):
            span = self.pose_stamps[i + 1] - self.pose_stamps[i]
            if span <= TARGET_MAX_AGE * NANOSECONDS:
                a = (stamp - self.pose_stamps[i]) / span
                next_position, next_quaternion = self.poses[i + 1]
                position = position + a * (next_position - position)
                quaternion = slerp(quaternion, next_quaternion, a)
        return np.asarray(encode_action(position, quaternion, self.openings[j]), dtype=np.float32)

    def _last(self, stamp: int) -> tuple[int, int]:
        return bisect.bisect_right(self.pose_stamps, stamp) - 1, bisect.bisect_right(self.opening_stamps, stamp) - 1


def grid_segments(stamps: NDArray[np.int64], step: int, commanded: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Indices of the observations nearest to ``start + k * step`` (ns), within half a step.

    The grid starts at the first observation, or at one less than a step later that a command was given at (``commanded``):
    an operator in lock step with the observations then has each command beside the observation it answers.
    Where there is no observation, the segment ends; the next begins after the gap.
    """
    segments = []
    start = 0
    while start < len(stamps):
        within_step = slice(start, int(np.searchsorted(stamps, stamps[start] + step)))
        start += int(np.argmax(commanded[within_step]))
        chosen = [start]
        while True:
            wanted = stamps[start] + len(chosen) * step
            i = int(np.searchsorted(stamps, wanted))
            if i == len(stamps) or (i > 0 and wanted - stamps[i - 1] <= stamps[i] - wanted):
                i -= 1
            if 2 * abs(stamps[i] - wanted) >= step:
                break
            chosen.append(i)
        segments.append(np.array(chosen, dtype=np.int64))
        start = int(np.searchsorted(stamps, wanted))
    return segments


def read_episodes(bag: str | Path, contract: Contract) -> tuple[list[Episode], Counter[str]]:
    """The episodes of a bag, one unless it has gaps, and counts of what was dropped.

    Raises:
        BagError: the bag cannot be read or holds no step.
        ContractError: a message that the contract forbids.
    """
    assembler = ObservationAssembler(contract)
    targets = Targets()
    observations: list[Observation] = []
    seen: set[str] = set()
    for topic, stamp, message in read_bag(bag):
        if topic in (TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC):
            targets.add(topic, stamp, message, contract)
        elif feed(assembler, topic, message):
            observations += assembler.pop()
        else:
            continue
        seen.add(bare_name(topic))

    dropped = Counter(assembler.dropped)
    kept = [o for o in observations if targets.hold(o.stamp)]
    if len(kept) < len(observations):
        dropped["no target at the stamp"] += len(observations) - len(kept)
    if not kept:
        sources = [*(c.topic for c in contract.cameras.values()), contract.joint_states_topic, contract.pose_topic]
        missing = sorted({*map(bare_name, sources), TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC} - seen)
        reason = f"it lacks the topics {missing}" if missing else f"nothing fits together: {dict(dropped)}"
        raise BagError(f"{bag} holds no complete step; {reason}")

    stamps = np.array([o.stamp for o in kept], dtype=np.int64)
    if np.any(np.diff(stamps) <= 0):
        raise BagError(f"{bag}: its stamps jump back, its recorder's clock was set")
    episodes = []
    for chosen in grid_segments(stamps, contract.dt_ns, np.isin(stamps, targets.pose_stamps)):
        if len(chosen) < contract.n_obs_steps:
            dropped[_TOO_SHORT] += len(chosen)
            continue
        picked = [kept[i] for i in chosen]
        episodes.append(
            Episode(
                stamps=stamps[chosen],
                images={name: np.stack([o.images[name] for o in picked]) for name in contract.cameras},
                state=np.stack([o.state for o in picked]).astype(np.float32),
                action=np.stack([targets.action(o.stamp) for o in picked]),
            )
        )
    if not episodes:
        raise BagError(f"{bag} holds no {contract.n_obs_steps} observations {contract.dt} s apart; are the cameras slower?")
    return episodes, dropped


def on_grid(name: str, episode: Episode, contract: Contract) -> tuple[list[Episode], Counter[str]]:
    """An imported episode, recorded at ``control_hz`` or faster -> what :func:`read_episodes` gives: its steps on the grid.

    A quaternion of the other half-space is turned into the contract's. ``name`` is for messages.

    Raises:
        SourceError: it is shorter than the observation horizon, slower than ``control_hz``, or holds NaN or what is no rotation.
    """
    stamps, state = episode.stamps, episode.state
    lengths = {"actions": len(episode.action), **{camera: len(images) for camera, images in episode.images.items()}}
    if any(length != len(stamps) for length in lengths.values()):
        raise SourceError(f"{name} has {len(stamps)} states, but {lengths}; it is damaged, leave it out")
    if len(stamps) < contract.n_obs_steps:
        raise SourceError(f"{name} has {len(stamps)} steps, expected at least {contract.n_obs_steps}; leave it out")
    if np.any(np.diff(stamps) <= 0):
        raise SourceError(f"{name}: its timestamps do not rise; leave it out")
    if (spacing := float(np.median(np.diff(stamps)))) > 1.1 * contract.dt_ns:
        raise SourceError(
            f"{name} was recorded at {NANOSECONDS / spacing:.4g} Hz, expected {contract.control_hz:g} Hz or more; set control_hz "
            f"in the task file"
        )
    if not (np.all(np.isfinite(state)) and np.all(np.abs(np.linalg.norm(state[:, 3:7], axis=1) - 1.0) < 0.05)):
        raise SourceError(f"{name} holds NaN or no unit quaternion in its states; leave it out")
    try:
        decode_action(episode.action)
    except ContractError as error:
        raise SourceError(f"{name}: {error}; leave it out") from error
    state = state.copy()
    state[state[:, 3] < 0, 3:7] *= -1
    dropped: Counter[str] = Counter()
    episodes = []
    for chosen in grid_segments(stamps, contract.dt_ns, np.ones(len(stamps), dtype=bool)):
        if len(chosen) < contract.n_obs_steps:
            dropped[_TOO_SHORT] += len(chosen)
            continue
        episodes.append(
            Episode(
                stamps=stamps[chosen],
                images={camera: images[chosen] for camera, images in episode.images.items()},
                state=state[chosen],
                action=episode.action[chosen],
            )
        )
    if not episodes:
        raise SourceError(f"{name} holds no {contract.n_obs_steps} steps {contract.dt} s apart; its timestamps have gaps")
    return episodes, dropped
