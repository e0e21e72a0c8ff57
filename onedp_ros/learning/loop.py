"""The training loop, for any :class:`Trainee`: batches, processes, averaged (EMA) weights, checkpoints, resuming, progress."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from onedp_ros.contract import Contract
from onedp_ros.files import write_atomically
from onedp_ros.learning.color_jitter import jitter_batch
from onedp_ros.learning.dataset import WindowDataset
from onedp_ros.learning.state import STATE, load_state, save_state
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.methods.settings import TrainingSettings
from onedp_ros.policy.policies import Batch, Policy

log = logging.getLogger(__name__)
REPORT_EVERY = 20  # steps


class Trainee(ABC):
    """What the loop trains, and how it takes a step.

    Attributes:
        policy: its averaged weights become the checkpoint.
        networks: everything that is trained; saved for resuming.
        optimizers: by name.
        accumulation: batches per step.
    """

    policy: Policy
    networks: nn.Module
    optimizers: Mapping[str, torch.optim.Optimizer]
    accumulation: int = 1

    @abstractmethod
    def update(self, step: int, batches: Iterator[Batch], random: torch.Generator) -> Mapping[str, float | Tensor]:
        """Take step number ``step`` (from 0) on ``accumulation`` batches. Returns the values to log."""

    def measure(self) -> dict[str, float]:
        """Metrics of the averaged weights, which ``policy`` holds during the call. Called before each save."""
        return {}

    @abstractmethod
    def describe(self, step: int, seconds: float, figures: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
        """Plain data for the checkpoint and the report, after ``step`` steps and ``seconds`` of wall-clock time.

        ``figures``: the values of :meth:`update`, smoothed over this run's steps; ``measured``: those of :meth:`measure`.
        """


class Loop:
    """A training run in one process, or in several under ``accelerate launch``, which share every batch.

    Attributes:
        dataset: the training windows.
        accelerator: device, precision and processes.

    Args:
        settings: steps, batch size and so on.
        data: replay buffer (see :mod:`onedp_ros.learning.dataset`).
        out: directory for the checkpoint, the state to resume from and TensorBoard logs.
        contract: when given, the data must have it.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
        ContractError: the data has another contract.
    """

    def __init__(self, settings: TrainingSettings, data: str | Path, out: str | Path, contract: Contract | None = None) -> None:
        self.settings, self.data, self.out = settings, Path(data), Path(out)
        precision = settings.mixed_precision
        if precision == "bf16" and not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            log.warning("this processor has no bf16 (AVX-512): training in float32, which is several times faster here")
            precision = "no"
        # Unless it is told that there is no GPU, accelerate does not join processes that torchrun started.
        without_gpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=without_gpu, mixed_precision=precision, log_with="tensorboard", project_dir=self.out)
        # Gradients of the processes are averaged, so the result is that of one process with the whole batch.
        self.batch_size, rest = divmod(settings.batch_size, self.processes)
        if rest:
            raise ValueError(f"batch_size {settings.batch_size} is not a multiple of the {self.processes} processes")
        with self.accelerator.local_main_process_first():
            self.dataset = WindowDataset(data, contract, unpack=True)
        set_seed(settings.seed)

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the parameters' gradients over all processes, in place."""
        if self.processes > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def run(
        self,
        trainee: Trainee,
        made_of: Mapping[str, Any],
        report: str,
        resume: bool = False,
        stop_at: int | None = None,
    ) -> dict[str, Any]:
        """Train, and write the averaged weights as a checkpoint every ``save_every`` steps and at the end.

        Args:
            trainee: what to train, on :attr:`device`.
            made_of: what, besides settings and data, must not change when the run is resumed.
            report: file name of the JSON report in ``out``.
            resume: continue from ``out/state.safetensors``, with the result of an uninterrupted run; else start from scratch.
            stop_at: end early at this step, as if interrupted.

        Returns:
            The report.

        Raises:
            CheckpointError: the state to resume from is damaged or belongs to another run.
            RuntimeError: a logged value is NaN.
        """
        settings, policy, main = self.settings, trainee.policy, self.accelerator.is_main_process
        ema = EMAModel(policy.parameters(), settings.ema_max, use_ema_warmup=True, power=settings.ema_power, foreach=True)
        made_of = dataclasses.asdict(settings) | dict(made_of) | {"data": self.dataset.stamp, "processes": self.processes}
        step, seconds = 0, 0.0
        if resume and (self.out / STATE).exists():
            state = (trainee.networks, trainee.optimizers, ema, made_of)
            step, seconds = load_state(self.out / STATE, *state, self.device)
            log.info("resuming %s at step %d", self.out, step)
        self.accelerator.init_trackers("tensorboard")
        count, rank = trainee.accumulation, self.accelerator.process_index
        stream = self.dataset.batches(self.batch_size, step * count, settings.seed, rank, self.processes)
        random = torch.Generator(self.device)
        figures: dict[str, float] = {}
        begin, end = time.monotonic() - seconds, min(settings.steps, stop_at or settings.steps)
        bar = tqdm(total=settings.steps, initial=step, unit="step", disable=not main, mininterval=2, smoothing=0.02)
        with closing(stream), bar:
            while step < end:
                random.manual_seed(((settings.seed * 1_000_003 + step) << 10) + rank)
                batches = (jitter_batch(next(stream).to(self.device), settings.color_jitter, random) for _ in range(count))
                values = trainee.update(step, batches, random)
                ema.step(policy.parameters())
                step += 1
                bar.update()
                saving = step % settings.save_every == 0 or step == end
                if saving or step % REPORT_EVERY == 0:
                    found = self._mean(values)
                    if any(value != value for value in found.values()):
                        raise RuntimeError(f"NaN at step {step} ({found}); start again with a lower learning rate")
                    figures = {n: 0.9 * figures[n] + 0.1 * v if n in figures else v for n, v in found.items()}
                    bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
                    self.accelerator.log(found, step)
                if saving and main:
                    with averaged(policy, ema):
                        if measured := trainee.measure():
                            self.accelerator.log(measured, step)
                            tqdm.write(f"step {step}: {measured}")
                        seconds = time.monotonic() - begin
                        result = trainee.describe(step, seconds, figures, measured)
                        save_policy(self.out, policy, result, torch.float32)  # 'onedp release' stores float16
                    write_atomically(self.out / report, (json.dumps(result, indent=2) + "\n").encode())
                    # last, so that a run that dies in between repeats these steps and rewrites these files
                    save_state(self.out / STATE, step, seconds, trainee.networks, trainee.optimizers, ema, made_of)
        self.accelerator.end_training()
        file = self.out / report
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _mean(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Mean of each value over the processes."""
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in values.values()])
        means: Tensor = self.accelerator.reduce(stacked, "mean")
        return dict(zip(values, means.tolist(), strict=True))


@contextmanager
def averaged(policy: Policy, ema: EMAModel) -> Iterator[None]:
    """Put the averaged weights into ``policy`` for the duration of the context."""
    ema.store(policy.parameters())
    ema.copy_to(policy.parameters())
    try:
        yield
    finally:
        ema.restore(policy.parameters())
