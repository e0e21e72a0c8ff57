"""Demonstrations -> bags, one an episode, looked at while they are recorded: a bad one is known at once, not at training.

Two threads: the executor's takes what has come, serialized, from the subscriptions' queues, twenty times a second, and looks at
stamps and rates; that of the episode compresses and writes, so that taking never waits. A message's log time is when it arrived.
"""

from __future__ import annotations

import bisect
import functools
import importlib
import itertools
import math
import queue
import re
import shutil
import statistics
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_srvs.srv import Trigger

from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.bags import CHUNK_TIME, GRIPPER_TARGET_TOPIC, TARGET_POSE_TOPIC, BagError, BagWriter
from onedp_ros.data.episodes import TARGET_MAX_AGE
from onedp_ros.data.timing import StreamTiming
from onedp_ros.nodes.diagnostics import Diagnostics, Report, worst
from onedp_ros.nodes.parameters import declare, declare_contract
from onedp_ros.nodes.polled import PolledSubscriber
from onedp_ros.nodes.process import main_of

POLL_PERIOD = 0.05  # s
CHECK_EVERY, COUNT_EVERY = 2, 10  # polls between looks at what came, and at who publishes
CAMERA_DEPTH, DEPTH = 100, 2000  # messages that wait in a queue: more than a second of them, for a thread that is held up
SILENCE = 0.3  # s without a message after which a topic counts as silent
LATE, EARLY = 0.5, 0.05  # s that a stamp may lie before and after the message's arrival
SLOW = 0.9  # share of the rate that the task needs below which a topic is too slow: clocks and schedulers are not exact
RECENT = 20  # stamps that the present rate is taken of
QUEUE_BYTES = 256 * 2**20  # waiting to be written; what would exceed that is lost and told

_Message = tuple[int, str, bytes]  # arrival (ns), topic, serialized message


