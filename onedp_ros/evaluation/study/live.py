"""Rounds of a study in real time, through the ROS graph."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool

from onedp_ros.contract import NANOSECONDS
from onedp_ros.evaluation.figures import write_video
from onedp_ros.evaluation.live_episode import RecordedTopics, reset_twin, run_episode, wait_for_policy
from onedp_ros.evaluation.smoothness import departures
from onedp_ros.evaluation.study.series import Series
from onedp_ros.graph.client import CALL_TIME, GraphWatch
from onedp_ros.graph.processes import graph_environment, own_domain, task_graph
from onedp_ros.graph.supervisor import Supervisor
from onedp_ros.messages.decode import decode_image, pose_arrays, stamp_ns

KEPT_FRAMES, VIDEO_FPS = 3, 10  # keep every third frame of a camera; 10 a second
NODES = ("policy_node", "action_node", "twin_node")  # whose diagnostics are in a round's record


def live_rounds(
    series: Series, numbers: Sequence[int], *, engine: str, logs: Path, videos: Path
) -> Generator[dict[str, Any], None, None]:
    """Start the graph, run the rounds, yield the record of each when it is over, and stop the graph.

    Args:
        numbers: of the rounds.
        engine: see :func:`~onedp_ros.graph.processes.task_graph`.
        logs: folder for the nodes' output.
        videos: folder for the videos of failed rounds.

    Raises:
        RuntimeError: a node died or does not answer, and the round could not be finished.
    """
    if not os.environ.get("ROS_DOMAIN_ID"):
        os.environ.update(own_domain())  # keep other nodes out of this graph
    os.environ.update(graph_environment(os.environ, "localhost"))
    processes = task_graph(series.task_file, method=series.method, engine=engine, model=series.model, enabled=False)
    with Supervisor(processes, logs=logs) as supervisor:
        watch = GraphWatch("study", supervisor.check, keep=True)
        try:
            wait_for_policy(watch, logs)
            frames = RecordedTopics(watch.node, {c.topic: Image for c in series.contract.cameras.values()}, KEPT_FRAMES)
            targets = RecordedTopics(watch.node, {series.contract.arm.target_topic: PoseStamped})

            def poll() -> None:
                frames.poll()
                targets.poll()

            watch.meanwhile = poll
            for number in numbers:
                yield _round(watch, series, number, frames, targets, videos / f"{number:03}.mp4")
        finally:
            watch.close()


def _round(
    watch: GraphWatch, series: Series, number: int, frames: RecordedTopics, targets: RecordedTopics, video: Path
) -> dict[str, Any]:
    record, begin = series.begin_record(number), time.monotonic()
    reset_twin(watch, record["seed"])
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):  # restarts its statistics
        request = ChangeState.Request(transition=Transition(id=transition))
        if not watch.call(ChangeState, "policy_node/change_state", request).success:
            raise RuntimeError(f"policy_node could not be activated again: {watch.complaints()}")
    frames.begin()
    targets.begin()
    earlier = {name: len(watch.history.get(name, ())) - 1 for name in NODES}
    outcome = run_episode(watch, series.max_time)
    sent = list(targets.messages[series.contract.arm.target_topic])
    complaints = watch.complaints()
    watch.call(SetBool, "action_node/enable", SetBool.Request(data=False))
    reports = {name: len(watch.history.get(name, ())) for name in NODES}
    if not watch.spin_until(lambda: all(len(watch.history.get(n, ())) > count for n, count in reports.items()), CALL_TIME):
        raise RuntimeError(f"not all of {', '.join(NODES)} report on /diagnostics: {watch.complaints()}")
    record |= {"success": outcome.success, "time_s": outcome.time, "failure": outcome.failure, "reports": ""}
    if not outcome.success:
        record["reports"] = complaints
        _write_video(series, frames, video)
    figures = _figures({name: watch.history[name][max(since, 0) :] for name, since in earlier.items()})
    return {**record, **figures, **_jumps(sent), "wall_s": round(time.monotonic() - begin, 1)}


def _figures(history: dict[str, list[tuple[float, dict[str, str]]]]) -> dict[str, Any]:
    """Results from the nodes' diagnostics between start and end of a round."""
    policy, action, twin = (history[name] for name in NODES)
    now = policy[-1][1]

    def gained(reports: list[tuple[float, dict[str, str]]], key: str) -> float:
        return float(reports[-1][1].get(key, 0)) - float(reports[0][1].get(key, 0))

    sent = [float(values["target_hz"]) for _, values in action if float(values.get("target_hz", 0)) > 0]
    milliseconds = (
        *("encoding_ms_p50", "inference_ms_p50", "inference_ms_p95", "inference_ms_p99"),
        *("chunk_latency_ms_p50", "chunk_latency_ms_p99"),
    )
    return {
        **{key: now.get(key, "") for key in ("engine", "network")},
        "nfe": int(now.get("nfe", 0)),
        **{key: float(now[key]) if key in now else None for key in milliseconds},
        "policy_hz": round(gained(policy, "chunks") / max(policy[-1][0] - policy[0][0], 1e-9), 2),
        "target_hz": round(float(np.median(sent)), 2) if sent else 0.0,
        **{key: round(gained(policy, key)) for key in ("ticks_skipped", "repeats")},
        **{key: round(gained(action, key)) for key in ("holds", "rejected", "limited")},
        "time_lost_s": round(gained(twin, "time_lost_s"), 3),
    }


def _jumps(sent: Sequence[tuple[int, bytes]]) -> dict[str, float]:
    """The most by which a target departs from the motion of those before it."""
    messages = [deserialize_message(data, PoseStamped) for _, data in sent]
    stamps = np.array([stamp_ns(m) for m in messages], np.int64)
    later = np.flatnonzero(np.diff(stamps, prepend=-1) > 0)
    poses = [pose_arrays(messages[i].pose) for i in later]
    seconds = (stamps[later] - stamps[0]) / NANOSECONDS if len(later) else np.zeros(0)
    distances, angles = departures(seconds, np.array([p for p, _ in poses]).reshape(-1, 3), [q for _, q in poses])
    return {
        "jump_mm": round(1e3 * float(distances.max(initial=0.0)), 2),
        "turn_deg": round(float(np.degrees(angles.max(initial=0.0))), 2),
    }


def _write_video(series: Series, frames: RecordedTopics, path: Path) -> None:
    """Write a video of the cameras side by side, unless one of them has sent nothing."""
    images = {}
    for name, camera in series.contract.cameras.items():
        messages = [deserialize_message(data, Image) for _, data in frames.messages[camera.topic]]
        images[name] = [(stamp_ns(message), decode_image(message, camera.topic)) for message in messages]
    if images and all(len(items) > 1 for items in images.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(images, path, fps=VIDEO_FPS)
