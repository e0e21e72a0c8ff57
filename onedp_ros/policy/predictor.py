"""Inference: one interface to all engines, each camera frame encoded once.

An engine is used only if its output agrees with eager PyTorch on fixed inputs; ``auto`` takes the fastest of those. Compiled
networks and the choice of ``auto`` are kept (:mod:`onedp_ros.policy.kept_engines`), so that the next start neither reads nor
converts the networks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onedp_ros.contract import Contract, Image, Observation
from onedp_ros.policy.checkpoint import load_policy, load_sampler
from onedp_ros.policy.engine_parity import PARITY_BOUND, difference, example_actions, measure_seconds
from onedp_ros.policy.engines import AUTO, ENGINES
from onedp_ros.policy.engines.base import Engine, EngineError
from onedp_ros.policy.engines.torch import TorchEngine
from onedp_ros.policy.kept_engines import KeptEngines
from onedp_ros.policy.policies import Policy, Sampler

log = logging.getLogger(__name__)


class Predictor:
    """A policy on an engine. Create it with :func:`load_predictor`.

    A chunk depends only on the seed and its window, not on earlier or simultaneous predictions: the noise is seeded by ``seed`` and
    the newest observation's stamp. So replaying the same observations gives the same chunks.

    Attributes:
        contract: what the policy sees and predicts.
        method: for example ``onedp_s``.
        nfe: network evaluations of one prediction.
        engine: name of the engine in use.
        network: ``paper``, ``compact``, or the sizes.
        parity: the engine's greatest difference from eager PyTorch, checked at load, in normalised action units.
        encode_ms: time the last prediction spent on encoding new frames, ms.
    """

    def __init__(self, policy: Sampler, runner: Engine, engine: str, parity: float, seed: int) -> None:
        self.policy = policy.to(runner.device)
        self.contract: Contract = policy.contract
        self.method: str = policy.method.name
        self.nfe: int = policy.nfe
        self.network = policy.config.name
        self.engine, self.parity = engine, parity
        self.encode_ms = 0.0
        self._runner = runner
        self._frames = {camera: EncodedFrames(camera, runner) for camera in self.contract.cameras}
        self._random = torch.Generator(runner.device)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Set the seed of the noise."""
        self._seed = seed

    @torch.inference_mode()
    def predict(self, windows: Sequence[Sequence[Observation]]) -> NDArray[np.float32]:
        """Windows of ``n_obs_steps`` observations, oldest first -> action chunks (B, horizon, action).

        Frames seen in recent calls are not encoded again.

        Raises:
            ValueError: a window has another number of observations.
        """
        for window in windows:
            if len(window) != self.contract.n_obs_steps:
                raise ValueError(f"a window has {len(window)} observations, expected n_obs_steps = {self.contract.n_obs_steps}")
        begin = time.perf_counter()
        features = [frames.encode(windows) for frames in self._frames.values()]
        if self._runner.device.type == "cuda":
            torch.cuda.synchronize(self._runner.device)
        self.encode_ms = 1e3 * (time.perf_counter() - begin)
        state = torch.from_numpy(np.array([[o.state for o in window] for window in windows], np.float32))
        conditions = self.policy.condition(features, state.to(self._runner.device))
        chunks = [self._sample(c[None], window[-1].stamp) for c, window in zip(conditions, windows, strict=True)]
        return torch.cat(chunks).float().cpu().numpy()

    def _sample(self, condition: Tensor, stamp: int) -> Tensor:
        """A condition (1, condition) -> a chunk (1, horizon, action), with noise seeded by the stamp (ns)."""
        self._random.manual_seed(noise_seed(self._seed, stamp))
        return self.policy.sample_with(self._runner.denoise, condition, self._random)


class EncodedFrames:
    """Cache of the features of one camera's recent frames, keyed by their pixels. Stamps would not do: live observations repeat a
    camera's frame under the stamp of another camera's, and after a clock jump a stamp returns with another image.

    Args:
        camera: its name.
        runner: the engine that encodes.
    """

    def __init__(self, camera: str, runner: Engine) -> None:
        self._camera, self._runner = camera, runner
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()  # most recently used last

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, windows: Sequence[Sequence[Observation]]) -> Tensor:
        """Features (B, n_obs, 64) of the windows."""
        rows = [[self._find(o.images[self._camera]) for o in window] for window in windows]
        while len(self._known) > 4 * len(windows) + 16:
            self._known.popitem(last=False)
        return torch.stack([torch.stack(row) for row in rows])

    def _find(self, image: Image) -> Tensor:
        """Features (64,) of a frame, encoded unless cached."""
        pixels = image.tobytes()
        if pixels not in self._known:
            # one by one: the last bits of a batch's features depend on its size
            frame = torch.from_numpy(np.array(image[None])).to(self._runner.device)
            self._known[pixels] = self._runner.encode(self._camera, frame)[0]
        self._known.move_to_end(pixels)
        return self._known[pixels]


