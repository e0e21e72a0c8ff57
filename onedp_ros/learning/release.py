"""``onedp release``: a trained checkpoint -> a bundle for ``models/``: float16 weights, configuration, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onedp_ros.files import write_atomically
from onedp_ros.policy.checkpoint import CONFIG, WEIGHTS, load_policy, read_config, save_policy
from onedp_ros.policy.networks import NetworkConfig

CARD = "MODEL_CARD.md"
MAX_BYTES = 20_000_000


def release(checkpoint: Path, out: Path, evaluations: Sequence[Path], commands: Sequence[str]) -> Path:
    """Write the bundle ``out``.

    Args:
        checkpoint: directory that ``onedp train`` or ``onedp distill`` wrote.
        out: directory of the bundle.
        evaluations: JSON files of ``onedp evaluate`` with this bundle's weights, for the card.
        commands: the commands that produced it, for the card.

    Raises:
        ValueError: the bundle would be larger than 20 MB, which is too much for a repository.
    """
    policy = load_policy(checkpoint)
    config = read_config(checkpoint)
    size = 2 * sum(tensor.numel() for tensor in policy.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"{out} would take {size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}; release a smaller network")
    save_policy(out, policy, config["training"])
    results = [json.loads(path.read_text(encoding="utf-8")) for path in evaluations]
    write_atomically(out / CARD, card(config, results, commands).encode())
    return out


def card(config: dict[str, Any], results: Sequence[dict[str, Any]], commands: Sequence[str]) -> str:
    """Text of the model card."""
    contract, training = config["contract"], config["training"]
    network = NetworkConfig.from_dict(config["network"]).name
    cameras = ", ".join(f"{n} {c['width']}x{c['height']}" for n, c in contract["cameras"].items())
    steps, seconds = training.get("gradient_steps", 0), training.get("wall_clock_s", 0.0)
    lines = [
        f"# {contract['task']}: {config['method']}",
        "",
        f"Released with onedp_ros. Sees {cameras} and the arm's state; predicts {contract['horizon']} absolute target poses and "
        f"gripper openings, {1 / contract['control_hz']:.2f} s apart.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network}, {config['parameters'] / 1e6:.1f} M parameters, float16 in `{WEIGHTS}` |",
        f"| contract | in `{CONFIG}`; a node with another one refuses to start |",
        f"| training | {steps} gradient steps, {seconds / 60:.0f} min wall-clock |",
    ]
    if pretraining := training.get("pretraining_steps"):
        lines.append(f"| distillation / pre-training | {steps / pretraining:.3f} of the gradient steps |")
    lines += [
        "",
        "## Success in the twin",
        "",
        "| task | method | NFE | executed | success | 95 % | mean time | episodes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        mean = "-" if r["mean_time_s"] is None else f"{r['mean_time_s']:.1f} s"
        low, high = r["ci95"]
        executed = f"{r['action_steps']} of a chunk, from {r['lead_s']:.2f} s on"
        if r.get("latency") is not None:
            executed = f"by time, latency {r['latency']}, {r['lead_s']:.2f} s ahead"
        task = ", ".join([r["task"], *(f"{name} {value}" for name, value in r.get("options", {}).items())])
        lines.append(
            f"| {task} | {r['method']} | {r['nfe']} | {executed} | {r['success_rate']:.2f} | {low:.2f} to {high:.2f} | {mean} | "
            f"{r['episodes']}, seeds from {r['seed']} |"
        )
    lines += ["", "Evaluation seeds were never trained on. The scene is simulated; nothing is known of the real arm.", ""]
    lines += ["## How it was made", "", "```", *commands, "```", ""]
    return "\n".join(lines)
