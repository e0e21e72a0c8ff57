"""Pre-training of a diffusion policy: ``python -m onedp_ros.learning.train``, alone or under ``accelerate launch``."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from onedp_ros.config import read_yaml, shown
from onedp_ros.contract import Contract, task_contract
from onedp_ros.files import write_atomically
from onedp_ros.learning.dataset import WindowDataset
from onedp_ros.policy.checkpoint import CheckpointError, load_policy, read_config, save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy
from onedp_ros.resources import resource, task_folder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound="DataclassInstance")
STATE = "state.safetensors"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the pre-training; the defaults are Diffusion Policy's."""

    steps: int
    batch_size: int = 64
    accumulation: int = 1
    noise_samples: int = 1
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    max_grad_norm: float = float("inf")
    ema_power: float = 0.75
    ema_max: float = 0.9999
    mixed_precision: str = "bf16"
    save_every: int = 5000
    seed: int = 0
    init: str = ""
    """Checkpoint whose weights and normaliser to begin with; empty: none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        settings_error(self, ("steps", "batch_size", "accumulation", "noise_samples", "save_every", "learning_rate"))


def settings_error(config: Any, positive: Sequence[str]) -> None:
    """ValueError that names the first of ``positive`` settings that is not, or an unknown precision."""
    for name in (*positive, "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}, expected a positive number")
    if config.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed_precision is '{config.mixed_precision}', expected 'no' or 'bf16'")


def make_config(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """A configuration of a section's settings. ValueError names a setting that there is not."""
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"unknown settings {shown(unknown)}; known are {known}")
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str}
    for field in dataclasses.fields(kind):
        value, expected = settings.get(field.name, field.default), kinds.get(str(field.type))
        if expected and field.name in settings and (isinstance(value, bool) or not isinstance(value, expected)):
            raise ValueError(f"{field.name} is {shown(value)}, expected {field.type}; see config/train/compact.yaml")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"settings {shown(dict(settings))} are incomplete or of a wrong kind: {error}") from error


def read_section(path: str | Path, section: str) -> dict[str, Any]:
    """One section of a ``config/train`` file. ValueError when it is not there."""
    data = read_yaml(path)
    if not isinstance(data.get(section), Mapping):
        raise ValueError(f"{path} has no section '{section}'; see config/train/compact.yaml")
    return dict(data[section])


def train(
    data: str | Path,
    out: str | Path,
    network: NetworkConfig,
    config: TrainConfig,
    resume: bool = False,
    contract: Contract | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Train a diffusion policy and write its EMA weights as a checkpoint to ``out``.

    ``out`` also gets ``state.safetensors`` every ``save_every`` steps, from which ``resume`` goes on to the same result as an
    uninterrupted run, TensorBoard logs, and ``train.json``.

    Args:
        data: replay buffer (see :mod:`onedp_ros.learning.dataset`).
        out: directory.
        network: sizes.
        config: settings.
        resume: go on from ``out/state.safetensors``; begin when there is none.
        contract: when given, the data must be of it.
        stop_at: end early at this step, as if interrupted (the schedule stays that of ``config.steps``).

    Returns:
        What train.json holds: gradient steps and wall-clock (s), those of the checkpoint begun with included, loss, and so on.

    Raises:
        CheckpointError, ContractError: ``config.init`` is damaged, of another network or of another contract.
    """
    out = Path(out)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with="tensorboard", project_dir=out)
    # Gradients of the processes are averaged, so the result is that of one process with the whole batch.
    share, rest = divmod(config.batch_size, accelerator.num_processes)
    if rest:
        raise ValueError(f"train.batch_size {config.batch_size} is not a multiple of the {accelerator.num_processes} processes")
    with accelerator.local_main_process_first():
        dataset = WindowDataset(data, contract, unpack=True)
    set_seed(config.seed)
    earlier: dict[str, Any] = {}
    if config.init:
        earlier = read_config(config.init)["training"]
        policy = load_policy(config.init, contract=dataset.contract, network=network).train()
    else:
        policy = Policy(dataset.contract, network, dataset.normalizer())
    policy.encoders.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        policy.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    model, optimizer = accelerator.prepare(policy, optimizer)
    ema = EMAModel(policy.parameters(), config.ema_max, use_ema_warmup=True, power=config.ema_power, foreach=True)
    ema.to(accelerator.device)

    made_of = dataclasses.asdict(config) | {"network": network.to_dict(), "data": dataset.stamp}
    made_of["processes"] = accelerator.num_processes
    step, seconds = 0, 0.0
    if resume and (out / STATE).exists():
        step, seconds = load_state(out / STATE, policy, {"adam": optimizer}, ema, made_of, accelerator.device)
        for _ in range(step):
            schedule.step()
        log.info("resuming %s at step %d", out, step)
    accelerator.init_trackers("tensorboard")
    micro = config.accumulation
    batches = dataset.batches(share, step * micro, config.seed, accelerator.process_index, accelerator.num_processes)
    generator = torch.Generator(accelerator.device)
    begin, loss_mean = time.monotonic() - seconds, float("nan")
    end = min(config.steps, stop_at or config.steps)
    bar = tqdm(
        total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process, mininterval=2, smoothing=0.02
    )
    while step < end:
        generator.manual_seed(((config.seed * 1_000_003 + step) << 10) + accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        for _ in range(micro):
            loss = model(next(batches).to(accelerator.device), generator, config.noise_samples) / micro
            accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ema.step(policy.parameters())
        step += 1
        bar.update()
        if step % 20 == 0 or step == end:
            value = accelerator.reduce(total, "mean").item()
            if value != value:
                raise RuntimeError(f"the loss is NaN at step {step}; begin anew with a smaller --learning-rate")
            loss_mean = value if loss_mean != loss_mean else 0.9 * loss_mean + 0.1 * value
            bar.set_postfix(loss=f"{loss_mean:.4f}")
            accelerator.log({"loss": value, "grad_norm": float(norm), "learning_rate": schedule.get_last_lr()[0]}, step)
        if (step % config.save_every == 0 or step == end) and accelerator.is_main_process:
            seconds = time.monotonic() - begin
            result = {
                "gradient_steps": step + earlier.get("gradient_steps", 0),
                "planned_steps": config.steps,
                "wall_clock_s": round(seconds + earlier.get("wall_clock_s", 0.0), 1),
                "loss": loss_mean,
                "windows": len(dataset),
                "episodes": len(dataset.episode_ends),
                "epochs": round(step * micro * config.batch_size / len(dataset), 2),
                "processes": accelerator.num_processes,
                "data": Path(data).name,
                "train": dataclasses.asdict(config),
            }
            save_ema(out, policy, ema, result)
            write_atomically(out / "train.json", (json.dumps(result, indent=2) + "\n").encode())
            # last, so that a run that dies in between does these steps, and what they write, again
            save_state(out / STATE, step, seconds, policy, {"adam": optimizer}, ema, made_of)
    batches.close()
    bar.close()
    accelerator.end_training()
    return json.loads((out / "train.json").read_text()) if (out / "train.json").exists() else {}


def save_ema(out: Path, policy: Policy, ema: EMAModel, training: dict[str, Any]) -> None:
    """Write the averaged weights as a checkpoint, float32 (``onedp release`` halves them)."""
    ema.store(policy.parameters())
    ema.copy_to(policy.parameters())
    save_policy(out, policy, training, torch.float32)
    ema.restore(policy.parameters())


def save_state(
    path: Path,
    step: int,
    seconds: float,
    model: nn.Module,
    optimizers: dict[str, Any],
    ema: EMAModel,
    made_of: Mapping[str, Any],
) -> None:
    """All that a run needs to go on: one safetensors file, its header holding the step and what the run is ``made_of``: settings
    and data."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{i}": value for i, value in enumerate(ema.shadow_params)}
    for name, optimizer in optimizers.items():
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{slot}": value for slot, value in slots.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"step": step, "seconds": seconds, "ema_step": ema.optimization_step, "made_of": dict(made_of)}
    run = json.dumps(header)
    write_atomically(path, save(tensors, metadata={"run": run, "sha256": _digest(run, tensors)}))


