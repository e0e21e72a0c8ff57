"""Replays a recording through the live code, and compares what the policy sees and predicts with what it saw and predicted live.

:mod:`onedp_ros.cli.replay` describes how.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onedp_ros.evaluation.replay_report import compare, plot
from onedp_ros.evaluation.replayed import digests, observe, read_recording, recorded_contract, replay_offline
from onedp_ros.graph.processes import DEFAULT_METHOD
from onedp_ros.policy.checkpoint import find_released


def choose_policy(args: argparse.Namespace, noted: Mapping[str, str], task: str) -> dict[str, Any]:
    """Model, method, engine, threads and seed: as given, else as policy_node reported them, else the released policy.

    Raises:
        ValueError: the reported model does not exist here.
    """
    if args.policy is None and noted:
        model, method = Path(noted["model"]), args.method or noted["method"]
        if not model.exists():
            raise ValueError(f"the recording was made with {model}, which does not exist here; give it, or another, with --policy")
    elif args.policy is None:
        method = args.method or DEFAULT_METHOD
        model = find_released(task, method)
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
    """Replay a bag as ``onedp replay`` does with these arguments. Returns the report."""
    contract = recorded_contract(bag, args.task)
    recording = read_recording(bag, contract, args.image_transport)
    policy = choose_policy(args, recording.outputs.policy, contract.policy_task)
    reference = recording.outputs.sets
    if args.graph:
        from onedp_ros.evaluation.replay_live import replay_in_graph

        logs = args.out / "logs" if args.out else None
        replayed = replay_in_graph(bag, recording, real_time=args.real_time, logs=logs, **policy)
        reference = reference or {o.stamp: digests(o) for o in observe(bag, contract, recording.transport, Counter())}
    else:
        from onedp_ros.policy.predictor import load_predictor

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
