"""``onedp import``: a checkpoint of another program -> a checkpoint of this one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from onedp_ros.contract import Contract
from onedp_ros.learning.imports import IMPORTS
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.policies import Policy


class PolicyImportError(ValueError):
    """A checkpoint that cannot be imported; the message names the file, the settings and their values, and the remedy."""


@dataclasses.dataclass(frozen=True)
class ImportedPolicy:
    """A policy read from another program's checkpoint.

    Attributes:
        policy: with the checkpoint's weights and normaliser.
        origin: where the weights come from (plain data), for config.json.
        gradient_steps: of its training; None: unknown.
        notes: in what the policy behaves differently here, a sentence each.
    """

    policy: Policy
    origin: Mapping[str, Any]
    gradient_steps: int | None = None
    notes: tuple[str, ...] = ()


ReadPolicy = Callable[[Path, Contract, Mapping[str, str]], ImportedPolicy]
"""(checkpoint file, contract of the task, names in the contract of cameras and state features that have other names in the
checkpoint, by the latter) -> policy. Executes nothing that the file holds. PolicyImportError: it cannot be imported, or does not
fit the contract."""


def import_policy(file: Path, program: str, contract: Contract, names: Mapping[str, str], out: Path) -> ImportedPolicy:
    """Read the checkpoint ``file`` of ``program`` and write it as a checkpoint, float32, to the directory ``out``.

    Args:
        file: the other program's checkpoint.
        program: one of :data:`onedp_ros.learning.imports.IMPORTS`.
        contract: of the task that the policy is for.
        names: see :data:`ReadPolicy`.
        out: directory of the new checkpoint.

    Raises:
        PolicyImportError: the file cannot be imported, or does not fit the contract.
        UnknownNameError: no such program.
        OSError: the file cannot be read, or ``out`` not written.
    """
    if contract.policy:
        raise PolicyImportError(
            f"the task {contract.task} uses policies of the task {contract.policy}; give the task file of {contract.policy}"
        )
    imported = IMPORTS.get(program)(file, contract, names)
    origin = {"program": program, "file": file.name, "sha256": _sha256(file), **imported.origin}
    training: dict[str, Any] = {"imported": origin}
    if imported.gradient_steps is not None:
        training["gradient_steps"] = imported.gradient_steps
    save_policy(out, imported.policy, training, torch.float32)
    return imported


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
