"""What the nodes published live, as recorded, and what their code makes of the recording again, without a graph.

A *set* is an observation as observation_node publishes it: an image of each camera and the state, under one stamp.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onedp_ros.contract import (
    Contract,
    ContractError,
    Observation,
    ObservationAssembler,
    ObservationHistory,
    task_contract,
)
from onedp_ros.contract.camera_check import CameraCheck
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.data.bags.reader import read_bag, read_metadata
from onedp_ros.data.targets import Targets
from onedp_ros.messages.decode import bare_name, chunk_from_message, feed, observation_from_messages, stamp_ns

CHUNK_TOPIC, STATE_TOPIC, DIAGNOSTICS_TOPIC = "action/chunk", "observation/state", "diagnostics"
POLICY_FACTS = ("model", "method", "engine", "threads", "seed")  # policy_node reports these in /diagnostics


SetDigests = dict[str, bytes]  # by camera, and "state", the digest of its bytes
Window = tuple[int, ...]  # stamps of a prediction's observations, oldest first, ns


class Outputs:
    """What observation_node and policy_node published: digests of the sets, chunks, and :data:`POLICY_FACTS`."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.sets: dict[int, SetDigests] = {}
        self.chunks: dict[int, ActionChunk] = {}
        self.policy: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._images = {f"observation/{name}/image": name for name in contract.cameras}

    @property
    def topics(self) -> list[str]:
        return [*self._images, STATE_TOPIC, CHUNK_TOPIC, DIAGNOSTICS_TOPIC]

    def add(self, topic: str, message: Any) -> None:
        """Add a message of one of the :attr:`topics`. ContractError when it does not fit the contract."""
        if topic == CHUNK_TOPIC:
            chunk = chunk_from_message(message, self.contract.base_frame)
            self.chunks[chunk.stamp] = chunk
        elif topic == DIAGNOSTICS_TOPIC:
            for status in message.status:
                values = {item.key: item.value for item in status.values}
                if set(POLICY_FACTS) <= values.keys():
                    self.policy = {key: values[key] for key in POLICY_FACTS}
        else:
            parts = self._parts.setdefault(stamp_ns(message), {})
            parts[self._images.get(topic, "state")] = message
            if len(parts) == len(self._images) + 1:
                state = parts.pop("state")
                observation = observation_from_messages(self.contract, parts, state)
                self.sets[observation.stamp] = digests(observation)
                for stamp in [s for s in self._parts if s <= observation.stamp]:  # also of earlier sets, which lost a part
                    del self._parts[stamp]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Content of a bag: what the nodes had published, if anything, what was commanded, and the image transport to read."""

    outputs: Outputs
    targets: Targets
    transport: str


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Sets and chunks of a replay, the window of each chunk, and counts of what went wrong."""

    sets: Mapping[int, SetDigests]
    chunks: Mapping[int, ActionChunk]
    windows: Mapping[int, Window]
    counts: Mapping[str, int]


def digests(observation: Observation) -> SetDigests:
    """The digest of each part of a set."""
    parts = {**observation.images, "state": observation.state}
    return {name: hashlib.blake2b(np.ascontiguousarray(part).tobytes(), digest_size=16).digest() for name, part in parts.items()}


def windows(
    contract: Contract, observations: Iterable[Observation], predicted: Collection[int] | None, whole: bool
) -> Iterator[list[Observation]]:
    """The windows, as in policy_node, of a policy that predicted at the stamps ``predicted`` (None: at every observation).

    Unless the ``whole`` history is known, windows that may contain observations from before the first prediction are left out.
    """
    history = ObservationHistory(contract)
    first = -math.inf if whole else math.inf
    for observation in observations:
        if predicted is not None and observation.stamp not in predicted:
            history.add_distant(observation)
            continue
        history.add(observation)
        first = min(first, observation.stamp)
        window = history.window()
        if window is not None and contract.history_stamps(observation.stamp)[0] >= first:
            yield window


