"""``onedp replay``: what a policy sees in a recording, by the live code, and whether it is what it saw, and said, live.

Offline, the recording's messages go in log order, which is that of their arrival, through the code of observation_node and of
policy_node (``data.messages.feed``, ``ObservationAssembler``, ``ObservationHistory``, ``Predictor``). With ``--graph`` they go
through those nodes themselves: ``player_node`` publishes them, byte for byte, under ``/clock``.

A recording with ``observation/*`` and ``action/chunk`` (``extra_topics`` of recorder_node) is one of a policy's run, and is
compared with itself: every set byte by byte, every chunk number by number. With ``/diagnostics`` it tells which policy that was.
Any other is a demonstration: predictions from every set are compared with what was commanded.

Which sets there are depends on the order in which the frames of two cameras arrive, which may be another at the recorder where they
arrive together. What the set of a stamp holds does not depend on it where the contract's slop is shorter than a camera's period.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import random
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
    ObservationHistory,
    decode_action,
)
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.data.bags import GRIPPER_TARGET_TOPIC, TARGET_POSE_TOPIC, BagError, read_bag, read_metadata
from onedp_ros.data.episodes import Targets
from onedp_ros.data.messages import chunk_from_message, feed, observation_from_messages, stamp_ns
from onedp_ros.geometry import rotation_angle
from onedp_ros.graph import NodeProcess, graph_environment, released, task_graph
from onedp_ros.resources import task_contract
from onedp_ros.runner import Supervisor

CHUNK_TOPIC, STATE_TOPIC, DIAGNOSTICS_TOPIC = "action/chunk", "observation/state", "diagnostics"
MOST = 0.9  # of the recorded sets must be made again; live, frames may have come in another order
TOLD = 20  # sets that differ, of which it is told how
QUANTITIES = ("position_mm", "rotation_deg", "gripper_mm")
POLICY_FACTS = ("model", "method", "engine", "threads", "seed")  # what policy_node says of itself in /diagnostics

Set = dict[str, bytes]  # by camera, and "state", the digest of its bytes
Window = tuple[int, ...]  # stamps of a prediction's observations, oldest first, ns


class Outputs:
    """What observation_node and policy_node published: sets by their digests, chunks, and what the policy said of itself."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.sets: dict[int, Set] = {}
        self.chunks: dict[int, ActionChunk] = {}
        self.policy: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._images = {f"observation/{name}/image": name for name in contract.cameras}

    @property
    def topics(self) -> list[str]:
        return [*self._images, STATE_TOPIC, CHUNK_TOPIC, DIAGNOSTICS_TOPIC]

    def add(self, topic: str, message: Any) -> None:
        """Take a message of one of the :attr:`topics`. ContractError for one that is none of this contract's."""
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
                for stamp in [s for s in self._parts if s <= observation.stamp]:  # of those before a part was lost
                    del self._parts[stamp]


@dataclasses.dataclass(frozen=True)
class Recording:
    """Of a bag: what the nodes had published, if anything, and what was commanded."""

    outputs: Outputs
    targets: Targets
    transport: str


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Sets and chunks of a replay, the window of each chunk, and counts of what went wrong."""

    sets: Mapping[int, Set]
    chunks: Mapping[int, ActionChunk]
    windows: Mapping[int, Window]
    counts: Mapping[str, int]


def digests(observation: Observation) -> Set:
    """A set in few bytes; equal for equal bytes."""
    parts = {**observation.images, "state": observation.state}
    return {name: hashlib.blake2b(np.ascontiguousarray(part).tobytes(), digest_size=16).digest() for name, part in parts.items()}


def windows(
    contract: Contract, observations: Iterable[Observation], predicted: Collection[int] | None, whole: bool
) -> Iterator[list[Observation]]:
    """The windows of a policy that predicted from the observations of these stamps (None: from all), as in policy_node.

    Unless the ``whole`` history is there, windows that may hold an observation from before the first prediction are left out.
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
    """:func:`windows` where only the observations' stamps are known; by the newest stamp."""
    bare = (Observation(stamp, {}, {}, np.zeros(0)) for stamp in stamps)
    return {w[-1].stamp: tuple(o.stamp for o in w) for w in windows(contract, bare, predicted, whole)}


