"""Run a policy in the twin, in real time through the real graph, and report success, rates and latencies."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedp_ros.cli.arguments import add_options, values
from onedp_ros.graph.options import POLICY, RUN, TASK
from onedp_ros.graph.processes import graph_environment, task_graph
from onedp_ros.graph.supervisor import Supervisor
from onedp_ros.resources import default_task

if TYPE_CHECKING:
    from onedp_ros.evaluation.live_episode import RecordedTopics
    from onedp_ros.graph.client import GraphWatch


def run(
    task: str, out: Path, *, twin_seed: int = RUN["twin_seed"].default, episodes: int = 5, max_time: float = 20.0, **policy: Any
) -> dict[str, Any]:
    """Run the demo and write ``summary.json``, ``episode.mp4`` and ``timeline.png`` to ``out``. Returns the summary.

    ``policy``: method, engine, model and seed, as for :func:`~onedp_ros.graph.processes.task_graph`.
    """
    out.mkdir(parents=True, exist_ok=True)
    processes = task_graph(task, twin_seed=twin_seed, enabled=False, **policy)
    os.environ.update(graph_environment(os.environ, "localhost"))
    results: list[dict[str, Any]] = []
    with Supervisor(processes, logs=out / "logs") as supervisor:
        from onedp_ros.evaluation.live_episode import RecordedTopics, wait_for_policy
        from onedp_ros.graph.client import GraphWatch

        demo = GraphWatch("demo", supervisor.check, keep=True)
        try:
            print(f"starting the graph: {', '.join(supervisor.children)}", flush=True)
            wait_for_policy(demo, out / "logs")
            recording = RecordedTopics(demo.node, _recorded(task))
            demo.meanwhile = recording.poll
            begin = {name: len(demo.history[name]) - 1 for name in demo.history}
            for episode in range(episodes):
                results.append(_episode(demo, recording, episode, episodes, results, max_time))
                if results[-1]["success"] or episode == episodes - 1:
                    recording.end()
            demo.spin_for(1.2)
            summary = _summary(demo, begin, results)
            (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            _write_pictures(recording, task, summary, out)
        finally:
            demo.close()
    return summary


def _recorded(task: str) -> dict[str, Any]:
    """Topics to record in an episode, with their message types."""
    from sensor_msgs.msg import Image
    from trajectory_msgs.msg import MultiDOFJointTrajectory

    from onedp_ros.contract import task_contract
    from onedp_ros.messages.encode import MESSAGES

    contract = task_contract(task)
    return {
        **{camera.topic: Image for camera in contract.cameras.values()},
        **{topic: MESSAGES[name] for topic, name in {**contract.state_topics, **contract.action_topics}.items()},
        "action/chunk": MultiDOFJointTrajectory,
    }


def _episode(
    demo: GraphWatch, recording: RecordedTopics, episode: int, episodes: int, results: list[dict[str, Any]], max_time: float
) -> dict[str, Any]:
    from onedp_ros.evaluation.live_episode import reset_twin, run_episode

    reset_twin(demo)
    recording.begin()
    line = 0.0

    def progress(now: float, success: bool, over: bool) -> None:
        nonlocal line
        if over or now - line > 0.5:
            line = now
            _print_line(demo, episode, episodes, now, sum(r["success"] for r in results) + success, over)

    outcome = run_episode(demo, max_time, progress)
    return {"success": outcome.success, "time_s": outcome.time, "failure": outcome.failure}


def _print_line(demo: GraphWatch, episode: int, episodes: int, now: float, successes: int, over: bool) -> None:
    policy, action = demo.values("policy_node"), demo.values("action_node")
    text = (
        f"episode {episode + 1}/{episodes}  {now:5.1f} s  policy {float(policy.get('policy_hz', 0)):5.1f} Hz  "
        f"targets {float(action.get('target_hz', 0)):5.1f} Hz  camera to target "
        f"p50 {float(action.get('latency_ms_p50', 0)):.1f} p99 {float(action.get('latency_ms_p99', 0)):.1f} ms  ok {successes}"
    )
    live = sys.stdout.isatty()
    print(f"\r{text}" if live else text, end="\n" if over or not live else "", flush=True)


def _summary(demo: GraphWatch, begin: dict[str, int], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of the run, from the nodes' own counters since the start of the first episode."""
    import numpy as np

    def counted(name: str, key: str) -> float:
        entries = demo.history[name][begin[name] :]
        return float(entries[-1][1].get(key, 0)) - float(entries[0][1].get(key, 0))

    def rate(name: str, key: str) -> float:
        entries = demo.history[name][begin[name] :]
        return counted(name, key) / (entries[-1][0] - entries[0][0])

    policy, action = demo.values("policy_node"), demo.values("action_node")
    received, sent = (_series(demo, "observation_node", "frames_received_"), _series(demo, "twin_node", "frames_sent_"))
    # counters are read at different instants: compare both at the instants of observation_node's reports
    first, last = received[begin["observation_node"]], received[-2]
    frames_sent = np.interp([first[0], last[0]], *np.array(sent).T)
    frames = round(float(frames_sent[1] - frames_sent[0]))
    enabled = [float(v["target_hz"]) for _, v in demo.history["action_node"] if float(v.get("target_hz", 0)) > 0]
    return {
        "episodes": len(results),
        "successes": sum(r["success"] for r in results),
        "policy_hz": round(rate("policy_node", "chunks"), 2),
        "target_hz": round(float(np.median(enabled)), 2) if enabled else 0.0,
        "latency_ms": {p: float(action.get(f"latency_ms_{p}", "nan")) for p in ("p50", "p95", "p99")},
        "inference_ms": {p: float(policy.get(f"inference_ms_{p}", "nan")) for p in ("p50", "p95", "p99")},
        "ticks_skipped": int(counted("policy_node", "ticks_skipped")),
        "repeats": int(counted("policy_node", "repeats")),
        "frames_sent": frames,
        "frames_received": min(round(last[1] - first[1]), frames),  # interpolated, to within a frame
        "time_lost_s": float(demo.values("twin_node").get("time_lost_s", 0)),
        **{key: policy.get(key, "") for key in ("engine", "network", "method")},
        "nfe": int(policy.get("nfe", 0)),
        "processors": os.cpu_count(),
        "results": results,
    }


