"""Demonstrations -> bags, one per episode, checked during recording: a bad one is noticed at once, not in training.

Two threads: the executor's polls serialized messages from the subscriptions' queues at 20 Hz and checks stamps and rates; the
episode's compresses and writes, so that polling never blocks. A message's log time is its arrival.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from std_srvs.srv import Trigger

from onedp_ros import clock
from onedp_ros.clock import REQUEST_DOUBT, PauseWatch
from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.bags.reader import BagError
from onedp_ros.data.bags.writer import BagWriter
from onedp_ros.data.recording import Recording, TopicWatch, next_episode
from onedp_ros.data.targets import TARGET_MAX_AGE
from onedp_ros.messages.encode import MESSAGES
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, worst
from onedp_ros.nodes.lib.parameters import declare, declare_cameras, declare_contract
from onedp_ros.nodes.lib.polled import PolledSubscriber
from onedp_ros.nodes.lib.process import run_node

POLL_PERIOD = 0.05  # s
CHECK_EVERY, COUNT_EVERY = 2, 10  # polls between checks of the messages, and of the publishers
PAUSE = 0.5  # s: a longer suspension of this process is a problem of the episode
LONGEST_PAUSE = 3.0  # s: after a longer one a request to start may predate it
CAMERA_DEPTH, DEPTH = 100, 2000  # messages in a queue: more than a second's, in case the thread is delayed


class RecorderNode(Node):
    """Records the contract's topics. Services (std_srvs/Trigger): ``~/start``; ``~/stop``: end the episode as a success;
    ``~/fail``: end and keep it as a failure; ``~/discard``. An episode interrupted otherwise is kept, with unknown outcome."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("recorder_node", **kwargs)
        self.contract = declare_contract(self)
        self._robot = declare(self, "robot", "franka", "Name of the robot, stored in the bags")
        self._operator = declare(self, "operator", "", "Name of the operator, stored in the bags")
        out = declare(self, "out", "", "Folder of bags; default: out/<task>/bags")
        image, cameras = declare_cameras(self, self.contract)
        extra = declare(self, "extra_topics", [""], "Further topics to record, such as action/chunk")
        self._least = declare(self, "min_free_gb", 5.0, "Free disk space below which no recording starts, GB", 0.0, 1e6)
        self._autostart = declare(self, "autostart", False, "Start an episode as soon as all required topics arrive")
        self._out = Path(out or Path("out") / self.contract.task / "bags")
        self._out.mkdir(parents=True, exist_ok=True)

        self._subscribers: dict[str, PolledSubscriber] = {}
        self._watches: dict[str, TopicWatch] = {}
        self._types: dict[str, str] = {}
        rate, gap = self.contract.control_hz, 1.5 * self.contract.dt  # longer gaps leave a step without its observation
        self._cameras = list(cameras.values())
        for topic in self._cameras:
            self._subscribe(image, TopicWatch(topic, rate, gap, optional=False), CAMERA_DEPTH)
        for topic, name in self.contract.state_topics.items():
            self._subscribe(MESSAGES[name], TopicWatch(topic, rate, gap, optional=False), DEPTH)
        # The operator may start later; an opening holds until the next one.
        held = {feature.topic for feature in self.contract.action if feature.kind == "opening"}
        for topic, name in self.contract.action_topics.items():
            if topic not in self._watches:
                self._subscribe(
                    MESSAGES[name], TopicWatch(topic) if topic in held else TopicWatch(topic, rate, TARGET_MAX_AGE), DEPTH
                )
        self._extra = {topic: "" for topic in extra if topic and topic not in self._watches}  # topic -> why it is missing

        self._recording: Recording | None = None
        self._pauses = PauseWatch(PAUSE)
        self._paused: list[tuple[float, float]] = []  # suspensions in this episode: when (s after the start), how long (s)
        self._started_anew = float("-inf")
        self._failed = ""
        self._known: set[str] = set()
        self._polls = 0
        for name in ("start", "stop", "fail", "discard"):
            self.create_service(Trigger, f"~/{name}", functools.partial(self._serve, getattr(self, f"_{name}")))
        self.create_timer(POLL_PERIOD, self._on_timer)
        self._diagnostics = Diagnostics(self, self._report)
        self.get_logger().info(f"records to {self._out.absolute()}")

    def _subscribe(self, kind: Any, watch: TopicWatch, depth: int) -> None:
        self._types[watch.topic] = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._watches[watch.topic] = watch
        callback = functools.partial(self._take, watch)
        self._subscribers[watch.topic] = PolledSubscriber(self, kind, watch.topic, depth, callback, raw=True)

    def destroy_node(self) -> None:
        if self._recording is not None:
            _, text = self._finish({"interrupted": True})
            print(f"recorder_node: interrupted, the outcome is not known: {text}", file=sys.stderr)
        super().destroy_node()

    # inputs

    def _on_timer(self) -> None:
        self._notice_pause()
        now = time.time_ns()
        self._poll()
        if self._recording is not None:
            self._recording.pass_on(now)
        self._polls += 1
        if self._polls % COUNT_EVERY == 0:
            self._count_publishers()
            self._find_extra()
            if self._autostart and (started := self._start())[0]:
                self._autostart = False
                self._pauses.restart()
                self.get_logger().info(started[1])
        if self._polls % CHECK_EVERY == 0:
            self._check()

    def _notice_pause(self) -> None:
        """Note if this process did not run: stopped, swapped out, or suspended with the machine."""
        length = self._pauses.check()
        if not length:
            return
        if length > LONGEST_PAUSE:
            self._started_anew = clock.now()
        if self._recording is not None:
            self._paused.append((max(self._recording.seconds - length, 0.0), length))
            for watch in self._watches.values():
                watch.excuse(time.time_ns())

    def _poll(self) -> None:
        """Handle the messages that have arrived."""
        for subscriber in self._subscribers.values():
            subscriber.poll()

    def _take(self, watch: TopicWatch, data: bytes, arrival: int) -> None:
        arrival = arrival or time.time_ns()  # not every middleware reports it
        watch.take(data, arrival)
        if self._recording is not None:
            self._recording.add(arrival, watch.topic, data)

    def _check(self) -> None:
        """Report new problems at once."""
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
        if self._paused:
            found["paused"] = (
                f"recorder_node was paused {len(self._paused)} time{'s' if len(self._paused) > 1 else ''}, the longest for "
                f"{max(length for _, length in self._paused):.1f} s, the first {self._paused[0][0]:.1f} s after the start: it was "
                f"stopped, swapped out or suspended, and messages of that time may be missing or logged late"
            )
        if lost := self._recording.lost:
            found["lost"] = f"{lost} messages were lost: the disk or the CPU is too slow"
        return found

    def _count_publishers(self) -> None:
        if self._recording is None:
            return
        for watch in self._watches.values():
            topic = self.resolve_topic_name(watch.topic)
            if watch.needed and self.count_publishers(topic) > 1:
                watch.several([f"{p.node_namespace.rstrip('/')}/{p.node_name}" for p in self.get_publishers_info_by_topic(topic)])

    def _find_extra(self) -> None:
        """Subscribe to the extra topics that have appeared."""
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
            self._subscribe(kind, TopicWatch(topic, needed=False), DEPTH)

    # services

    def _serve(self, act: Any, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._notice_pause()
        response.success, response.message = act()
        self._pauses.restart()  # a disk may be slow
        if response.success:
            self.get_logger().info(response.message)
        else:
            self.get_logger().error(response.message)
        self._diagnostics.publish()
        return response

    def _start(self) -> tuple[bool, str]:
        if self._recording is not None:
            return False, f"{self._recording.writer.path.name} is being recorded; stop, fail or discard it first"
        if clock.now() - self._started_anew < REQUEST_DOUBT:
            return (
                False,
                "not started: recorder_node was paused until just now, and this request may be outdated; start again",
            )
        self._poll()
        self._find_extra()
        if reasons := self._unready():
            return False, f"not started: {'; '.join(reasons)}"
        path = self._out / next_episode(self._out)
        try:
            writer = BagWriter(path, self.contract, self._types, {"operator": self._operator, "robot": self._robot})
        except BagError as error:
            return False, f"not started: {error}"
        self._poll()  # drop earlier messages
        self._recording, self._failed, self._known = Recording(writer), "", set()
        self._paused = []
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
            reasons.append(f"the folder {self._out.absolute()} is gone; create it, or mount its disk")
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
            return self._refuse()
        recording = self._end()
        try:
            recording.writer.discard()
        except BagError as error:
            self._failed = str(error)
            return False, self._failed
        return True, f"discarded {recording.writer.path.name}"

    def _end(self) -> Recording:
        """End the recording and its checks; the bag is left open."""
        assert self._recording is not None
        recording, self._recording = self._recording, None
        for watch in self._watches.values():
            watch.end()
        recording.end()
        return recording

    def _refuse(self) -> tuple[bool, str]:
        return False, self._failed or "nothing is being recorded; start first"

    def _finish(self, outcome: dict[str, Any]) -> tuple[bool, str]:
        """Close the episode. Returns whether that succeeded, and a message."""
        if self._recording is None:
            return self._refuse()
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

    # reports

    def _free(self) -> int:
        """Free bytes; 0 if the folder is gone."""
        try:
            return shutil.disk_usage(self._out).free
        except OSError:
            return 0

    def _report(self) -> DiagnosticReport:
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
    return run_node(RecorderNode, args)


if __name__ == "__main__":
    sys.exit(main())