def contract_of(bag: Path, task: str) -> Contract:
    """The contract that a bag was recorded under; that of ``task`` when its recorder noted none."""
    noted = read_metadata(bag).get("contract")
    return task_contract(task) if noted is None else Contract.from_dict(noted)


def read_recording(bag: Path, contract: Contract, transport: str | None = None) -> Recording:
    """What a bag holds besides cameras and robot. Of cameras recorded both raw and compressed, ``transport`` says which to take.

    Raises:
        BagError: the bag cannot be read.
        ContractError: it holds what the contract forbids.
    """
    outputs, targets = Outputs(contract), Targets()
    for topic, stamp, message in read_bag(bag, [*outputs.topics, TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC]):
        if topic in (TARGET_POSE_TOPIC, GRIPPER_TARGET_TOPIC):
            targets.add(topic, stamp, message, contract)
        else:
            outputs.add(topic, message)
    return Recording(outputs, targets, transport or _transport(bag, contract))


def _transport(bag: Path, contract: Contract) -> str:
    """``raw`` when the bag has a camera's raw images, else ``compressed``."""
    raw = [camera.topic for camera in contract.cameras.values()]
    return "raw" if next(read_bag(bag, raw), None) else "compressed"


def source_topics(contract: Contract, transport: str) -> dict[str, str]:
    """Topics that observation_node listens to, with their types."""
    suffix, kind = ("", "Image") if transport == "raw" else ("/compressed", "CompressedImage")
    topics = {f"{camera.topic}{suffix}": f"sensor_msgs/msg/{kind}" for camera in contract.cameras.values()}
    topics |= {contract.joint_states_topic: "sensor_msgs/msg/JointState", contract.pose_topic: "geometry_msgs/msg/PoseStamped"}
    return topics


def observe(bag: Path, contract: Contract, transport: str, dropped: Counter[str]) -> Iterator[Observation]:
    """The sets of a bag, as observation_node makes them. ``dropped`` counts, by reason, what did not become part of one."""
    assembler = ObservationAssembler(contract)
    for topic, _, message in read_bag(bag, source_topics(contract, transport)):
        try:
            feed(assembler, topic, message)
            yield from assembler.pop()
        except ContractError as error:
            dropped[str(error)] += 1
    dropped.update(assembler.dropped)


def replay_offline(bag: Path, recording: Recording, predictor: Any) -> Replayed:
    """Play a bag through the code of both nodes, without ROS.

    ``predictor`` as of ``policy.inference``. The policy predicts where it did live, from those sets that it got live; in a
    recording without chunks, from every set.
    """
    contract, outputs = recording.outputs.contract, recording.outputs
    sets: dict[int, Set] = {}
    dropped: Counter[str] = Counter()

    def seen() -> Iterator[Observation]:
        for observation in observe(bag, contract, recording.transport, dropped):
            sets[observation.stamp] = digests(observation)
            if observation.stamp in outputs.sets or not outputs.sets:
                yield observation

    chunks: dict[int, ActionChunk] = {}
    of: dict[int, Window] = {}
    for window in windows(contract, seen(), outputs.chunks or None, whole=not outputs.chunks):
        stamp = window[-1].stamp
        try:
            chunks[stamp] = ActionChunk.from_actions(contract, stamp, predictor.predict([window])[0])
        except ContractError:
            dropped["chunk against the contract"] += 1  # not published live, either
            continue
        of[stamp] = tuple(o.stamp for o in window)
    return Replayed(sets, chunks, of, dropped)


def replay_graph(task: str, *, image_transport: str = "raw", with_action: bool = False, **policy: Any) -> list[NodeProcess]:
    """The nodes that take a recording's messages, in the time of ``/clock``; ``policy`` as of ``graph.task_graph``.

    ``with_action``: action_node too, disabled.
    """
    _, observation, *others = task_graph(task, enabled=False, **policy)
    # A recording's clock lags behind its messages by the distance of two of its ticks.
    parameters = {**observation.parameters, "image_transport": image_transport, "future_tolerance": 1.0}
    nodes = [dataclasses.replace(observation, parameters=parameters), *(others if with_action else others[:1])]
    return [dataclasses.replace(n, parameters={**n.parameters, "use_sim_time": True}) for n in nodes]