def _digest(run: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(run.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(
    path: Path, model: nn.Module, optimizers: dict[str, Any], ema: EMAModel, made_of: Mapping[str, Any], device: torch.device
) -> tuple[int, float]:
    """Inverse of :func:`save_state`: the step and seconds reached.

    Raises:
        CheckpointError: a damaged file, or a run with other settings, another network or other data; names it.
    """
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(metadata["run"], tensors):
            raise ValueError("its digest differs")
        header = json.loads(metadata["run"])
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or of an earlier version ({error}); begin anew with another --out") from error
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    for name, value in json.loads(json.dumps(dict(made_of))).items():
        if header["made_of"].get(name) != value and name not in ("save_every", "steps"):
            raise CheckpointError(f"{path}: {name} was {header['made_of'].get(name)}, now {value}; resume as it was begun")
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    ema.shadow_params = [tensors[f"ema.{i}"] for i in range(len(ema.shadow_params))]
    ema.optimization_step = header["ema_step"]
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, i, slot = key.split(".")
                like = parameters[int(i)]
                # A fused optimiser goes through memory: moments must lie in the order of their channels-last parameter.
                state.setdefault(int(i), {})[slot] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return header["step"], header["seconds"]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``onedp train`` and ``onedp distill``."""
    parser.add_argument("task", help="name of a file in config/tasks, or path of a task file; names the default paths")
    parser.add_argument("--data", type=Path, help="replay buffer made by 'onedp convert' (default out/<task>/data.zarr)")
    parser.add_argument("--config", type=Path, help="network and settings (default: config/train/compact.yaml)")
    parser.add_argument("--steps", type=int, help="gradient steps, in place of the configured ones")
    parser.add_argument("--resume", action="store_true", help="go on where a run in --out was interrupted")
    parser.add_argument("--threads", type=int, help="CPU threads")


def prepare(args: argparse.Namespace, section: str) -> tuple[Path, Path, dict[str, Any]]:
    """Data, configuration file and the settings of ``section`` that the common arguments ask for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = args.config or resource("config", "train", "compact.yaml")
    settings = read_section(config, section)
    if args.steps:
        settings["steps"] = args.steps
    return args.data or task_folder(args.task) / "data.zarr", config, settings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="onedp train", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--out", type=Path, help="directory for the checkpoint, logs and train.json (default out/<task>/teacher)")
    parser.add_argument("--init", type=Path, help="checkpoint to begin with, for example models/<task>/teacher")
    parser.add_argument("--learning-rate", type=float, help="in place of the configured one")
    args = parser.parse_args(argv)
    data, config, settings = prepare(args, "train")
    if args.init:
        settings["init"] = str(args.init)
    if args.learning_rate:
        settings["learning_rate"] = args.learning_rate
    network = NetworkConfig.from_dict(read_section(config, "network"))
    out = args.out or task_folder(args.task) / "teacher"
    result = train(data, out, network, make_config(TrainConfig, settings), args.resume, task_contract(args.task))
    print(json.dumps({k: v for k, v in result.items() if k != "train"}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
