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
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onedp_ros.evaluation.replay_report import compare, plot, table
from onedp_ros.evaluation.replayed import contract_of, digests, observe, read_recording, replay_offline
from onedp_ros.graph.processes import released

MOST = 0.9  # of the recorded sets must be made again; live, frames may have come in another order


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
        from onedp_ros.evaluation.replay_live import replay_in_graph

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