def replay_in_graph(
    bag: Path, recording: Recording, *, real_time: bool = False, logs: Path | None = None, **policy: Any
) -> Replayed:
    """Play a bag through both nodes, as processes in a ROS domain of their own: no arm must follow a recording.

    In the time of the recording, which waits for the chunk of each set, or with ``real_time`` as it was. ``policy`` as of
    ``graph.task_graph``: method, engine, model, seed, threads.

    Raises:
        NodeDiedError: a node ended.
        RuntimeError: no chunk came.
        BagError: the bag was not finished, or lacks a topic.
    """
    contract, domain = recording.outputs.contract, free_domain()
    processes = replay_graph(contract.task, image_transport=recording.transport, **policy)
    if not real_time:  # it waits for the chunk of every set, however late that set came live
        processes[1] = dataclasses.replace(processes[1], parameters={**processes[1].parameters, "max_observation_age": 10.0})
    os.environ.update({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **graph_environment(os.environ)})
    outputs = Outputs(contract)
    with Supervisor(processes, logs, {"ROS_DOMAIN_ID": str(domain)}) as supervisor:
        import rclpy

        from onedp_ros.nodes.player_node import PlayerNode

        given = {"task": contract.task, "bag": str(bag), "image_transport": recording.transport, "real_time": real_time}
        overrides = [rclpy.parameter.Parameter(name, value=value) for name, value in given.items()]
        context = rclpy.Context()
        rclpy.init(args=[], context=context, domain_id=domain)
        player = PlayerNode(outputs.add, supervisor.check, context=context, parameter_overrides=overrides)
        try:
            player.connect()
            player.play()
        finally:
            player.destroy_node()
            rclpy.shutdown(context=context)
    # In real time the policy may pass over the first sets, of which it then keeps none.
    of = stamps_of_windows(contract, sorted(outputs.sets), outputs.chunks, whole=not real_time)
    return Replayed(outputs.sets, outputs.chunks, of, {"sets without a chunk in time": player.late})


def free_domain() -> int:
    """A ROS domain that nobody on this machine is in."""
    for domain in random.SystemRandom().sample(range(1, 100), 99):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind(("", 7400 + 250 * domain + 10))  # the port of a domain's first participant
            return domain
    raise RuntimeError("all ROS domains from 1 to 99 are in use on this machine")


def differences(chunk: ActionChunk, other: ActionChunk) -> NDArray[np.float64]:
    """Of each action: position (mm), rotation (deg), gripper (mm). (horizon, 3)."""
    position = np.linalg.norm(chunk.positions - other.positions, axis=-1)
    rotation = [rotation_angle(a, b) for a, b in zip(chunk.quaternions, other.quaternions, strict=True)]
    return np.stack([1e3 * position, np.rad2deg(rotation), 1e3 * np.abs(chunk.openings - other.openings)], axis=-1)


def from_commands(contract: Contract, chunk: ActionChunk, targets: Targets) -> NDArray[np.float64]:
    """:func:`differences` of the actions to execute from what was commanded at their times. (up to n_action_steps, 3)."""
    first = contract.n_obs_steps - 1
    which = [i for i in range(first, first + contract.n_action_steps) if targets.hold(int(chunk.stamps[i]))]
    if not which:
        return np.zeros((0, 3))
    stamps = chunk.stamps[which]
    commanded = ActionChunk(chunk.stamp, stamps, *decode_action(np.stack([targets.action(int(s)) for s in stamps])))
    predicted = ActionChunk(chunk.stamp, stamps, chunk.positions[which], chunk.quaternions[which], chunk.openings[which])
    return differences(predicted, commanded)


def equal(chunk: ActionChunk, other: ActionChunk) -> bool:
    """Whether every number of two chunks is the same."""
    names = ("stamps", "positions", "quaternions", "openings")
    return all(np.array_equal(getattr(chunk, name), getattr(other, name)) for name in names)


