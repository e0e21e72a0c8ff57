"""From messages to observations: pairs frames, interpolates the state, keeps a history. No ROS: stamps are integer nanoseconds."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onedp_ros.contract.features import ContractError, Floats
from onedp_ros.contract.spec import NANOSECONDS, Contract, Image
from onedp_ros.geometry import interpolate

# Of any measured position: a larger one is not a measurement in any unit, and computations with it would overflow.
LARGEST = 1e4


@dataclasses.dataclass(frozen=True)
class Observation:
    """A policy's input at one stamp (ns): an image (height, width, 3) uint8 per camera and the state (state_dim,).

    ``image_stamps`` (ns) are the stamps of the cameras' frames.
    """

    stamp: int
    images: Mapping[str, Image]
    image_stamps: Mapping[str, int]
    state: Floats


class _Samples:
    """Poses or joint positions of the last two seconds by stamp, with interpolation."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.values: list[Any] = []

    def add(self, stamp: int, value: Any) -> None:
        self.stamps.append(stamp)
        self.values.append(value)
        if stamp - self.stamps[0] > 2 * NANOSECONDS:
            old = bisect.bisect_left(self.stamps, stamp - NANOSECONDS)
            del self.stamps[:old], self.values[:old]

    def at(self, stamp: int) -> Any:
        """The value at ``stamp``: interpolated linearly, orientations on the shortest arc; the last value is held."""
        i = bisect.bisect_right(self.stamps, stamp) - 1
        j = min(i + 1, len(self.stamps) - 1)
        a = (stamp - self.stamps[i]) / (self.stamps[j] - self.stamps[i]) if j > i else 0.0
        return interpolate(self.values[i], self.values[j], a)