def header_stamp(data: bytes) -> int:
    """Stamp (ns) of a serialized message (CDR) that begins with a header."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * NANOSECONDS + int(nanoseconds)


def next_episode(folder: Path) -> str:
    """``episode_000000``, or the number after the greatest in the folder, that of a recording that died among them."""
    found = (re.fullmatch(r"episode_(\d+)(\.partial)?", path.name) for path in folder.iterdir())
    return f"episode_{max((int(name[1]) for name in found if name), default=-1) + 1:06d}"


class Watch:
    """What comes on one topic, and what about it would spoil an episode.

    Args:
        hz: least rate that the task needs; 0: any.
        gap: longest time (s) between two stamps that it bears; infinite: any.
        optional: whether an episode may begin without it.
        needed: whether it is of the task and its messages begin with a header; the others are only counted.
    """

    def __init__(self, topic: str, hz: float = 0.0, gap: float = math.inf, optional: bool = True, needed: bool = True) -> None:
        self.topic, self.least, self.gap, self.optional, self.needed = topic, hz, gap, optional, needed
        self.heard = 0  # arrival of the newest message, ns
        self._recent: deque[int] = deque(maxlen=RECENT)
        self.begin(0)

    def begin(self, now: int) -> None:
        """An episode begins (ns); 0: it is over."""
        self._began = now
        self.timing = StreamTiming()
        self._problems: dict[str, str] = {}
        self._gaps, self._first_gap, self._longest_gap = 0, 0.0, 0.0

    def take(self, data: bytes, arrival: int) -> None:
        """A message of the episode, or of the time before it."""
        stamp = header_stamp(data) if self.needed else arrival
        last = self._recent[-1] if self._recent else stamp
        self.heard = arrival
        self._recent.append(stamp)
        if not self._began:
            return
        gap = (stamp - last) / NANOSECONDS
        if gap > self.gap and (self.timing.count or not self.optional):
            self._first_gap = self._first_gap if self._gaps else max(self._since(arrival) - gap, 0.0)
            self._gaps, self._longest_gap = self._gaps + 1, max(self._longest_gap, gap)
        self.timing.add(stamp)
        lag = (arrival - stamp) / NANOSECONDS  # 0 when it has no stamp
        if not -EARLY <= lag <= LATE:
            where = f"{lag:.2f} s before" if lag > 0 else f"{-lag:.2f} s after"
            self._problems["clock"] = f"was stamped {where} it came; synchronise the clocks (chrony)"

    def silent(self, now: int) -> bool:
        return now - max(self.heard, self._began) > SILENCE * NANOSECONDS

    def hz(self, now: int) -> float:
        """The present rate, by the median of the last intervals; 0 when silent for a second or more."""
        intervals = [b - a for a, b in itertools.pairwise(self._recent)]
        if not intervals or now - self.heard > NANOSECONDS or (median := statistics.median(intervals)) <= 0:
            return 0.0
        return NANOSECONDS / median

    def several(self, publishers: list[str]) -> None:
        """Who publishes, when that is more than one."""
        self._problems["publishers"] = f"has {len(publishers)} publishers: {', '.join(publishers)}; stop all but one"

    def problems(self, now: int, ended: bool = False) -> dict[str, str]:
        """What spoils the episode so far, by kind, or altogether when it has ``ended``."""
        if not self.needed:
            return {}
        found, absent = self._problems, self.optional and not self.timing.count
        silent = not absent and self.gap < math.inf and self.silent(now)
        if absent and ended:
            found["absent"] = "did not come at all"
        if not silent and self.timing.count >= RECENT and 0 < (hz := self.hz(now)) < SLOW * self.least:
            found["slow"] = f"came at {hz:.1f} Hz, the task needs {self.least:g}"
        if self._gaps:
            found["gaps"] = (
                f"had {self._gaps} gap{'s' if self._gaps > 1 else ''} longer than {self.gap:.3g} s, the longest "
                f"{self._longest_gap:.2f} s, the first {self._first_gap:.1f} s after the start"
            )
        if self.timing.out_of_order:
            found["order"] = f"had {self.timing.out_of_order} stamps not newer than the one before"
        if silent:  # as long as it lasts: when it was only late, nothing is missing
            found = {**found, "silent": f"stopped {self._since(self.heard):.1f} s after the start"}
        return {f"{self.topic} {kind}": f"{self.topic} {text}" for kind, text in found.items()}

    def summary(self) -> dict[str, Any]:
        """For the episode's metadata."""
        timing = self.timing
        return {
            "messages": timing.count,
            "hz": round(timing.hz, 2),
            "missing_frames": timing.missing_frames,
            "longest_gap_frames": timing.longest_gap_frames,
        }

    def _since(self, time_ns: int) -> float:
        return max(time_ns - self._began, 0) / NANOSECONDS


