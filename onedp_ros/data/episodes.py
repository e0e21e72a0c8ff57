"""Bag -> episodes: observations on the control grid, each with the action that was commanded at its stamp.

Messages pass, in log order, through the ObservationAssembler of ``contract/``, as in the live node. The observations nearest to a
grid of ``dt = 1 / control_hz`` are kept, starting with the first that has a target. Messages that cannot be used are dropped and
counted.

Episodes of other data sets are resampled to the same grid by :func:`on_grid`.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, Observation, ObservationAssembler
from onedp_ros.contract.camera_check import CameraCheck
from onedp_ros.contract.features import slices
from onedp_ros.data import quality
from onedp_ros.data.bags.reader import BagError, Refusals, read_messages, read_serialized
from onedp_ros.data.frames import FrameStore, Images
from onedp_ros.data.targets import Targets
from onedp_ros.messages.decode import bare_name, feed

_TOO_SHORT = "steps in pieces shorter than the observation horizon"


class SourceError(RuntimeError):
    """A data set that cannot be read as episodes; the message names the file, the field and the remedy."""


@dataclasses.dataclass
class Episode:
    """Steps spaced by ``dt``: stamps (T,) int64 ns, T images per camera, state (T, state_dim), action (T, action_dim) float32."""

    stamps: NDArray[np.int64]
    images: dict[str, Images]
    state: NDArray[np.float32]
    action: NDArray[np.float32]


class Dropped(Counter[str]):
    """Counts of what was left out, by reason; ``warnings`` are doubts about the rest."""

    def __init__(self, *counts: Mapping[str, int]) -> None:
        super().__init__(*counts)
        self.warnings: list[str] = []


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to convert: a bag, or an episode of another data set. Can be pickled.

    ``path`` is its file or folder, ``name`` its name in messages, ``notes`` its recorder's notes (contract, seed, success, …).
    ``read`` returns its episodes under a contract, one unless it has gaps, and counts of what was dropped; images are buffered in
    the given folder, if any.

    ``read``, and iterating over the images, raises:
        BagError, SourceError: it cannot be read or holds no step.
        ContractError: it violates the contract.
    """

    path: Path
    name: str
    read: Callable[[Contract, Path | None], tuple[list[Episode], Dropped]]
    notes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Piece:
    """An episode to be assembled into a data set: its images encoded in ``folder``, its state (T, state_dim) and action
    (T, action_dim) in memory."""

    folder: Path
    state: NDArray[np.float32]
    action: NDArray[np.float32]


Run = Callable[[Callable[..., None], Sequence[tuple[Any, ...]]], Any]
"""Calls a function with each of these argument tuples, in several processes."""