def _write_pictures(recording: RecordedTopics, task: str, summary: dict[str, Any], out: Path) -> None:
    """``episode.mp4`` and ``timeline.png`` of the recorded episode."""
    from rclpy.serialization import deserialize_message

    from onedp_ros.contract import task_contract
    from onedp_ros.evaluation.figures import plot_timeline, write_video
    from onedp_ros.messages.decode import decode_image, pose_arrays, stamp_ns

    contract = task_contract(task)
    arm = contract.arm
    read = {t: [(at, deserialize_message(m, recording.kinds[t])) for at, m in ms] for t, ms in recording.messages.items()}
    frames = {n: [(stamp_ns(m), decode_image(m, c.topic)) for _, m in read[c.topic]] for n, c in contract.cameras.items()}
    write_video(frames, out / "episode.mp4")
    plot_timeline(
        measured=[(stamp_ns(m), pose_arrays(m.pose)[0]) for _, m in read[arm.pose_topic]],
        target=[(stamp_ns(m), pose_arrays(m.pose)[0]) for _, m in read[arm.target_topic]],
        opening=[(stamp_ns(m), sum(m.position[-2:])) for _, m in read[arm.joint_states_topic]],
        opening_target=[(stamp_ns(m), m.position[0]) for _, m in read[arm.gripper_topic]],
        chunks=[(at, stamp_ns(m)) for at, m in read["action/chunk"]],
        summary=summary,
        path=out / "timeline.png",
    )


def _series(demo: GraphWatch, name: str, prefix: str) -> list[tuple[float, float]]:
    """(time, sum of the counters that begin with ``prefix``) of every report of a node."""
    return [(t, sum(float(x) for k, x in v.items() if k.startswith(prefix))) for t, v in demo.history[name]]


def table(summary: dict[str, Any]) -> str:
    latency, inference = summary["latency_ms"], summary["inference_ms"]
    rows = {
        "successes": f"{summary['successes']} of {summary['episodes']}",
        "times": ", ".join(f"{r['time_s']:.1f} s" if r["success"] else r["failure"] for r in summary["results"]),
        "policy": "{method}, {network} network, NFE {nfe}, {engine}".format(**summary),
        "policy rate": f"{summary['policy_hz']:.1f} Hz ({summary['ticks_skipped']} ticks skipped, {summary['repeats']} repeats)",
        "inference": f"p50 {inference['p50']:.1f}  p95 {inference['p95']:.1f}  p99 {inference['p99']:.1f} ms",
        "camera to target": f"p50 {latency['p50']:.1f}  p95 {latency['p95']:.1f}  p99 {latency['p99']:.1f} ms",
        "target rate": f"{summary['target_hz']:.1f} Hz",
        "camera frames": f"{summary['frames_received']} received of {summary['frames_sent']} sent",
    }
    return "\n".join(f"{name:17} {value}" for name, value in rows.items())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp demo", description=__doc__)
    parser.add_argument("task", nargs="?", default=default_task(), help=f"{TASK} (default {default_task()})")
    add_options(parser, {name: option for name, option in POLICY.items() if name != "seed"})
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=RUN["twin_seed"].default, help="seed of the twin's first episode")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    args = parser.parse_args(argv)
    policy = values(args, ("method", "engine", "model"))
    summary = run(args.task, args.out, twin_seed=args.seed, episodes=args.episodes, **policy)
    print("\n" + table(summary) + "\n")
    print(f"written: {args.out}/summary.json, {args.out}/episode.mp4, {args.out}/timeline.png")
    if summary["successes"] < 0.8 * summary["episodes"]:
        print(f"fewer than 80 % of the episodes succeeded; the nodes' logs are in {args.out}/logs", file=sys.stderr)
        return 1
    return 0
