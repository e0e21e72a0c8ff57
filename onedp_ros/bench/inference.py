"""``onedp bench``: inference time by engine and method, and camera frames received, side by side in one run.

A prediction is what the live node does for a new observation: encode one new frame per camera, reuse the previous observation's
features, sample a chunk; batch 1. Weights are random: they do not affect the time. Rows are interleaved, so that any other load on
the machine affects all of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from onedp_ros.bench.machine import processor
from onedp_ros.contract import Contract, Normalizer, Observation, task_contract
from onedp_ros.graph.processes import graph_environment, own_domain
from onedp_ros.policy.engines import ENGINES
from onedp_ros.resources import child_environment, default_task

METHODS = ("onedp_s", "dp_ddim10")  # one network evaluation, and ten


def measure(network: str, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Rows ``{engine, network, method, nfe, p50_ms, p95_ms, parity}`` for a network, with every engine that runs on this
    machine."""
    import torch

    from onedp_ros.policy.engine_parity import parity
    from onedp_ros.policy.networks import NetworkConfig
    from onedp_ros.policy.policies import Policy
    from onedp_ros.policy.predictor import Predictor

    contract = task_contract(default_task())
    config = NetworkConfig() if network == "paper" else NetworkConfig(16, (64, 128, 256))
    ones = {"state": contract.state_dim, "action": contract.action_dim}
    normalizer = Normalizer(
        **{f"{k}_offset": np.zeros(n, np.float32) for k, n in ones.items()},
        **{f"{k}_scale": np.ones(n, np.float32) for k, n in ones.items()},
    )
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    weights = Policy(contract, config, normalizer).state_dict()
    predictors: list[Predictor] = []
    for engine in ENGINES.names():
        for method in METHODS:
            policy = Policy(contract, config, normalizer, method).eval()
            policy.load_state_dict(weights)
            try:
                runner = ENGINES.get(engine).start(policy, threads)
            except Exception as error:  # as in load_predictor
                print(f"engine {engine} cannot be used: {error}", file=sys.stderr)
                continue
            predictors.append(Predictor(policy, runner, engine, parity(policy, runner), seed=0))
    times: dict[int, list[float]] = {i: [] for i in range(len(predictors))}
    rng = np.random.default_rng(0)
    previous = _observation(contract, rng, 0)
    for round_ in tqdm(range(repeats + 2), desc=f"bench {network}", unit="round"):
        newest = _observation(contract, rng, round_ + 1)
        for i in random.Random(round_).sample(range(len(predictors)), len(predictors)):
            if round_ == 0:
                predictors[i].predict([[previous, previous]])
            begin = time.perf_counter()
            predictors[i].predict([[previous, newest]])
            if round_ >= 2:  # after warm-up
                times[i].append(1e3 * (time.perf_counter() - begin))
        previous = newest
    rows = []
    for i, predictor in enumerate(predictors):
        p50, p95 = np.percentile(times[i], [50, 95]).round(2).tolist()
        row = {"engine": predictor.engine, "network": network, "method": predictor.method, "nfe": predictor.nfe}
        rows.append({**row, "p50_ms": p50, "p95_ms": p95, "parity": float(f"{predictor.parity:.2g}")})
    return rows


def _observation(contract: Contract, rng: np.random.Generator, stamp: int) -> Observation:
    images = {n: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()}
    return Observation(stamp, images, dict.fromkeys(images, stamp), np.zeros(contract.state_dim, np.float32))


def frames(seconds: float = 5.0, width: int = 640, height: int = 480, rate: float = 60.0) -> list[dict[str, Any]]:
    """Frames sent and received, two streams between two processes, with and without the shared-memory profile."""
    rows = []
    for name, profile in (("default", {}), ("shared memory", graph_environment({}))):
        environment = {k: v for k, v in os.environ.items() if "DEFAULT_PROFILES_FILE" not in k} | profile
        environment = child_environment(environment | own_domain())  # isolated from other nodes, both ways
        command = [sys.executable, "-m", "onedp_ros.bench.frame_load"]
        load = ["--width", str(width), "--height", str(height), "--rate", str(rate), "--seconds", str(seconds)]
        with subprocess.Popen([*command, "subscribe"], env=environment, stdout=subprocess.PIPE, text=True) as subscriber:
            subprocess.run([*command, "publish", *load], env=environment, check=True)
            output, _ = subscriber.communicate(timeout=60)
        rows.append({"profile": name, "sent": 2 * int(rate * seconds), **json.loads(output)})
    return rows


def run(networks: Sequence[str], repeats: int, threads: int, dds: bool) -> dict[str, Any]:
    """All rows, and per network the ratios of best engine to eager and of DDIM-10 eager to OneDP."""
    rows = [row for network in networks for row in measure(network, repeats, threads)]
    ratios = {}
    for network in networks:
        one, ten = ({r["engine"]: r["p50_ms"] for r in rows if (r["network"], r["method"]) == (network, m)} for m in METHODS)
        best = min(one, key=lambda engine: one[engine])
        ratios[network] = {
            "best_engine": best,
            "best_to_eager": round(one[best] / one["torch"], 3),
            "ddim10_eager_to_onedp": round(ten["torch"] / one[best], 1),
            "ddim10_eager_to_onedp_eager": round(ten["torch"] / one["torch"], 1),
        }
    result: dict[str, Any] = {"processor": processor(), "threads": threads, "rows": rows, "ratios": ratios}
    if dds:
        result["frames"] = frames()
    return result


def table(result: dict[str, Any]) -> str:
    cpu = result["processor"]
    lines = [f"{cpu['name']}, {cpu['cores']} cores, {result['threads']} threads, {' '.join(cpu['instructions'])}", ""]
    lines.append(f"{'network':8} {'engine':14} {'method':10} {'NFE':>3} {'p50 ms':>8} {'p95 ms':>8}  difference from eager")
    for r in result["rows"]:
        timing = f"{r['nfe']:3} {r['p50_ms']:8.2f} {r['p95_ms']:8.2f}  {r['parity']:.1e}"
        lines.append(f"{r['network']:8} {r['engine']:14} {r['method']:10} {timing}")
    for network, r in result["ratios"].items():
        lines += [
            "",
            f"{network}: best engine {r['best_engine']} takes {r['best_to_eager']:.2f} of eager; "
            f"OneDP on it is {r['ddim10_eager_to_onedp']:.0f} x faster than DDIM-10 eager",
        ]
    for r in result.get("frames", []):
        lines.append(f"frames 640x480, DDS profile {r['profile']:14} {r['received']} of {r['sent']} received, p99 {r['p99_ms']} ms")
    return "\n".join(lines)
