"""Checkpoints: a directory with ``config.json`` (contract, network, method, normaliser, training, versions) and
``model.safetensors``. Nothing in them is executed when they are loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load, save

from onedp_ros.config import ConfigError, parse_json, read_json, shown
from onedp_ros.contract import Contract, Normalizer
from onedp_ros.files import write_atomically
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy, Sampler
from onedp_ros.resources import names_of_files, policy_task, resource

FORMAT = 3
"""1: the digest covers the weights only. 2: config.json has a digest of its own content, which includes the weights' digest.
3: the contract lists the features of state and action."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
TYPES = ("F16", "BF16", "F32")  # of weights
_FIELDS: dict[str, type] = {
    "method": str,
    "contract": dict,
    "network": dict,
    "normalizer": dict,
    "training": dict,
    "weights_sha256": str,
}
_MAX_HEADER = 2**22  # bytes; the paper's network has 30,000
Kind = TypeVar("Kind", bound=Sampler)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the remedy."""


class DamagedCheckpointError(CheckpointError):
    """A file is missing, truncated or not what config.json describes."""


class IncompatibleCheckpointError(CheckpointError):
    """The checkpoint is intact, but its format, network or method is not the expected one."""


def save_policy(path: str | Path, policy: Policy, training: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write ``policy`` to the directory ``path``.

    Args:
        path: directory, created when missing; an older checkpoint in it is replaced.
        policy: what to write.
        training: how it was trained (plain data), kept in config.json.
        dtype: of the stored weights; float16 halves a released policy.
    """
    path = Path(path)
    weights = save({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in policy.state_dict().items()})
    config = {
        "format": FORMAT,
        "method": policy.method.name,
        "contract": policy.contract.to_dict(),
        "network": policy.config.to_dict(),
        "normalizer": policy.normalizer.to_dict(),
        "training": training,
        "versions": {name: version(name) for name in ("torch", "diffusers", "safetensors", "numpy")},
        "parameters": sum(p.numel() for p in policy.parameters()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    config["config_sha256"] = config_digest(config)
    write_atomically(path / WEIGHTS, weights)
    write_atomically(path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the content of a config.json without its ``config_sha256``, independent of its layout."""
    content = {name: value for name, value in config.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of the checkpoint directory ``path``, of this format or an older one.

    Raises:
        DamagedCheckpointError: it cannot be read, or was modified after it was written.
        IncompatibleCheckpointError: its format is newer.
    """
    file = Path(path) / CONFIG
    try:
        config = read_json(file, finite=False)  # a limit in the training settings may be infinite
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} does not exist; give the directory that holds {CONFIG} and {WEIGHTS}") from error
    except (ConfigError, OSError) as error:
        raise DamagedCheckpointError(f"{error}; fetch or save the checkpoint again") from error
    if missing := sorted({"format", *_FIELDS} - set(config)):
        raise DamagedCheckpointError(f"{file} lacks {missing}; fetch or save the checkpoint again")
    if type(config["format"]) is not int or not 1 <= config["format"] <= FORMAT:
        raise IncompatibleCheckpointError(
            f"{file} has format {shown(config['format'])}, this program reads 1 to {FORMAT}; use a matching version"
        )
    if config["format"] > 1 and config.get("config_sha256") != config_digest(config):
        raise DamagedCheckpointError(
            f"{file} was modified after it was written: it does not match its config_sha256; fetch or save the checkpoint again"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config[name], kind):
            raise DamagedCheckpointError(
                f"{file}: {name} is {shown(config[name])}, expected {kind.__name__}; fetch or save the checkpoint again"
            )
    return config


def load_policy(
    path: str | Path,
    method: str | None = None,
    contract: Contract | None = None,
    network: NetworkConfig | None = None,
) -> Policy:
    """Read a policy, float32, on the CPU, in evaluation mode.

    Args:
        path: checkpoint directory.
        method: another method with the same weights, for example ``dp_ddim10`` for a ``dp_ddpm100`` checkpoint.
        contract: when given, the checkpoint must have been made with it.
        network: when given, the checkpoint must have this network.

    Raises:
        DamagedCheckpointError: files are missing, truncated or modified.
        IncompatibleCheckpointError: it has another format or network, or weights of another method.
        UnknownNameError: no such method.
        ContractError: it has another contract; names the field.
    """
    path = Path(path)
    stored = _check_header(path / WEIGHTS)
    policy = _build(Policy, path, method, contract, stored)
    for field in dataclasses.fields(NetworkConfig) if network is not None else ():
        ours, theirs = getattr(network, field.name), getattr(policy.config, field.name)
        if ours != theirs:
            raise IncompatibleCheckpointError(
                f"{path}: network {field.name} is {theirs}, expected {ours}; use that network's checkpoint"
            )
    weights = _read_weights(path)
    if spoiled := sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all()):
        raise DamagedCheckpointError(
            f"{path / WEIGHTS}: '{spoiled[0]}' holds NaN or infinity: its training diverged; use an earlier checkpoint"
        )
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise IncompatibleCheckpointError(
            f"{path / WEIGHTS}: {len(wrong)} tensors do not fit the network in {CONFIG}, first '{wrong[0]}': shape "
            f"{found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'none')}; the files belong to different networks"
        )
    policy.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return policy.eval()


def load_sampler(path: str | Path, method: str | None = None, contract: Contract | None = None) -> tuple[Sampler, str]:
    """A checkpoint without its networks, for an engine that has them already, and the digests (SHA-256, hex) of its files.

    Arguments and errors as for :func:`load_policy`, but weights are not compared with the network.
    """
    path = Path(path)
    _check_header(path / WEIGHTS)
    sampler = _build(Sampler, path, method, contract)
    digests = [hashlib.sha256(data).hexdigest() for data in (_read_bytes(path), (path / CONFIG).read_bytes())]
    return sampler, "".join(digests)


def find_released(task: str, method: str) -> Path:
    """The released checkpoint for a method: the directory ``models/<task>/<weights>``.

    Args:
        task: name of the task, or path of its file, which may name another task's policies.
        method: name of the method.

    Raises:
        UnknownNameError: no such method.
        FileNotFoundError: nothing was released for it.
    """
    if task.endswith((".yaml", ".yml")) or task in names_of_files("tasks"):
        task = policy_task(task)
    try:
        return resource("models", task, find_method(method).weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no policy is released for {task}, {method}: give your own checkpoint directory, model") from error


def _build(kind: type[Kind], path: Path, method: str | None, contract: Contract | None, stored: int | None = None) -> Kind:
    """Build what config.json describes, with ``method`` in place of its own. Errors as for :func:`load_policy`.

    ``stored``: number of values in the weights file; a network that clearly needs more is not built.
    """
    config = read_config(path)
    try:
        its_contract = Contract.from_dict(config["contract"])
        its_network = NetworkConfig.from_dict(config["network"])
        least = its_network.least_parameters(its_contract)
        if stored is not None and stored < least:
            raise IncompatibleCheckpointError(
                f"{path / WEIGHTS} holds {stored} values, the network in {CONFIG} has more than {least}; the files belong to "
                f"different networks"
            )
        made = kind(its_contract, its_network, Normalizer.from_dict(config["normalizer"], its_contract), config["method"])
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpointError(f"{path / CONFIG}: {error}; fetch or save the checkpoint again") from error
    if contract is not None:
        contract.require_policy(its_contract, str(path))
    if method is not None and method != made.method.name:
        other = find_method(method)
        if other.weights != made.method.weights:
            raise IncompatibleCheckpointError(
                f"{path} holds weights of {made.method.name}, which cannot be used as {method}; give the {method} checkpoint"
            )
        made.method = other
    return made


def _check_header(file: Path) -> int:
    """Number of values in a safetensors file. DamagedCheckpointError when it is no such file, or has weights of another type."""
    try:
        with open(file, "rb") as stream:
            size, (length,) = os.fstat(stream.fileno()).st_size, struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
            if length > min(_MAX_HEADER, size - 8):
                raise ConfigError(f"{file} ({size} bytes) is truncated or not safetensors")
            header = parse_json(stream.read(length).decode(), str(file))
        header.pop("__metadata__", None)
        values, end = 0, 0
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            kind, shape, (first, last) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
            if kind not in TYPES:
                raise ConfigError(f"{file}: '{shown(name)[1:-1]}' is of type {shown(kind)}, expected one of {', '.join(TYPES)}")
            if first != end or last - first != math.prod(shape) * (4 if kind == "F32" else 2) or min([*shape, 0]) < 0:
                raise ConfigError(f"{file}: '{shown(name)[1:-1]}' has the shape {shown(shape)}, which does not match its data")
            values, end = values + math.prod(shape), last
        if end != size - 8 - length:
            raise ConfigError(f"{file} ({size} bytes) is truncated or not safetensors")
        return values
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} does not exist; fetch or save the checkpoint again") from error
    except ConfigError as error:
        raise DamagedCheckpointError(f"{error}; fetch or save the checkpoint again") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"{file} is truncated or not safetensors ({error}); fetch or save it again") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    data = _read_bytes(path)
    try:
        return load(data)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path / WEIGHTS} is not safetensors ({error}); fetch or save it again") from error


def _read_bytes(path: Path) -> bytes:
    """Content of the weights file. DamagedCheckpointError when config.json was written with another one."""
    file = path / WEIGHTS
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} does not exist; fetch or save the checkpoint again") from error
    if hashlib.sha256(data).hexdigest() != read_config(path)["weights_sha256"]:
        raise DamagedCheckpointError(
            f"{file} ({len(data)} bytes) is truncated, or not the file that {CONFIG} was written with; fetch or save both again"
        )
    return data