def noise_seed(seed: int, stamp: int) -> int:
    """Seed of one prediction's noise, from the policy's ``seed`` and the newest observation's ``stamp`` (ns). A hash, so that the
    lower 32 bits, which are all that some generators use, differ between neighbouring stamps."""
    return int.from_bytes(hashlib.blake2b(struct.pack("<qq", seed, stamp), digest_size=8).digest(), "little")


def load_predictor(
    path: str | Path,
    method: str | None = None,
    engine: str = AUTO,
    seed: int = 0,
    contract: Contract | None = None,
    threads: int = 0,
    progress: Callable[[str], None] = log.info,
) -> Predictor:
    """Load a checkpoint and start an engine for it.

    Args:
        path: checkpoint directory.
        method: another method with the same weights, for example ``dp_ddim10``.
        engine: one of :data:`ENGINES`, or ``auto``: the fastest that agrees with eager PyTorch, as found at the first start.
        seed: of the sampling noise.
        contract: when given, the checkpoint must have been made with it.
        threads: CPU threads of the engine; 0: half of the cores, since cameras, robot and the other nodes need the rest.
        progress: called with each stage as it begins, such as "converting the networks for OpenVINO".

    Raises:
        EngineError: the engine cannot run here or differs from eager by more than ``PARITY_BOUND``.
        UnknownNameError: no such engine or method.
        CheckpointError, ContractError: see :func:`onedp_ros.policy.checkpoint.load_policy`.
    """
    auto = engine == AUTO
    if not auto:
        ENGINES.get(engine)
    progress(f"reading {path}")
    sampler, digests = load_sampler(path, method, contract)
    threads = threads or max(1, len(os.sched_getaffinity(0)) // 2)
    torch.set_num_threads(threads)
    kept = KeptEngines(digests, threads)
    candidates = _candidates() if auto else []
    cacheable = not any(ENGINES.get(name).on_gpu for name in candidates)  # then the choice depends on the CPU alone
    name = (kept.choice() if cacheable else "") if auto else engine
    if name and (restored := kept.restore(name, sampler, progress)) is not None:
        return Predictor(sampler, restored[0], name, restored[1], seed)

    policy = load_policy(path, method, contract)
    if auto and name and ENGINES.get(name) is TorchEngine:
        return Predictor(policy, TorchEngine(policy), name, 0.0, seed)
    reference = example_actions(policy, TorchEngine(policy))
    if not auto:
        progress(f"starting engine {engine}")
        runner = ENGINES.get(engine).start(policy, threads)
        parity = difference(reference, example_actions(sampler, runner))
        if not parity <= PARITY_BOUND:
            raise EngineError(
                f"engine '{engine}' differs from eager PyTorch by {parity:.3g} (normalised action), more than {PARITY_BOUND}; "
                f"choose 'auto' or 'torch'"
            )
    else:
        name, runner, parity = _fastest(candidates, policy, sampler, reference, threads, progress)
        if cacheable:
            kept.keep_choice(name)
    kept.keep(name, runner, reference)
    return Predictor(policy if isinstance(runner, TorchEngine) else sampler, runner, name, parity, seed)


def _candidates() -> list[str]:
    """Names of the engines that ``auto`` tries, in this order."""
    names = sorted(ENGINES.names(), key=lambda name: -ENGINES.get(name).priority)
    available = [name for name in names if ENGINES.get(name).is_available()]
    if any(ENGINES.get(name).on_gpu for name in available):
        return [name for name in available if ENGINES.get(name).on_gpu or ENGINES.get(name) is TorchEngine]
    return available


def _fastest(
    names: Sequence[str],
    policy: Policy,
    sampler: Sampler,
    reference: Tensor,
    threads: int,
    progress: Callable[[str], None],
) -> tuple[str, Engine, float]:
    """Of the fastest engine that agrees with the reference: name, engine and difference. EngineError when none does."""
    best: tuple[float, str, Engine, float] | None = None
    for name in names:
        progress(f"trying engine {name}")
        try:
            runner = ENGINES.get(name).start(policy, threads)
            parity = difference(reference, example_actions(sampler, runner))
        except Exception as error:  # a broken engine must not keep the policy from running on another
            log.warning("engine %s cannot be used: %s", name, error)
            continue
        seconds = measure_seconds(policy, runner)
        log.info("engine %s: %.1f ms, difference from eager %.2g", name, 1e3 * seconds, parity)
        if parity <= PARITY_BOUND and (best is None or seconds < best[0]):
            best = (seconds, name, runner, parity)
    if best is None:
        raise EngineError(f"no engine of {', '.join(names)} can run the policy; the warnings above say why")
    return best[1:]