class ObservationAssembler:
    """Pairs camera frames and interpolates the state at their stamp.

    A new frame and the other cameras' nearest frames within ``slop`` form a set, stamped with the newest frame's time. It becomes
    an observation as soon as pose and joint samples bracket that time. ``dropped`` counts, by reason, what did not become part of
    an observation. A stamp that jumps back by more than a second clears the buffers: the source restarted.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.dropped: Counter[str] = Counter()
        self._clear()

    def _clear(self) -> None:
        self._frames: dict[str, deque[tuple[int, Image]]] = {name: deque(maxlen=16) for name in self.contract.cameras}
        self._measured = {topic: _Samples() for topic in self.contract.state_topics}
        self._pending: deque[tuple[int, dict[str, Image], dict[str, int]]] = deque()
        self._last_set = -math.inf  # stamp of the newest set

    def add_image(self, camera: str, stamp: int, image: Image) -> None:
        """Add a frame (rgb8, any size that the contract allows). ContractError for an invalid image."""
        image = self.contract.cameras[camera].fit(image)
        if not self._follows(stamp, [s for s, _ in self._frames[camera]], f"{camera} image"):
            return
        self._frames[camera].append((stamp, image))
        chosen: dict[str, tuple[int, Image]] = {}
        for name, frames in self._frames.items():
            best = min(frames, key=lambda frame: abs(frame[0] - stamp), default=None)
            if best is None or abs(best[0] - stamp) > self.contract.slop * NANOSECONDS:
                self.dropped[f"no {name} frame within slop"] += 1
                return
            chosen[name] = best
        stamp = max(s for s, _ in chosen.values())
        if stamp <= self._last_set:
            self.dropped[f"{camera} frame late"] += 1  # a set at least as new already exists
            return
        self._last_set = stamp
        self._pending.append((stamp, {n: f for n, (_, f) in chosen.items()}, {n: s for n, (s, _) in chosen.items()}))

    def add_pose(self, topic: str, stamp: int, position: ArrayLike, quaternion: ArrayLike) -> None:
        """Add a measured pose in the base frame, from one of the contract's topics: (3,) m, (4,) xyzw.

        Raises:
            ContractError: NaN, an implausibly large number or an invalid rotation.
        """
        p, q = np.asarray(position, np.float64), np.asarray(quaternion, np.float64)
        if np.abs([*p, *q]).max() > LARGEST:
            raise ContractError(f"{topic}: position {p.tolist()} m is out of reach; check the robot's state publisher")
        if not np.all(np.isfinite([*p, *q])):
            raise ContractError(f"{topic}: pose {p.tolist()} {q.tolist()} holds NaN or infinity; check the robot's state publisher")
        if abs((length := np.linalg.norm(q)) - 1.0) > 0.05:
            raise ContractError(f"{topic}: orientation has length {length:.3f}, expected a unit quaternion")
        self._add(topic, "pose", stamp, (p, q))

    def add_joints(self, topic: str, stamp: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """Add a joint state from one of the contract's topics. ContractError if a joint is missing, not finite or implausible."""
        wanted = self.contract.measured_joints[topic]
        try:
            values = np.array([positions[names.index(j)] for j in wanted], dtype=np.float64)
        except (ValueError, IndexError) as error:
            raise ContractError(
                f"{topic} has joints {list(names)[:16]} with {len(positions)} positions, expected {list(wanted)} among them; use "
                f"the message's joint names for the state's features in the task file"
            ) from error
        if not np.all(np.isfinite(values)):
            raise ContractError(f"{topic}: joint positions {values.tolist()} are not finite; check their publisher")
        if np.abs(values).max() > LARGEST:
            raise ContractError(f"{topic}: joint positions {values.tolist()} are implausible; check their publisher")
        self._add(topic, "joint state", stamp, values)

    def _add(self, topic: str, source: str, stamp: int, value: Any) -> None:
        if not self._follows(stamp, self._measured[topic].stamps, source):
            return
        self._measured[topic].add(stamp, value)
        # Without cameras, samples on the first feature's topic trigger the observations.
        if not self.contract.cameras and topic == next(iter(self._measured)) and stamp > self._last_set:
            self._last_set = stamp
            self._pending.append((stamp, {}, {}))

    def pop(self) -> list[Observation]:
        """The observations completed since the last call, oldest first. Never raises: an invalid one is dropped."""
        ready: list[Observation] = []
        while self._pending and all(samples.stamps for samples in self._measured.values()):
            stamp, images, image_stamps = self._pending[0]
            waiting = min(samples.stamps[-1] for samples in self._measured.values()) < stamp
            if waiting and len(self._pending) <= 8:
                break
            self._pending.popleft()
            if waiting or max(samples.stamps[0] for samples in self._measured.values()) > stamp:
                self.dropped["no state at the stamp"] += 1
                continue
            try:
                state = self.contract.encode_state({topic: samples.at(stamp) for topic, samples in self._measured.items()})
            except ContractError:
                self.dropped["state against the contract"] += 1
                continue
            ready.append(Observation(stamp, images, image_stamps, state))
        return ready

    @property
    def pending(self) -> bool:
        """Whether an observation is waiting for the robot's state at its stamp."""
        return bool(self._pending)

    def _follows(self, stamp: int, earlier: Sequence[int], source: str) -> bool:
        """Whether to use the sample: it is newer than the last, or its clock was set back and the buffers were cleared."""
        if not earlier or stamp > earlier[-1]:
            return True
        if earlier[-1] - stamp < NANOSECONDS:
            self.dropped[f"{source} out of order"] += 1
            return False
        self.dropped[f"{source} stamp jumped back"] += 1
        self._clear()
        return True


class ObservationHistory:
    """Keeps recent observations and selects those spaced by ``dt``, at whatever rate they arrive."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._observations: deque[Observation] = deque(maxlen=64)

    def add(self, observation: Observation) -> None:
        """Add a newer observation; one that is older than the last clears the history (the clock was set back)."""
        if self._observations and observation.stamp <= self._observations[-1].stamp:
            self._observations.clear()
        self._observations.append(observation)

    def add_distant(self, observation: Observation) -> None:
        """Add a newer observation only if none lies within half a step before it."""
        if not self._observations or observation.stamp - self._observations[-1].stamp >= self.contract.dt_ns // 2:
            self.add(observation)

    def window(self) -> list[Observation] | None:
        """``n_obs_steps`` observations, oldest first, ending with the newest; None before the first.

        For each wanted time the nearest observation is used. At the start, and after a gap longer than ``dt``, when none lies
        within half a step, the following one is repeated, as the first step is in training.
        """
        if not self._observations:
            return None
        chosen = [self._observations[-1]]
        for wanted in reversed(self.contract.history_stamps(chosen[-1].stamp)[:-1]):
            best = min(self._observations, key=lambda o: abs(o.stamp - wanted))
            chosen.append(best if abs(best.stamp - wanted) <= self.contract.dt_ns // 2 else chosen[-1])
        return chosen[::-1]