def grid_segments(stamps: NDArray[np.int64], step: int, commanded: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Indices of the observations nearest to ``start + k * step`` (ns), within half a step.

    The grid starts at the first observation, or at one less than a step later at which a command was given (``commanded``): if
    commands are in lockstep with observations, each is then paired with the observation it responds to. A segment ends where there
    is no observation; the next starts after the gap.
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


def expected_types(contract: Contract) -> dict[str, str]:
    """The topics, without leading "/", that are read from a bag, with their types."""
    types = {bare_name(topic): kind for topic, kind in contract.state_topics.items()}
    for camera in contract.cameras.values():
        types |= {bare_name(camera.topic): _IMAGE, f"{bare_name(camera.topic)}/compressed": _COMPRESSED}
    return types | {bare_name(topic): kind for topic, kind in contract.action_topics.items()}


class _Run:
    """Commands and observations up to the point where the recorder's clock was set back, or to the end."""

    def __init__(self, contract: Contract) -> None:
        self.targets = Targets(contract)
        self.stamps: list[int] = []
        self.states: list[NDArray[np.floating[Any]]] = []
        self.frames: list[dict[str, int]] = []  # per observation, camera -> image number in the store
        self.numbers: dict[tuple[str, int], int] = {}  # (camera, stamp) -> image number
        self.begin: int | None = None  # first stamp on the topics that trigger observations, ns
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
        """Note the stamp of a message that triggers observations: of a camera, or of the first state topic without cameras."""
        self.begin = stamp if self.begin is None else min(self.begin, stamp)
        self.end = max(self.end, stamp)


class _Reading:
    """One pass over a bag: its runs, and what was not used."""

    def __init__(self, contract: Contract, store: FrameStore) -> None:
        self.contract, self.store = contract, store
        self.refusals = Refusals()
        self.heard: Counter[str] = Counter()
        self.runs = [_Run(contract)]
        self.assembler, self.check = ObservationAssembler(contract), CameraCheck(contract)
        self._lags: dict[str, array[int]] = {}
        self._transports: dict[str, str] = {}
        self._targets = {bare_name(topic): kind for topic, kind in contract.action_topics.items()}
        self._measured = {bare_name(topic) for topic in contract.state_topics}
        self._last_target = 0

    def read(self, bag: Path) -> None:
        types = expected_types(self.contract)
        leading = {bare_name(camera.topic) for camera in self.contract.cameras.values()} or {*list(self._measured)[:1]}
        for topic, stamp, logged, content in read_messages(bag, types, self.refusals):
            name = bare_name(topic)
            if self._transports.setdefault(name, topic) != topic:
                continue  # recorded both raw and compressed: use the one that came first
            self.heard[topic] += 1
            self._lags.setdefault(topic, array("q")).append(logged - stamp)
            if content.__msgtype__ != types[topic]:
                self.refusals.add(topic, f"its type is {content.__msgtype__}, expected {types[topic]}; publish that type")
                continue
            if name in leading:
                self.runs[-1].saw(stamp)
            try:
                self._take(name, stamp, content)
            except (ContractError, ValueError, IndexError, OverflowError) as error:
                self.refusals.add(topic, error)

    def _take(self, topic: str, stamp: int, content: Any) -> None:
        run = self.runs[-1]
        if topic in self._targets:
            if topic == next(iter(self._targets)):
                if stamp < self._last_target - NANOSECONDS:
                    run = self._begin_run()
                self._last_target = stamp
            run.targets.add(topic, stamp, content)
            if topic not in self._measured:
                return
        before = self._jumps()
        try:
            feed(self.assembler, topic, content, stamp)
        finally:
            if self._jumps() > before:
                run = self._begin_run()
        for observation in self.assembler.pop():
            faults = self.check.faults(observation)  # the live node would withhold it, too
            self.assembler.dropped.update(f"{camera} picture {reason}" for camera, (reason, _) in faults.items())
            if not faults:
                run.add(observation, self.store)

    def _jumps(self) -> int:
        return sum(count for reason, count in self.assembler.dropped.items() if reason.endswith("jumped back"))

    def _begin_run(self) -> _Run:
        if self.runs[-1].stamps:  # else another stream has just started it
            self.runs.append(_Run(self.contract))
        return self.runs[-1]

    def lags(self) -> dict[str, float]:
        """Median time (s) from stamp to recording, by topic."""
        return {
            topic: float(np.median(np.frombuffer(lags, np.int64))) / NANOSECONDS
            for topic, lags in self._lags.items()
            if not quality.unstamped({topic: self.refusals.unstamped[topic]}, self.heard)
        }


def read_episodes(
    bag: str | Path, contract: Contract, folder: Path | None = None, keep_images: bool = True, kinesthetic: bool = False
) -> tuple[list[Episode], Dropped]:
    """The episodes of a bag, one unless it has gaps, and counts of what was dropped.

    Images are buffered in ``folder``, without one in memory, or not at all. ``kinesthetic``: the arm was guided by hand, and each
    action is the state measured one step later, whatever was commanded.

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
        if kinesthetic:
            held = list(range(len(run.stamps)))
        else:
            held = [i for i, stamp in enumerate(run.stamps) if run.targets.hold_stream(stamp)] if run.targets.complete else []
        observed, uncommanded = observed + len(run.stamps), uncommanded + len(run.stamps) - len(held)
        episodes += _grid(run, held, reading.store, contract, dropped, kinesthetic)
    if uncommanded:
        dropped["no target at the stamp"] += uncommanded
    dropped.update(reading.refusals.counts())
    if not episodes:
        raise BagError(_why_nothing(bag, reading, dropped, observed > uncommanded, kinesthetic))
    expected = sum((run.end - run.begin) / contract.dt_ns + 1 for run in reading.runs if run.begin is not None)
    steps = sum(len(episode.stamps) for episode in episodes)
    dropped.warnings += [
        *quality.refusals(reading.refusals.messages, reading.refusals.reasons, reading.heard),
        *quality.lags(reading.lags()),
        *quality.losses(steps, expected, uncommanded / max(observed, 1), contract.control_hz, dropped),
        *quality.unstamped(reading.refusals.unstamped, reading.heard),
        *(f"{what}; its content is lost" for what in reading.refusals.damage if not what.endswith("cut short")),
    ]
    return episodes, dropped


def _grid(
    run: _Run, held: list[int], store: FrameStore, contract: Contract, dropped: Counter[str], kinesthetic: bool
) -> Iterator[Episode]:
    """The episodes of a run, from the observations ``held`` that have a target."""
    stamps = np.array([run.stamps[i] for i in held], dtype=np.int64)
    commanded = [] if kinesthetic else run.targets.stamps
    for part in np.split(np.arange(len(held)), np.nonzero(np.diff(stamps) <= 0)[0] + 1):
        for chosen in grid_segments(stamps[part], contract.dt_ns, np.isin(stamps[part], commanded)):
            if len(chosen) < contract.n_obs_steps:
                dropped[_TOO_SHORT] += len(chosen)
                continue
            picked = [held[i] for i in part[chosen]]
            state = np.stack([run.states[i] for i in picked]).astype(np.float32)
            if kinesthetic:
                action = _next_states(contract, state)
            else:
                measured = _measured_openings(contract, state)
                action = np.stack([run.targets.action(run.stamps[i], m) for i, m in zip(picked, measured, strict=True)])
            yield Episode(
                stamps=stamps[part][chosen],
                images={name: store.images(name, np.array([run.frames[i][name] for i in picked])) for name in contract.cameras},
                state=state,
                action=action,
            )


def _measured_openings(contract: Contract, state: NDArray[np.float32]) -> list[dict[str, float]]:
    """Per step, the openings to assume before the first command: the measured one for a single arm, else none."""
    try:
        arm, opening = contract.arm, next(feature.name for feature in contract.action if feature.kind == "opening")
    except (ContractError, StopIteration):
        return [{}] * len(state)
    return [{opening: arm.opening(fingers)} for fingers in arm.poses(state)[2]]


def _next_states(contract: Contract, state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Actions (T, action_dim) that command the next step's state, from states (T, state_dim); the last one holds."""
    arm = contract.arm
    steps = zip(*arm.poses(np.concatenate([state[1:], state[-1:]])), strict=True)
    return np.stack([arm.encode_action(position, quaternion, arm.opening(fingers)) for position, quaternion, fingers in steps])


def _why_nothing(bag: Path, reading: _Reading, dropped: Dropped, complete: bool, kinesthetic: bool) -> str:
    contract = reading.contract
    if complete:
        return f"{bag} holds no {contract.n_obs_steps} observations {contract.dt} s apart; are the cameras slower?"
    sources = [*(c.topic for c in contract.cameras.values()), *contract.state_topics]
    targets = set() if kinesthetic else {*map(bare_name, contract.action_topics)}
    missing = sorted(({*map(bare_name, sources)} | targets) - {*map(bare_name, reading.heard)})
    reasons = [f"{topic}: {reason}" for topic, reason in reading.refusals.reasons.items()]
    if missing:
        others = sorted({message.topic.lstrip("/") for message in read_serialized(bag)} - set(reading.heard))
        last = {name.split("/")[-1] for name in missing} - {"image_raw"}
        alike = [other for other in others if bare_name(other).split("/")[-1] in last]
        text = f"it lacks the topics {missing}, it has {alike or others}; "
        if set(missing) <= targets:
            text += "use the bag's topic names for the action's features in the task file; if the arm was guided by hand, "
            text += "convert with --kinesthetic"
        else:
            text += "use the bag's topic names for the cameras and the robot in the task file"
        reasons.insert(0, text)
    reasons += quality.lags(reading.lags())
    return f"{bag} holds no complete step; " + ("; ".join(reasons) or f"nothing fits together: {dict(dropped)}")


def on_grid(name: str, episode: Episode, contract: Contract) -> tuple[list[Episode], Dropped]:
    """Resample an imported episode, recorded at ``control_hz`` or faster, to the grid of :func:`read_episodes`.

    Quaternions are flipped into the contract's half-space. ``name`` is for messages.

    Raises:
        SourceError: it is shorter than the observation horizon, slower than ``control_hz``, or holds NaN or an invalid rotation.
    """
    stamps, state = episode.stamps, episode.state
    lengths = {"actions": len(episode.action), **{camera: len(images) for camera, images in episode.images.items()}}
    if any(length != len(stamps) for length in lengths.values()):
        raise SourceError(f"{name} has {len(stamps)} states, but {lengths}; it is damaged, leave it out")
    if len(stamps) < contract.n_obs_steps:
        raise SourceError(f"{name} has {len(stamps)} steps, expected at least {contract.n_obs_steps}; leave it out")
    if np.any(np.diff(stamps) <= 0):
        raise SourceError(f"{name}: its timestamps do not increase; leave it out")
    if (spacing := float(np.median(np.diff(stamps)))) > 1.1 * contract.dt_ns:
        raise SourceError(
            f"{name} was recorded at {NANOSECONDS / spacing:.4g} Hz, expected {contract.control_hz:g} Hz or more; set control_hz "
            f"in the task file"
        )
    if not np.all(np.isfinite(state)):
        raise SourceError(f"{name} holds NaN in its states; leave it out")
    state = state.copy()
    try:
        for feature, at in zip(contract.state, slices(contract.state).values(), strict=True):
            if feature.kind in ("quaternion", "rotation_6d"):
                feature.quaternions(state[:, at])
            if feature.kind == "quaternion":
                state[:, at] *= np.where(state[:, at][:, :1] < 0, -1, 1).astype(state.dtype)
        contract.check_action(episode.action)
    except ContractError as error:
        raise SourceError(f"{name}: {error}; leave it out") from error
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
