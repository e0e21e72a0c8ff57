"""``onedp bench --start``: the time policy_node takes from process start until it is ready and has made predictions.

The first start on a machine converts and compiles the network; later ones load the result from the cache. The two alternate.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.graph.processes import DEFAULT_METHOD, own_domain
from onedp_ros.policy.checkpoint import find_released
from onedp_ros.resources import child_environment, default_task

STARTS = ("first", "next")


def run(engine: str = "auto", repeats: int = 5) -> dict[str, Any]:
    """Time (s) of each start (``first`` and ``next``, in pairs) of the released OneDP-S, and the median of the pairs' ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in tqdm(range(repeats), desc="bench start", unit="pair"):
        with tempfile.TemporaryDirectory() as cache:
            for name in STARTS:
                seconds[name].append(round(start(engine, cache), 2))
    ratio = float(np.median([b / a for a, b in zip(*seconds.values(), strict=True)]))
    return {"engine": engine, "seconds": seconds, "next_to_first": round(ratio, 3)}


def start(engine: str, cache: str) -> float:
    """Time of one start, s. RuntimeError with the node's output if it fails."""
    parameters = {
        "task": default_task(),
        "model": find_released(default_task(), DEFAULT_METHOD),
        "engine": engine,
        "autostart": "true",
    }
    arguments = [text for name, value in parameters.items() for text in ("-p", f"{name}:={value}")]
    environment = {**child_environment(), **own_domain(), "XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "onedp_ros.nodes.policy_node", "--ros-args", *arguments]
    begin, output = time.monotonic(), ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        assert node.stdout is not None
        for line in node.stdout:
            output += line
            if "ready after" in line:
                seconds = time.monotonic() - begin
                node.kill()
                return seconds
    raise RuntimeError(f"policy_node exited before it was ready:\n{output}")


def table(result: dict[str, Any]) -> str:
    lines = [f"engine {result['engine']}, from process start until the first predictions are made"]
    for name, seconds in result["seconds"].items():
        lines.append(f"{name:5} start: {np.median(seconds):5.1f} s (median of {len(seconds)}, {min(seconds)} to {max(seconds)})")
    return "\n".join([*lines, f"next to first: {result['next_to_first']} (median of the pairs)"])
