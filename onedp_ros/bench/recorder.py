"""``onedp bench --recorder``: CPU use and lost messages of a recording, two noisy 640x480 cameras at 30 Hz and states at 200 Hz."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onedp_ros.bench.machine import processor
from onedp_ros.contract import NANOSECONDS
from onedp_ros.data.bags.reader import read_bag, read_metadata
from onedp_ros.graph.processes import NodeProcess, graph_environment, own_domain
from onedp_ros.graph.supervisor import Supervisor
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.resources import child_environment, default_task

START_TIME = 30.0  # s until all streams that are to be recorded arrive
LOOK = 1.0  # s between samples of the recorder's CPU time and queue
UNDER_WAY = NANOSECONDS // 10  # ns that a message may take to reach the recorder


def processor_time(pid: int) -> float:
    """CPU time of a process, s."""
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def load(part: str) -> Iterator[dict[str, list[int]]]:
    """Publish one part of ``bench.recorder_load``. On exit the yielded dict holds the stamps (ns) sent, by topic."""
    sent: dict[str, list[int]] = {}
    command = [sys.executable, "-m", "onedp_ros.bench.recorder_load", part]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would fill up and block it
        process = subprocess.Popen(command, stdout=output)
        try:
            yield sent
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10.0)
        output.seek(0)
        sent |= json.load(output)


def run(seconds: float, folder: Path) -> dict[str, Any]:
    """Record for ``seconds`` into a folder with space for 50 MB/s; the bag is removed at the end.

    Raises:
        RuntimeError: the recorder did not start, or exited.
    """
    os.environ.update(own_domain())
    os.environ.update(graph_environment(os.environ))
    os.environ.update(child_environment())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        parameters = {"task": default_task(), "robot": "none", "out": out, "min_free_gb": 1.0}
        with load("cameras") as frames, load("robot") as states:
            looks, began, ended = _record(seconds, parameters)
        bag = Path(out) / "episode_000000"
        recorded: dict[str, set[int]] = {}
        size = sum(path.stat().st_size for path in bag.iterdir())
        count = sum(stream["messages"] for stream in read_metadata(bag)["streams"].values())
        for topic, _, message in tqdm(read_bag(bag), total=count, desc="reading the bag", unit=" messages"):
            recorded.setdefault(topic, set()).add(stamp_ns(message))
        problems = read_metadata(bag)["problems"]
    topics = {}
    for topic, stamps in (frames | states).items():
        due = {stamp for stamp in stamps if began < stamp < ended - UNDER_WAY}
        topics[topic] = {"sent": len(due), "recorded": len(recorded[topic]), "lost": len(due - recorded[topic])}
    times = [at for at, *_ in looks]
    spent = [used for _, used, _ in looks]
    return {
        "processor": processor(),
        "seconds": round(times[-1] - times[0], 1),
        "topics": topics,
        "lost": sum(topic["lost"] for topic in topics.values()),
        "core_percent": round(100 * (spent[-1] - spent[0]) / (times[-1] - times[0]), 1),
        "waiting_MB_max": max(waiting for *_, waiting in looks),
        "MB_per_minute": round(size / 1e6 / seconds * 60),
        "problems": problems,
        "looks": [[round(at - times[0], 2), round(used - spent[0], 2), waiting] for at, used, waiting in looks],
    }


def _record(seconds: float, parameters: dict[str, Any]) -> tuple[list[tuple[float, float, float]], int, int]:
    """Samples of the recorder (time s, CPU time s, MB queued), and the stamps (ns) between which it certainly recorded."""
    from std_srvs.srv import Trigger

    from onedp_ros.graph.client import GraphWatch

    looks: list[tuple[float, float, float]] = []
    with Supervisor([NodeProcess("recorder_node", "recorder_node", parameters)]) as supervisor:
        watch = GraphWatch("bench", supervisor.check)
        refusal = ""

        def started() -> bool:
            nonlocal refusal
            answer = watch.call(Trigger, "recorder_node/start")
            refusal = answer.message
            return bool(answer.success)

        def look() -> None:
            used = processor_time(supervisor.children["recorder_node"].pid)
            looks.append((time.monotonic(), used, float(watch.values("recorder_node").get("waiting_MB", 0.0))))

        try:
            if not watch.spin_until(started, START_TIME):
                raise RuntimeError(f"the recorder did not start: {refusal}")
            began = time.time_ns()
            look()
            with tqdm(total=seconds, desc="recording", bar_format="{desc} {bar} {n:.0f}/{total:.0f} s") as bar:
                while (left := seconds - (time.monotonic() - looks[0][0])) > 0:
                    watch.spin_for(min(LOOK, left))
                    look()
                    bar.update(min(looks[-1][0] - looks[0][0], seconds) - bar.n)
            ended = time.time_ns()
            answer = watch.call(Trigger, "recorder_node/stop")
            if not answer.success:
                raise RuntimeError(answer.message)
        finally:
            watch.close()
    return looks, began, ended


def table(result: dict[str, Any]) -> str:
    """The result of :func:`run`, formatted for the terminal."""
    cpu = result["processor"]
    lines = [f"{cpu['name']}, {cpu['cores']} cores", "", f"{'topic':32} {'sent':>8} {'recorded':>8} {'lost':>6}"]
    lines += [f"{topic:32} {t['sent']:8} {t['recorded']:8} {t['lost']:6}" for topic, t in result["topics"].items()]
    lines += [
        "",
        f"{result['seconds']:g} s: {result['lost']} lost, {result['core_percent']:g} % of a core, "
        f"{result['MB_per_minute']} MB/min, at most {result['waiting_MB_max']:g} MB queued for the disk",
        f"reported by the recorder: {'; '.join(result['problems']) or 'no problems'}",
    ]
    return "\n".join(lines)
