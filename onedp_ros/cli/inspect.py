"""Show what bags or training sets contain: rates, gaps, ranges, pictures."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when everything can be read, fits its contract and has no problems or warnings, else 2."""
    parser = argparse.ArgumentParser(prog="onedp inspect", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="bags, folders of bags, or data sets that 'onedp convert' reads")
    parser.add_argument("--task", help="task name or task file (default: the contract stored in each bag)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--out", type=Path, help="folder for two pictures per bag: camera frames, and motion over time")
    parser.add_argument("--rerun", action="store_true", help="also write a rerun.io file there (pip install rerun-sdk==0.23.1)")
    args = parser.parse_args(argv)
    if args.rerun and not args.out:
        parser.error("--rerun writes to the folder of --out; give --out, too")
    from tqdm import tqdm

    from onedp_ros.contract import Contract, ContractError, task_contract
    from onedp_ros.data.bags.reader import BagError, find_bags
    from onedp_ros.data.convert import READERS
    from onedp_ros.data.episodes import SourceError
    from onedp_ros.evaluation.bag_reading import write_rerun
    from onedp_ros.evaluation.inspect import InspectError, draw, inspect_bag, inspect_set, sum_up
    from onedp_ros.evaluation.inspect_lines import bag_lines, bags_lines, dataset_lines

    contract = task_contract(args.task) if args.task else None
    sets = [p for p in args.paths if any(reader.recognises(p) for reader in READERS)]
    others = [p for p in args.paths if p not in sets]
    found, broken = find_bags(others) if others else ([], {})
    names = Counter(bag.name for bag in found)
    if args.out and (twice := [name for name, count in names.items() if count > 1]):
        parser.error(f"two bags are named {twice[0]}; inspect them one at a time, with different --out")
    unreadable = {str(bag): reason for bag, reason in broken.items()}
    bags: list[dict[str, Any]] = []
    written: list[Path] = []
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    for bag in tqdm(found, unit="bag", desc="inspect", disable=len(found) < 2):
        try:
            report, recording = inspect_bag(bag, contract)
        except (BagError, ContractError) as error:
            unreadable[str(bag)] = str(error)
            continue
        bags.append(report)
        if args.out:
            written += draw(report, recording, args.out)
        if args.rerun:
            written.append(args.out / f"{bag.name}.rrd")
            write_rerun(bag, Contract.from_dict(report["contract"]) if report["contract"] else None, written[-1])
    datasets: list[dict[str, Any]] = []
    for path in sets:
        try:
            datasets.append(inspect_set(path, contract))
        except (InspectError, SourceError, ContractError) as error:
            unreadable[str(path)] = str(error)
    totals = sum_up(bags, unreadable)

    lines = bags_lines(bags) if len(bags) > 1 else [line for report in bags for line in bag_lines(report)]
    lines += [f"cannot be read: {bag}: {reason}" for bag, reason in unreadable.items()]
    if len(bags) + len(unreadable) > 1:
        lines.append(
            "{bags} bags, {seconds:.1f} s, {steps} steps; {successful} successful, {unsuccessful} not; {fit} fit their contract, "
            "{unreadable} cannot be read".format(**totals)
        )
    lines += [line for report in datasets for line in dataset_lines(report)]
    lines += [f"written {path}" for path in written]
    print("\n".join(lines))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"bags": bags, "unreadable": unreadable, "totals": totals, "datasets": datasets}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written {args.json}")
    doubtful = any(r["problems"] or r["warnings"] for r in datasets)
    return 0 if not unreadable and all(r["fits"] for r in bags) and not doubtful else 2