class Recording:
    """An episode on its way to disk: a bounded queue, and a thread that empties it into the bag."""

    def __init__(self, writer: BagWriter) -> None:
        self.writer = writer
        self.began = time.time_ns()
        self.messages = self.lost = 0
        self.failed = ""  # why it ended by itself
        self._given = self._taken = 0  # bytes; each written by one thread
        self._batch: list[_Message] = []
        self._batches: queue.SimpleQueue[list[_Message] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        return (time.time_ns() - self.began) / NANOSECONDS

    @property
    def waiting(self) -> int:
        """Bytes not written yet."""
        return self._given - self._taken

    def add(self, arrival: int, topic: str, data: bytes) -> None:
        """Take a message."""
        self._batch.append((arrival, topic, data))

    def pass_on(self, before: int) -> None:
        """Queue what came before a moment (ns), in the order of arrival. What came while the topics were polled waits: before it
        may belong what is not taken yet."""
        self._batch.sort(key=itemgetter(0))
        ready = self._batch[: bisect.bisect_left(self._batch, before, key=itemgetter(0))]
        del self._batch[: len(ready)]
        size = sum(len(data) for _, _, data in ready)
        if self.waiting + size > QUEUE_BYTES:
            self.lost += len(ready)
        elif ready:
            self._given += size
            self.messages += len(ready)
            self._batches.put(ready)

    def end(self) -> None:
        """Write what waits, and end the thread. The bag is still to be closed."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                try:
                    batch = self._batches.get(timeout=CHUNK_TIME)
                except queue.Empty:
                    self.writer.flush()
                    continue
                if batch is None:
                    return
                for arrival, topic, data in batch:
                    self.writer.write(topic, arrival, data)
                    self._taken += len(data)
        except Exception as error:  # ends the recording, not the node
            self.writer.abort()
            self.failed = str(error) or repr(error)


class RecorderNode(Node):
    """Records the contract's topics. Services (std_srvs/Trigger): ``~/start``; ``~/stop``, the episode was a success;
    ``~/fail``, it was not, and is kept; ``~/discard``. An episode that is interrupted otherwise is kept, its outcome unknown."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("recorder_node", **kwargs)
        self.contract = declare_contract(self)
        self._robot = declare(self, "robot", "franka", "Name of the robot, noted with the episodes")
        self._operator = declare(self, "operator", "", "Name of the operator, noted with the episodes")
        out = declare(self, "out", "", "Folder of bags; default: out/<task>/bags")
        transport = declare(self, "image_transport", "raw", "What of the cameras is recorded: raw, or compressed, as it came")
        extra = declare(self, "extra_topics", [""], "Further topics to record, such as action/chunk")
        self._least = declare(self, "min_free_gb", 5.0, "Free disk below which no recording starts, GB", 0.0, 1e6)
        if transport not in ("raw", "compressed"):
            raise ValueError(f"image_transport is '{transport}', expected raw or compressed")
        self._out = Path(out or Path("out") / self.contract.task / "bags")
        self._out.mkdir(parents=True, exist_ok=True)

        self._subscribers: dict[str, PolledSubscriber] = {}
        self._watches: dict[str, Watch] = {}
        self._types: dict[str, str] = {}
        rate, gap = self.contract.control_hz, 1.5 * self.contract.dt  # longer gaps leave a step without its observation
        for camera in self.contract.cameras.values():
            if transport == "raw":
                self._subscribe(Image, Watch(camera.topic, rate, gap, optional=False), CAMERA_DEPTH)
            else:
                self._subscribe(CompressedImage, Watch(f"{camera.topic}/compressed", rate, gap, optional=False), CAMERA_DEPTH)
        self._cameras = list(self._watches)
        self._subscribe(JointState, Watch(self.contract.joint_states_topic, rate, gap, optional=False), DEPTH)
        self._subscribe(PoseStamped, Watch(self.contract.pose_topic, rate, gap, optional=False), DEPTH)
        # The operator may take some time; an opening that is given once lasts.
        self._subscribe(PoseStamped, Watch(TARGET_POSE_TOPIC, rate, TARGET_MAX_AGE), DEPTH)
        self._subscribe(JointState, Watch(GRIPPER_TARGET_TOPIC), DEPTH)
        self._extra = {topic: "" for topic in extra if topic and topic not in self._watches}  # why one is not there

        self._recording: Recording | None = None
        self._failed = ""
        self._known: set[str] = set()
        self._polls = 0
        for name in ("start", "stop", "fail", "discard"):
            self.create_service(Trigger, f"~/{name}", functools.partial(self._serve, getattr(self, f"_{name}")))
        self.create_timer(POLL_PERIOD, self._on_timer)
        self._diagnostics = Diagnostics(self, self._report)
        self.get_logger().info(f"records to {self._out.absolute()}")

    def _subscribe(self, kind: Any, watch: Watch, depth: int) -> None:
        self._types[watch.topic] = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._watches[watch.topic] = watch
        callback = functools.partial(self._take, watch)
        self._subscribers[watch.topic] = PolledSubscriber(self, kind, watch.topic, depth, callback, raw=True)

    def destroy_node(self) -> None:
        if self._recording is not None:
            _, text = self._finish({"interrupted": True})
            print(f"recorder_node: interrupted, the outcome is not known: {text}", file=sys.stderr)
        super().destroy_node()

    # what comes

    def _on_timer(self) -> None:
        now = time.time_ns()
        self._poll()
        if self._recording is not None:
            self._recording.pass_on(now)
        self._polls += 1
        if self._polls % COUNT_EVERY == 0:
            self._count_publishers()
            self._find_extra()
        if self._polls % CHECK_EVERY == 0:
            self._check()

    def _poll(self) -> None:
        """Take what has come."""
        for subscriber in self._subscribers.values():
            subscriber.poll()

    def _take(self, watch: Watch, data: bytes, arrival: int) -> None:
        arrival = arrival or time.time_ns()  # not every middleware tells
        watch.take(data, arrival)
        if self._recording is not None:
            self._recording.add(arrival, watch.topic, data)

    def _check(self) -> None:
        """Tell new problems at once."""
        if self._recording is None:
            return
        if self._recording.failed:
            self._failed = self._end().failed
            self.get_logger().error(self._failed)
            self._diagnostics.publish()
            return
        problems = self._problems()
        for kind in problems.keys() - self._known:
            self.get_logger().error(problems[kind])
        if problems.keys() - self._known:
            self._diagnostics.publish()
        self._known |= problems.keys()

    def _problems(self, ended: bool = False) -> dict[str, str]:
        assert self._recording is not None
        now = time.time_ns()
        found: dict[str, str] = {}
        for watch in self._watches.values():
            found |= watch.problems(now, ended)
        if lost := self._recording.lost:
            found["lost"] = f"{lost} messages were lost: the disk or the processor is too slow"
        return found

    def _count_publishers(self) -> None:
        if self._recording is None:
            return
        for watch in self._watches.values():
            topic = self.resolve_topic_name(watch.topic)
            if watch.needed and self.count_publishers(topic) > 1:
                watch.several([f"{p.node_namespace.rstrip('/')}/{p.node_name}" for p in self.get_publishers_info_by_topic(topic)])

    def _find_extra(self) -> None:
        """Subscribe to those of the extra topics that have appeared."""
        absent = [topic for topic in self._extra if topic not in self._watches]
        if not absent or self._recording is not None:
            return
        types = dict(self.get_topic_names_and_types())
        for topic in absent:
            found = types.get(self.resolve_topic_name(topic), [])
            if len(found) != 1:
                self._extra[topic] = f"has the types {found}" if found else "is not published"
                continue
            package, _, name = found[0].partition("/msg/")
            try:
                kind = getattr(importlib.import_module(f"{package}.msg"), name)
            except (ImportError, AttributeError) as error:
                self._extra[topic] = f"is {found[0]}, whose package is not installed here ({error})"
                continue
            self._subscribe(kind, Watch(topic, needed=False), DEPTH)

    # what is asked for

    def _serve(self, act: Any, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = act()
        if response.success:
            self.get_logger().info(response.message)
        else:
            self.get_logger().error(response.message)
        self._diagnostics.publish()
        return response

    def _start(self) -> tuple[bool, str]:
        if self._recording is not None:
            return False, f"{self._recording.writer.path.name} is being recorded; stop, fail or discard it first"
        self._poll()
        self._find_extra()
        if reasons := self._unready():
            return False, f"not started: {'; '.join(reasons)}"
        path = self._out / next_episode(self._out)
        try:
            writer = BagWriter(path, self.contract, self._types, {"operator": self._operator, "robot": self._robot})
        except BagError as error:
            return False, f"not started: {error}"
        self._poll()  # away with what came before
        self._recording, self._failed, self._known = Recording(writer), "", set()
        for watch in self._watches.values():
            watch.begin(self._recording.began)
        return True, f"recording {path.name}"

    def _unready(self) -> list[str]:
        """Why no recording can start."""
        now = time.time_ns()
        silent = [w.topic for w in self._watches.values() if not w.optional and w.silent(now)]
        reasons = [
            f"{topic} is silent; check that its driver runs and publishes under this name (ros2 topic hz)" for topic in silent
        ]
        reasons += [f"{topic} of extra_topics {why}" for topic, why in self._extra.items() if topic not in self._watches]
        if not self._out.is_dir():
            reasons.append(f"the folder {self._out.absolute()} is gone; make it, or mount its disk")
        elif (free := self._free()) < self._least * 1e9:
            reasons.append(
                f"the disk of {self._out.absolute()} has {free / 1e9:.2f} GB left, less than min_free_gb = {self._least:g}"
            )
        return reasons

    def _stop(self) -> tuple[bool, str]:
        return self._finish({"success": True})

    def _fail(self) -> tuple[bool, str]:
        return self._finish({"success": False})

    def _discard(self) -> tuple[bool, str]:
        if self._recording is None:
            return self._nothing()
        recording = self._end()
        recording.writer.discard()
        return True, f"discarded {recording.writer.path.name}"

    def _end(self) -> Recording:
        """End the recording, whose bag is still open, and what is counted for it."""
        assert self._recording is not None
        recording, self._recording = self._recording, None
        for watch in self._watches.values():
            watch.begin(0)
        recording.end()
        return recording

    def _nothing(self) -> tuple[bool, str]:
        return False, self._failed or "nothing is being recorded; start first"

    def _finish(self, outcome: dict[str, Any]) -> tuple[bool, str]:
        """Close the episode. Whether that could be done, and what to tell."""
        if self._recording is None:
            return self._nothing()
        now = time.time_ns()
        with suppress(rclpy_implementation.RCLError):  # the context may be down
            self._poll()
        self._recording.pass_on(now)
        problems = list(self._problems(ended=True).values())
        streams = {topic: watch.summary() for topic, watch in self._watches.items()}
        recording = self._end()
        try:
            if recording.failed:
                raise BagError(recording.failed)
            path = recording.writer.close(**outcome, problems=problems, streams=streams)
        except BagError as error:
            self._failed = str(error)
            return False, self._failed
        size = recording.writer.size / 1e6
        seconds = (now - recording.began) / NANOSECONDS
        text = f"{path.name}: {seconds:.1f} s, {recording.messages} messages, {size:.0f} MB"
        return True, f"{text}; {'; '.join(problems) or 'no problems'}"

    # what is told

    def _free(self) -> int:
        """Bytes; 0 when the folder is gone."""
        try:
            return shutil.disk_usage(self._out).free
        except OSError:
            return 0

    def _report(self) -> Report:
        now, free, recording = time.time_ns(), self._free(), self._recording
        rates = {f"hz.{topic}": round(watch.hz(now), 1) for topic, watch in self._watches.items()}
        values: dict[str, Any] = {
            "state": "idle" if recording is None else "recording",
            "disk_free_GB": round(free / 1e9, 2),
            **rates,
        }
        if recording is None:
            if self._failed:
                return DiagnosticStatus.ERROR, self._failed, values
            reasons = self._unready()
            level, text = worst((DiagnosticStatus.WARN, f"cannot start: {'; '.join(reasons)}") if reasons else None, fine="idle")
            return level, text, values
        problems = self._problems()
        missing = {topic: watch.timing.missing_frames for topic, watch in self._watches.items()}
        per_second = recording.writer.size / max(recording.seconds, 1e-3)
        seconds_left = free / max(per_second, 1.0)
        values |= {
            "episode": recording.writer.path.name,
            "seconds": round(recording.seconds, 1),
            "messages": recording.messages,
            "bytes": recording.writer.size,
            "MB_per_s": round(per_second / 1e6, 1),
            "disk_left_s": round(seconds_left),
            "waiting_MB": round(recording.waiting / 1e6, 1),
            "lost": recording.lost,
            **{f"missing.{topic}": count for topic, count in missing.items()},
            "problems": "; ".join(problems.values()),
        }
        lacking = [f"{topic} lacks {missing[topic]} frames" for topic in self._cameras if missing[topic]]
        level, text = worst(
            (DiagnosticStatus.ERROR, "; ".join(problems.values())) if problems else None,
            (DiagnosticStatus.WARN, "; ".join(lacking)) if lacking else None,
            (DiagnosticStatus.WARN, f"the disk has {free / 1e9:.1f} GB left, {seconds_left:.0f} s at this rate")
            if free < self._least * 1e9
            else None,
            fine=f"recording {recording.writer.path.name}",
        )
        return level, text, values


def main(args: list[str] | None = None) -> int:
    return main_of(RecorderNode, args)


if __name__ == "__main__":
    sys.exit(main())