def compare_sets(recorded: Mapping[int, Set], replayed: Mapping[int, Set]) -> tuple[dict[str, Any], set[int]]:
    """How many of the recorded sets the replay made with the same bytes, in the time that both cover.

    Returns, too, the stamps of those that say nothing about the code, since frames came in another order live, or were lost:
    missing here, or of the same frames, paired otherwise.
    """
    if not recorded or not replayed:
        none = dict.fromkeys(("compared", "equal", "different", "paired_otherwise", "missing", "only_replayed"), 0)
        return {"recorded": len(recorded), **none}, set()
    begin, end = max(min(recorded), min(replayed)), min(max(recorded), max(replayed))
    inside = sorted(s for s in recorded if begin <= s <= end)
    known = {(name, digest) for parts in replayed.values() for name, digest in parts.items() if name != "state"}
    wrong = {s: {n: d for n, d in recorded[s].items() if replayed[s][n] != d} for s in inside if s in replayed}
    otherwise = {s for s, parts in wrong.items() if parts and parts.items() <= known}
    missing = {s for s in inside if s not in replayed}
    different = {s: list(parts) for s, parts in wrong.items() if parts and s not in otherwise}
    return {
        "recorded": len(recorded),
        "compared": len(inside),
        "equal": sum(not parts for parts in wrong.values()),
        "different": len(different),
        "paired_otherwise": len(otherwise),
        "missing": len(missing),
        "only_replayed": sum(begin <= s <= end for s in replayed.keys() - recorded.keys()),
        "which": [{"stamp": s, "different": names} for s, names in different.items()][:TOLD],
    }, otherwise | missing


def compare_chunks(
    recording: Recording, replayed: Replayed, apart: Collection[int]
) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """Recorded chunks against those that the replay made of the same windows, without the sets ``apart``; differences by stamp."""
    recorded, contract = recording.outputs.chunks, recording.outputs.contract
    begin = min(replayed.sets, default=0)
    stamps = [s for s in sorted(recording.outputs.sets or replayed.sets) if s >= begin]
    live = stamps_of_windows(contract, stamps, recorded, whole=False)
    same = [s for s, window in live.items() if replayed.windows.get(s) == window and not set(window) & set(apart)]
    found = {s: differences(replayed.chunks[s], recorded[s]) for s in same}
    return {
        "against": "recorded chunks",
        "recorded": len(recorded),
        "history_before_recording": len(recorded) - len(live),
        "other_window": len(live) - len(same),
        "compared": len(same),
        "equal": sum(equal(replayed.chunks[s], recorded[s]) for s in same),
        **statistics(found),
    }, found


def compare_commands(recording: Recording, replayed: Replayed) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """Chunks against what was commanded, and the differences by stamp."""
    contract = recording.outputs.contract
    found = {s: from_commands(contract, chunk, recording.targets) for s, chunk in sorted(replayed.chunks.items())}
    found = {s: rows for s, rows in found.items() if len(rows)}
    summary = {"against": "commands", "predictions": len(replayed.chunks), "compared": len(found)}
    return {**summary, **statistics(found)}, found


def statistics(found: Mapping[int, NDArray[np.float64]]) -> dict[str, Any]:
    """Percentiles of each quantity over all actions, and the stamp of the chunk with the greatest difference in position."""
    if not found:
        return {}
    rows = np.concatenate(list(found.values()))
    p50, p95 = np.percentile(rows, [50, 95], axis=0)
    values = zip(QUANTITIES, p50.tolist(), p95.tolist(), rows.max(axis=0).tolist(), strict=True)
    worst = max(found, key=lambda s: float(found[s][:, 0].max()))
    return {**{name: {"p50": a, "p95": b, "max": c} for name, a, b, c in values}, "worst_stamp": worst}


