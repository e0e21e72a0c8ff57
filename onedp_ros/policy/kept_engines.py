"""What one start of a policy keeps for the next: compiled engines, and which of them was fastest."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from onedp_ros.policy import engine_cache
from onedp_ros.policy.engine_parity import PARITY_BOUND, difference, example_actions
from onedp_ros.policy.engines import AUTO, ENGINES
from onedp_ros.policy.engines.base import Engine
from onedp_ros.policy.policies import Sampler

log = logging.getLogger(__name__)


class KeptEngines:
    """Engines kept by earlier starts with the same checkpoint, threads, processor and software.

    Args:
        digests: of the checkpoint's files.
        threads: CPU threads of the engine.
    """

    def __init__(self, digests: str, threads: int) -> None:
        self._threads = threads
        packages = {package for name in ENGINES.names() for package in ENGINES.get(name).packages}
        self.key = {
            "checkpoint": digests,
            "threads": threads,
            "processor": _processor(),
            "program": _program(),
            "versions": {name: _version(name) for name in sorted({"torch", *packages})},
        }
        self._folder: Path | None = None
        try:
            self._folder = engine_cache.cache_folder()
        except OSError as error:
            log.warning("engines are not kept for the next start: %s", error)

    def choice(self) -> str:
        """Name of the engine that was fastest; empty when that is unknown, or the engine no longer exists."""
        name = (self._read(AUTO) or b"").decode()
        return name if name in ENGINES else ""

    def restore(self, name: str, sampler: Sampler, progress: Callable[[str], None]) -> tuple[Engine, float] | None:
        """A kept engine and its difference from eager PyTorch; None when there is no usable one."""
        if (data := self._read(name)) is None:
            return None
        progress(f"restoring engine {name} from an earlier start")
        try:
            arrays = safetensors.numpy.load(data)
            reference = torch.from_numpy(arrays.pop("reference"))
            engine = ENGINES.get(name).restore({network: array.tobytes() for network, array in arrays.items()}, self._threads)
            parity = difference(reference, example_actions(sampler, engine))
        except Exception as error:  # engines' errors have no common base class, and it can be compiled again
            log.warning("the kept engine %s cannot be used and is compiled again: %s", name, error)
            return None
        return (engine, parity) if parity <= PARITY_BOUND else None

    def keep(self, name: str, engine: Engine, reference: Tensor) -> None:
        """Keep an engine, if it can be exported, with eager PyTorch's actions, to compare it with when it is restored."""
        if self._folder is None:
            return
        try:
            if networks := engine.export():
                arrays = {network: np.frombuffer(data, np.uint8) for network, data in networks.items()}
                self._write(name, safetensors.numpy.save(arrays | {"reference": reference.numpy()}))
        except (OSError, RuntimeError) as error:  # a full disk, a network that cannot be exported: the next start takes longer
            log.warning("engine %s is not kept for the next start: %s", name, error)

    def keep_choice(self, name: str) -> None:
        """Remember which engine was fastest."""
        try:
            self._write(AUTO, name.encode())
        except OSError as error:
            log.warning("the choice of engine %s is not kept for the next start: %s", name, error)

    def _read(self, name: str) -> bytes | None:
        return None if self._folder is None else engine_cache.read(self._folder, self.key | {"engine": name})

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is not None:
            engine_cache.write(self._folder, self.key | {"engine": name}, data)


def _program() -> str:
    """Digest (hex) of the code that decides how a checkpoint is compiled."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """Model name and instruction sets of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
