"""The golden recording: a second of a demonstration, and what the released policies predict for it in eager float32.

How it is made: README.md in ``models/<task>/golden``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader
from safetensors.numpy import load_file, save

from onedp_ros.contract import NANOSECONDS, Contract, Observation
from onedp_ros.data.bags.reader import read_metadata
from onedp_ros.data.bags.writer import BagWriter
from onedp_ros.evaluation.replayed import observe, recorded_contract, windows
from onedp_ros.policy.checkpoint import find_released
from onedp_ros.resources import default_task, resource

METHODS = ("onedp_s", "onedp_d", "dp_ddim10")
SEED = 7
BEGIN, END = 0.9, 2.1  # s: from the end of the approach, past the closing of the hand at 1.58, to the start of the lift
EVERY = 4  # use every fourth window


def golden(task: str) -> tuple[Path, dict[str, NDArray[Any]]]:
    """Path of the bag, and arrays by name: each method's actions (N, horizon, 10), and ``stamps`` (N,) ns of the windows."""
    folder = resource("models", task, "golden")
    return folder / "bag", load_file(folder / "actions.safetensors")


def golden_windows(bag: Path) -> list[list[Observation]]:
    """Every fourth window of the bag, as the live code forms it."""
    contract = recorded_contract(bag, default_task())
    return list(windows(contract, observe(bag, contract, "raw", Counter()), None, whole=True))[::EVERY]


def cut(bag: Path, out: Path, begin: float, end: float) -> None:
    """Copy what was logged between two times (s after the bag's start), byte for byte."""
    metadata = read_metadata(bag)
    contract = Contract.from_dict(metadata.pop("contract"))
    notes = {**metadata, "cut": {"from": bag.name, "begin_s": begin, "end_s": end}}
    with Reader(bag) as reader:
        topics = {c.topic.lstrip("/"): c.msgtype for c in reader.connections}
        first, last = (reader.start_time + round(at * NANOSECONDS) for at in (begin, end))
        with BagWriter(out, contract, topics, notes) as writer:
            for connection, logged, data in reader.messages(start=first, stop=last):
                writer.write(connection.topic.lstrip("/"), logged, data)


def main(argv: Sequence[str] | None = None) -> int:
    from onedp_ros.policy.predictor import load_predictor

    parser = argparse.ArgumentParser(prog="python -m onedp_ros.evaluation.golden", description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("out", type=Path, help="folder to write to, without a bag in it")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    cut(args.bag, args.out / "bag", BEGIN, END)
    chosen = golden_windows(args.out / "bag")
    task = recorded_contract(args.out / "bag", default_task()).task
    tensors: dict[str, NDArray[Any]] = {"stamps": np.array([w[-1].stamp for w in chosen])}
    for method in METHODS:
        predictor = load_predictor(find_released(task, method), method, "torch", SEED)
        tensors[method] = np.concatenate([predictor.predict([window]) for window in chosen])
    notes = {"seed": SEED, "engine": "torch", "versions": read_metadata(args.out / "bag")["versions"]}
    (args.out / "actions.safetensors").write_bytes(save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    print(f"{args.out}: {len(chosen)} windows, {sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file())} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