def compare(
    recording: Recording, replayed: Replayed, reference: Mapping[int, Set]
) -> tuple[dict[str, Any], dict[int, NDArray[np.float64]]]:
    """The whole report, sets against those of ``reference``, and the differences of actions by stamp.

    Raises:
        BagError: the recording has neither chunks nor commands.
    """
    sets, apart = compare_sets(reference, replayed.sets)
    if recording.outputs.chunks:
        actions, found = compare_chunks(recording, replayed, apart)
    elif recording.targets.pose_stamps:
        actions, found = compare_commands(recording, replayed)
    else:
        raise BagError(
            f"the recording has neither {CHUNK_TOPIC} nor {TARGET_POSE_TOPIC} and {GRIPPER_TARGET_TOPIC}: there is nothing to "
            f"compare actions with; record them, too"
        )
    counts = {name: count for name, count in replayed.counts.items() if count}
    return {"sets": len(replayed.sets), "observations": sets, "actions": actions, "counts": counts}, found


def table(report: Mapping[str, Any]) -> str:
    """The report as lines to print."""
    sets, actions = report["observations"], report["actions"]
    rows = {"policy": "{method} of {model}, {engine}, seed {seed}".format(**report["policy"])}
    if not sets["recorded"]:
        rows["observations"] = f"{report['sets']}; the recording has none to compare with"
    elif not sets["compared"]:
        rows["observations"] = f"{report['sets']} made again, of other times than the {sets['recorded']} recorded"
    else:
        rows["observations"] = (
            f"{sets['equal']} of {sets['compared']} equal byte by byte, {sets['different']} differ; frames in another order: "
            f"{sets['paired_otherwise']} paired otherwise, {sets['missing']} missing, {sets['only_replayed']} only here"
        )
        if sets["which"]:
            rows["differ"] = "; ".join(f"{w['stamp']}: {', '.join(w['different'])}" for w in sets["which"][:4])
    if "recorded" in actions:
        rows["chunks"] = (
            f"{actions['equal']} of {actions['compared']} equal, of {actions['recorded']} recorded; history before the recording: "
            f"{actions['history_before_recording']}, another window: {actions['other_window']}"
        )
    else:
        rows["predictions"] = f"{actions['compared']} of {actions['predictions']} compared with the commands"
    for name in QUANTITIES:
        if name in actions:
            rows[name.replace("_", ", ")] = "p50 {p50:.4g}  p95 {p95:.4g}  max {max:.4g}".format(**actions[name])
    rows |= {f"{count} x": name for name, count in report["counts"].items()}
    return "\n".join(f"{name:15} {value}" for name, value in rows.items())


