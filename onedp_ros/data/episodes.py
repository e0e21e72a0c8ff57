"""A bag -> episodes: observations on the control grid, each with the action that was commanded at its stamp.

Messages pass, in log order, through the ObservationAssembler of ``contract.py``, as they do in the live node. Of the
observations those nearest to a grid of ``dt = 1 / control_hz`` are kept, from the first one that has a target. A message that
cannot be used is dropped and counted, whatever it is.

What is imported from other data sets passes through :func:`on_grid`, to the same grid.
"""

from __future__ import annotations

import bisect
import dataclasses
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from onedp_ros.contract.camera_check import CameraCheck
from onedp_ros.data import quality
from onedp_ros.data.bags.reader import GRIPPER_TARGET_TOPIC, TARGET_POSE_TOPIC, BagError, Refusals, read_messages, read_serialized
from onedp_ros.data.frames import FrameStore, Images
from onedp_ros.geometry import slerp
from onedp_ros.messages.decode import bare_name, feed, pose_arrays

TARGET_MAX_AGE = 0.25  # s without a new target pose before a recording counts as not commanded
_TOO_SHORT = "steps in pieces shorter than the observation horizon"


class SourceError(RuntimeError):
    """A data set that cannot be read as episodes; the message names the file, the field and what to do."""


@dataclasses.dataclass
class Episode:
    """Steps spaced by ``dt``: stamps (T,) int64 ns, by camera T images, state (T, 9), action (T, 10) float32."""

    stamps: NDArray[np.int64]
    images: dict[str, Images]
    state: NDArray[np.float32]
    action: NDArray[np.float32]


class Dropped(Counter[str]):
    """How often what was left out, by reason; ``warnings`` tell what is doubtful about the rest."""

    def __init__(self, *counts: Mapping[str, int]) -> None:
        super().__init__(*counts)
        self.warnings: list[str] = []


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to convert: a bag, or an episode of another data set. It can be sent to another process.

    ``path`` is the file or folder it lies in, ``name`` what messages call it, ``notes`` what its recorder noted (contract, seed,
    success, …). ``read`` gives its episodes under a contract, one unless it has gaps, and counts of what was dropped; images on
    their way are kept in the folder given, if any.

    ``read``, and going through the images, raises:
        BagError, SourceError: it cannot be read or holds no step.
        ContractError: it holds what the contract forbids.
    """

    path: Path
    name: str
    read: Callable[[Contract, Path | None], tuple[list[Episode], Dropped]]
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
        if bare_name(topic) == TARGET_POSE_TOPIC:
            if message.header.frame_id != contract.base_frame:
                raise ContractError(
                    f"{topic} is in frame '{message.header.frame_id}', expected '{contract.base_frame}'; publish it in that frame, "
                    f"or set base_frame in the task file"
                )
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
        return self.hold_pose(stamp) and self._last(stamp)[1] >= 0

    def hold_pose(self, stamp: int) -> bool:
        """Whether a target pose had been given at ``stamp``, not too long ago."""
        i, _ = self._last(stamp)
        return i >= 0 and stamp - self.pose_stamps[i] <= TARGET_MAX_AGE * NANOSECONDS

    def action(self, stamp: int, measured: float = np.nan) -> NDArray[np.float32]:
        """Action (10,) at a ``stamp`` where the pose is held.

        Between two target poses the position is linear and the rotation a slerp; the opening is the last one commanded, since
        a gripper is commanded in steps, and the ``measured`` one (m) before the first command.
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
        opening = self.openings[j] if j >= 0 else measured
        return np.asarray(encode_action(position, quaternion, opening), dtype=np.float32)

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


_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_POSE, _JOINTS = "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/JointState"


def expected_types(contract: Contract) -> dict[str, str]:
    """The topics, without leading "/", that are read of a bag, with their types."""
    types = {bare_name(contract.joint_states_topic): _JOINTS, bare_name(contract.pose_topic): _POSE}
    for camera in contract.cameras.values():
        types |= {bare_name(camera.topic): _IMAGE, f"{bare_name(camera.topic)}/compressed": _COMPRESSED}
    return types | {TARGET_POSE_TOPIC: _POSE, GRIPPER_TARGET_TOPIC: _JOINTS}