def stamps_of_windows(contract: Contract, stamps: Iterable[int], predicted: Collection[int], whole: bool) -> dict[int, Window]:
    """As :func:`windows`, when only the observations' stamps are known; by the newest stamp."""
    bare = (Observation(stamp, {}, {}, np.zeros(0)) for stamp in stamps)
    return {w[-1].stamp: tuple(o.stamp for o in w) for w in windows(contract, bare, predicted, whole)}


def recorded_contract(bag: Path, task: str) -> Contract:
    """The contract stored in a bag, or that of ``task`` when there is none."""
    noted = read_metadata(bag).get("contract")
    return task_contract(task) if noted is None else Contract.from_dict(noted)


def read_recording(bag: Path, contract: Contract, transport: str | None = None) -> Recorded:
    """Read the nodes' outputs and the commands in a bag. ``transport``: the images to use if both raw and compressed were recorded.

    Raises:
        BagError: the bag cannot be read.
        ContractError: an output does not fit the contract.
    """
    outputs, targets = Outputs(contract), Targets(contract)
    commanded = {bare_name(topic) for topic in contract.action_topics}
    for topic, stamp, message in read_bag(bag, [*outputs.topics, *contract.action_topics]):
        if bare_name(topic) in commanded:
            with suppress(ContractError, AttributeError):  # a bad command is skipped, as by the converter
                targets.add(topic, stamp, message)
        else:
            outputs.add(topic, message)
    return Recorded(outputs, targets, transport or _transport(bag, contract))


def _transport(bag: Path, contract: Contract) -> str:
    """``raw`` when the bag has a camera's raw images, else ``compressed``."""
    raw = [camera.topic for camera in contract.cameras.values()]
    return "raw" if next(read_bag(bag, raw), None) else "compressed"


def source_topics(contract: Contract, transport: str) -> dict[str, str]:
    """Topics that observation_node subscribes to, with their types."""
    suffix, kind = ("", "Image") if transport == "raw" else ("/compressed", "CompressedImage")
    topics = {f"{camera.topic}{suffix}": f"sensor_msgs/msg/{kind}" for camera in contract.cameras.values()}
    return topics | contract.state_topics


def observe(bag: Path, contract: Contract, transport: str, dropped: Counter[str]) -> Iterator[Observation]:
    """The sets of a bag, as observation_node forms them. ``dropped`` counts, by reason, what did not become part of one."""
    assembler, check = ObservationAssembler(contract), CameraCheck(contract)
    for topic, _, message in read_bag(bag, source_topics(contract, transport)):
        try:
            feed(assembler, topic, message)
        except (ContractError, AttributeError) as error:  # the latter: of another type
            dropped[str(error)] += 1
        for observation in assembler.pop():
            faults = check.faults(observation)
            dropped.update(f"{camera} {reason}" for camera, (reason, _) in faults.items())
            if not faults:
                yield observation
    dropped.update(assembler.dropped)


def replay_offline(bag: Path, recording: Recorded, predictor: Any) -> Replayed:
    """Play a bag through the code of both nodes, without ROS.

    ``predictor``: a ``policy.predictor.Predictor``. It predicts where it did live, from the sets that it received live; if the
    recording has no chunks, from every set.
    """
    contract, outputs = recording.outputs.contract, recording.outputs
    sets: dict[int, SetDigests] = {}
    dropped: Counter[str] = Counter()

    def seen() -> Iterator[Observation]:
        for observation in observe(bag, contract, recording.transport, dropped):
            sets[observation.stamp] = digests(observation)
            if observation.stamp in outputs.sets or not outputs.sets:
                yield observation

    chunks: dict[int, ActionChunk] = {}
    window_stamps: dict[int, Window] = {}
    for window in windows(contract, seen(), outputs.chunks or None, whole=not outputs.chunks):
        stamp = window[-1].stamp
        try:
            chunks[stamp] = ActionChunk.from_actions(contract, stamp, predictor.predict([window])[0])
        except ContractError:
            dropped["chunk against the contract"] += 1  # not published live, either
            continue
        window_stamps[stamp] = tuple(o.stamp for o in window)
    return Replayed(sets, chunks, window_stamps, dropped)