def plot(
    recording: Recording, replayed: Replayed, found: Mapping[int, NDArray[np.float64]], report: Mapping[str, Any], path: Path
) -> None:
    """The action for now of each chunk over time, replayed and recorded, and how far chunks differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    now = recording.outputs.contract.n_obs_steps - 1
    begin = min(replayed.chunks, default=0)

    def seconds(stamps: Iterable[int]) -> NDArray[np.float64]:
        return (np.array(list(stamps), dtype=np.int64) - begin) / NANOSECONDS

    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    lines = {"replayed": (replayed.chunks, "-")}
    if recording.outputs.chunks:
        lines["recorded"] = (recording.outputs.chunks, "--")
    for name, (chunks, style) in lines.items():
        ordered = [chunks[s] for s in sorted(chunks)]
        times = seconds(c.stamp for c in ordered)
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            top.plot(
                times, [c.positions[now, axis] for c in ordered], style, color=colour, linewidth=1, label=f"{'xyz'[axis]} {name}"
            )
        middle.plot(times, [1e3 * c.openings[now] for c in ordered], style, color="tab:purple", linewidth=1, label=name)
    if not recording.outputs.chunks:
        targets = recording.targets
        for axis, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
            values = [p[axis] for p, _ in targets.poses]
            top.plot(seconds(targets.pose_stamps), values, "--", color=colour, linewidth=1, label=f"{'xyz'[axis]} commanded")
        openings = [1e3 * o for o in targets.openings]
        middle.step(
            seconds(targets.opening_stamps), openings, "--", where="post", color="tab:orange", linewidth=1, label="commanded"
        )
    for column, (name, colour) in enumerate(zip(QUANTITIES, ("tab:blue", "tab:orange", "tab:purple"), strict=True)):
        values = [rows[:, column].max() for rows in found.values()]
        bottom.plot(seconds(found), values, ".", color=colour, markersize=3, label=name.replace("_", ", "))
    top.set(
        ylabel="position (m)", title="{method} on {engine}, ".format(**report["policy"]) + f"against {report['actions']['against']}"
    )
    middle.set(ylabel="opening (mm)")
    bottom.set(ylabel="greatest difference in a chunk", xlabel="time (s)")
    for axes in (top, middle, bottom):
        axes.legend(fontsize=8, loc="upper right", ncol=2)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def choose_policy(args: argparse.Namespace, noted: Mapping[str, str], task: str) -> dict[str, Any]:
    """Model, method, engine, threads and seed: as given, else as policy_node noted them, else the released policy.

    Raises:
        ValueError: what was noted is not here.
    """
    if args.policy is None and noted:
        model, method = Path(noted["model"]), args.method or noted["method"]
        if not model.exists():
            raise ValueError(f"the recording was made with {model}, which is not here; give it, or another, as --policy")
    elif args.policy is None:
        method = args.method or "onedp_s"
        model = released(task, method)
    else:
        model, method = args.policy, args.method
    if method is None:
        method = json.loads((model / "config.json").read_text(encoding="utf-8"))["method"]
    return {
        "model": model,
        "method": method,
        "engine": args.engine or noted.get("engine", "auto"),
        "threads": int(noted.get("threads", 0)),
        "seed": int(noted.get("seed", 0)) if args.seed is None else args.seed,
    }


def replay(bag: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What ``onedp replay`` does with a bag. Returns the report."""
    contract = contract_of(bag, args.task)
    recording = read_recording(bag, contract, args.image_transport)
    policy = choose_policy(args, recording.outputs.policy, contract.task)
    reference = recording.outputs.sets
    if args.graph:
        logs = args.out / "logs" if args.out else None
        replayed = replay_in_graph(bag, recording, real_time=args.real_time, logs=logs, **policy)
        reference = reference or {o.stamp: digests(o) for o in observe(bag, contract, recording.transport, Counter())}
    else:
        from onedp_ros.policy.inference import load_predictor

        options = {key: policy[key] for key in ("method", "engine", "threads", "seed")}
        predictor = load_predictor(policy["model"], contract=contract, **options)
        policy["engine"] = predictor.engine
        replayed = replay_offline(bag, recording, predictor)
    report, found = compare(recording, replayed, reference)
    report = {"bag": str(bag), "graph": args.graph, "policy": {**policy, "model": str(policy["model"])}, **report}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        plot(recording, replayed, found, report, args.out / "replay.png")
    for path in filter(None, [args.json, args.out and args.out / "replay.json"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a set holds other bytes than the recorded one, or when hardly any set is the recorded one."""
    parser = argparse.ArgumentParser(prog="onedp replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--policy", type=Path, help="bundle (default: the recorded run's, else the released one of the method)")
    parser.add_argument(
        "--method", help="onedp_s, onedp_d, dp_ddpm100 or dp_ddimN (default: the recorded run's, else the bundle's)"
    )
    parser.add_argument("--engine", help="auto, torch, cuda, openvino or openvino_bf16 (default: the recorded run's, else auto)")
    parser.add_argument("--seed", type=int, help="of the policy's noise (default: the recorded run's, else 0)")
    parser.add_argument("--graph", action="store_true", help="through the real nodes, in the recording's time")
    parser.add_argument("--real-time", action="store_true", help="with --graph: as fast as it was")
    parser.add_argument(
        "--image-transport", choices=("raw", "compressed"), help="which of a camera's topics (default: raw if recorded)"
    )
    parser.add_argument("--task", default="pnp_milk", help="contract of a bag whose recorder noted none (default pnp_milk)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--out", type=Path, help="folder for the report, a picture, and the nodes' logs")
    args = parser.parse_args(argv)
    if args.real_time and not args.graph:
        parser.error("--real-time is a way to play to the nodes; give --graph, too")
    report = replay(args.bag, args)
    print(table(report))
    seen = report["observations"]
    return 1 if seen["different"] or (seen["recorded"] and seen["equal"] < max(1, MOST * seen["compared"])) else 0


if __name__ == "__main__":
    raise SystemExit(main())