class _Run:
    """What was recorded until the recorder's clock was set back, or to the end: what was commanded, and what was observed."""

    def __init__(self) -> None:
        self.targets = Targets()
        self.stamps: list[int] = []
        self.states: list[NDArray[np.floating[Any]]] = []
        self.frames: list[dict[str, int]] = []  # by camera, the number in the store
        self.numbers: dict[tuple[str, int], int] = {}  # of a camera and stamp
        self.begin: int | None = None  # of the cameras, ns
        self.end = 0

    def add(self, observation: Observation, store: FrameStore) -> None:
        for camera, image in observation.images.items():
            key = camera, observation.image_stamps[camera]
            if key not in self.numbers:
                self.numbers[key] = store.add(camera, image)
        self.frames.append({c: self.numbers[c, observation.image_stamps[c]] for c in observation.images})
        self.stamps.append(observation.stamp)
        self.states.append(observation.state)

    def saw(self, stamp: int) -> None:
        """A camera's message came."""
        self.begin = stamp if self.begin is None else min(self.begin, stamp)
        self.end = max(self.end, stamp)


class _Reading:
    """One reading of a bag: its runs, and what was not used."""

    def __init__(self, contract: Contract, store: FrameStore) -> None:
        self.contract, self.store = contract, store
        self.refusals = Refusals()
        self.heard: Counter[str] = Counter()
        self.runs = [_Run()]
        self.assembler, self.check = ObservationAssembler(contract), CameraCheck(contract)
        self._lags: dict[str, array[int]] = {}
        self._transports: dict[str, str] = {}
        self._last_target = 0

    def read(self, bag: Path) -> None:
        types = expected_types(self.contract)
        cameras = {bare_name(camera.topic) for camera in self.contract.cameras.values()}
        for topic, stamp, logged, content in read_messages(bag, types, self.refusals):
            name = bare_name(topic)
            if self._transports.setdefault(name, topic) != topic:
                continue  # recorded both raw and compressed: as the first of them
            self.heard[topic] += 1
            self._lags.setdefault(topic, array("q")).append(logged - stamp)
            if content.__msgtype__ != types[topic]:
                self.refusals.add(topic, f"its type is {content.__msgtype__}, expected {types[topic]}; publish that type")
                continue
            if name in cameras:
                self.runs[-1].saw(stamp)
            try:
                self._take(name, stamp, content)
            except (ContractError, ValueError, IndexError, OverflowError) as error:
                self.refusals.add(topic, error)

    def _take(self, topic: str, stamp: int, content: Any) -> None:
        run = self.runs[-1]
        if topic in (TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC):
            if topic == TARGET_POSE_TOPIC:
                if stamp < self._last_target - NANOSECONDS:
                    run = self._begin_run()
                self._last_target = stamp
            run.targets.add(topic, stamp, content, self.contract)
            return
        before = self._jumps()
        try:
            feed(self.assembler, topic, content, stamp)
        finally:
            if self._jumps() > before:
                run = self._begin_run()
        for observation in self.assembler.pop():
            faults = self.check.faults(observation)  # what the live node withholds from a policy teaches it nothing
            self.assembler.dropped.update(f"{camera} picture {reason}" for camera, (reason, _) in faults.items())
            if not faults:
                run.add(observation, self.store)

    def _jumps(self) -> int:
        return sum(count for reason, count in self.assembler.dropped.items() if reason.endswith("jumped back"))

    def _begin_run(self) -> _Run:
        if self.runs[-1].stamps:  # else it has just begun, by another stream
            self.runs.append(_Run())
        return self.runs[-1]

    def lags(self) -> dict[str, float]:
        """By topic, the median time (s) from stamp to recording."""
        return {
            topic: float(np.median(np.frombuffer(lags, np.int64))) / NANOSECONDS
            for topic, lags in self._lags.items()
            if not quality.unstamped({topic: self.refusals.unstamped[topic]}, self.heard)
        }


def read_episodes(
    bag: str | Path, contract: Contract, folder: Path | None = None, keep_images: bool = True
) -> tuple[list[Episode], Dropped]:
    """The episodes of a bag, one unless it has gaps, and counts of what was dropped.

    Images on their way are kept in ``folder``, in memory without one, or not at all.

    Raises:
        BagError: the bag cannot be read or holds no step; names what could not be used.
        OSError: ``folder`` is full.
    """
    bag = Path(bag)
    reading = _Reading(contract, FrameStore(folder, keep_images))
    reading.read(bag)
    dropped = Dropped(reading.assembler.dropped)
    episodes: list[Episode] = []
    observed = uncommanded = 0
    for run in reading.runs:
        held = [i for i, stamp in enumerate(run.stamps) if run.targets.hold_pose(stamp)] if run.targets.openings else []
        observed, uncommanded = observed + len(run.stamps), uncommanded + len(run.stamps) - len(held)
        episodes += _grid(run, held, reading.store, contract, dropped)
    if uncommanded:
        dropped["no target at the stamp"] += uncommanded
    dropped.update(reading.refusals.counts())
    if not episodes:
        raise BagError(_why_nothing(bag, reading, dropped, observed > uncommanded))
    expected = sum((run.end - run.begin) / contract.dt_ns + 1 for run in reading.runs if run.begin is not None)
    steps = sum(len(episode.stamps) for episode in episodes)
    dropped.warnings += [
        *quality.refusals(reading.refusals.messages, reading.refusals.reasons, reading.heard),
        *quality.lags(reading.lags()),
        *quality.losses(steps, expected, uncommanded / max(observed, 1), contract.control_hz, dropped),
        *quality.unstamped(reading.refusals.unstamped, reading.heard),
        *(f"{what}; what lies there is lost" for what in reading.refusals.damage if not what.endswith("cut short")),
    ]
    return episodes, dropped


def _grid(run: _Run, held: list[int], store: FrameStore, contract: Contract, dropped: Counter[str]) -> Iterator[Episode]:
    """The episodes of a run, of the observations ``held`` that have a target."""
    stamps = np.array([run.stamps[i] for i in held], dtype=np.int64)
    for part in np.split(np.arange(len(held)), np.nonzero(np.diff(stamps) <= 0)[0] + 1):
        for chosen in grid_segments(stamps[part], contract.dt_ns, np.isin(stamps[part], run.targets.pose_stamps)):
            if len(chosen) < contract.n_obs_steps:
                dropped[_TOO_SHORT] += len(chosen)
                continue
            picked = [held[i] for i in part[chosen]]
            state = np.stack([run.states[i] for i in picked]).astype(np.float32)
            openings = state[:, 7].astype(np.float64) + state[:, 8]
            yield Episode(
                stamps=stamps[part][chosen],
                images={name: store.images(name, np.array([run.frames[i][name] for i in picked])) for name in contract.cameras},
                state=state,
                action=np.stack([run.targets.action(run.stamps[i], o) for i, o in zip(picked, openings, strict=True)]),
            )


def _why_nothing(bag: Path, reading: _Reading, dropped: Dropped, complete: bool) -> str:
    contract = reading.contract
    if complete:
        return f"{bag} holds no {contract.n_obs_steps} observations {contract.dt} s apart; are the cameras slower?"
    sources = [*(c.topic for c in contract.cameras.values()), contract.joint_states_topic, contract.pose_topic]
    missing = sorted({*map(bare_name, sources), TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC} - {*map(bare_name, reading.heard)})
    reasons = [f"{topic}: {reason}" for topic, reason in reading.refusals.reasons.items()]
    if missing:
        others = sorted({message.topic.lstrip("/") for message in read_serialized(bag)} - set(reading.heard))
        last = {name.split("/")[-1] for name in missing} - {"image_raw"}
        alike = [other for other in others if bare_name(other).split("/")[-1] in last]
        text = f"it lacks the topics {missing}, it has {alike or others}; "
        if set(missing) <= {TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC}:
            text += "commands are read from topics of these names, remap yours while they are recorded"
        else:
            text += "name the cameras' and the robot's topics in the task file as they are in the bag"
        reasons.insert(0, text)
    reasons += quality.lags(reading.lags())
    return f"{bag} holds no complete step; " + ("; ".join(reasons) or f"nothing fits together: {dict(dropped)}")


def on_grid(name: str, episode: Episode, contract: Contract) -> tuple[list[Episode], Dropped]:
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
    dropped = Dropped()
    episodes = []
    for chosen in grid_segments(stamps, contract.dt_ns, np.ones(len(stamps), dtype=bool)):
        if len(chosen) < contract.n_obs_steps:
            dropped[_TOO_SHORT] += len(chosen)
            continue
        episodes.append(
            Episode(
                stamps=stamps[chosen],
                images={camera: images.pick(chosen) for camera, images in episode.images.items()},
                state=state[chosen],
                action=episode.action[chosen],
            )
        )
    if not episodes:
        raise SourceError(f"{name} holds no {contract.n_obs_steps} steps {contract.dt} s apart; its timestamps have gaps")
    return episodes, dropped
