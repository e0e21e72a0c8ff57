"""Running a policy: one call for every engine, each camera frame encoded once.

Engines: ``torch`` (eager), ``cuda`` (CUDA graphs), ``openvino`` (float32) and ``openvino_bf16``. An engine is used only when its
output agrees with eager PyTorch on fixed inputs; ``auto`` takes the fastest of those. What OpenVINO compiled, and which engine was
the fastest, are kept for the next start (:mod:`onedp_ros.policy.engine_cache`): it then neither reads nor converts the networks.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import platform
import struct
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onedp_ros.contract import Contract, Image, Observation
from onedp_ros.policy import engine_cache
from onedp_ros.policy.checkpoint import load_policy, load_sampler
from onedp_ros.policy.diffusion import generate
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy, Sampler, network_input

log = logging.getLogger(__name__)

PARITY_BOUND = 0.05
"""Greatest difference from eager PyTorch, in normalised action units (half the range of the data's positions), of an engine that
may be used. bfloat16 reaches about 0.01."""

PARITY_WINDOWS = 4

OPENVINO = ("openvino_bf16", "openvino")
ENGINES = ("torch", "cuda", *reversed(OPENVINO))
PROGRAM = ("networks.py", "policies.py", "diffusion.py", "inference.py")  # what decides how a checkpoint is compiled


class EngineError(RuntimeError):
    """An engine that is not available here or does not agree with eager PyTorch; the message says what to use instead."""


class Engine(Protocol):
    """Runs the networks of a policy on one window. Tensors are on ``device``."""

    device: torch.device

    def encode(self, camera: str, images: Tensor) -> Tensor:
        """An image, uint8 (1, H, W, 3), of the contract's size -> features (1, 64)."""

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """As the U-Net's forward, batch 1."""


class TorchEngine:
    """Eager PyTorch, on the device of the policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.device = policy, policy.device

    def encode(self, camera: str, images: Tensor) -> Tensor:
        return self.policy.encode_image(camera, images)

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self.policy.unet(sample, step, condition)


class CudaEngine:
    """PyTorch on a GPU, each network recorded once as a CUDA graph: at batch 1 launching kernels is what costs."""

    def __init__(self, policy: Policy) -> None:
        if not torch.cuda.is_available():
            raise EngineError("engine 'cuda' needs an NVIDIA GPU that PyTorch can use; choose 'auto', 'openvino' or 'torch'")
        self.device = torch.device("cuda")
        self.policy = copy.deepcopy(policy).to(self.device)
        self.graphs: dict[str, tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]] = {}

    def encode(self, camera: str, images: Tensor) -> Tensor:
        return self._run(camera, lambda i: self.policy.encode_image(camera, i), images)

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self._run("unet", self.policy.unet, sample, step, condition)

    def _run(self, name: str, network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if name not in self.graphs:
            buffers = [i.clone() for i in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm up off the capturing stream (docs.pytorch.org, "CUDA semantics", CUDA graphs)
                for _ in range(3):
                    network(*buffers)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = network(*buffers)
            self.graphs[name] = (buffers, graph, output)
        buffers, graph, output = self.graphs[name]
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        graph.replay()
        return output.clone()  # the graph writes its next output to the same memory


class OpenVinoEngine:
    """OpenVINO on the CPU. Encoders and U-Net are models of their own, compiled for fixed shapes: a third faster at batch 1.

    Args:
        compiled: from :meth:`compile` or :meth:`restore`.
    """

    def __init__(self, compiled: Mapping[str, Any]) -> None:
        self.device = torch.device("cpu")
        self._compiled = compiled
        self._requests = {name: model.create_infer_request() for name, model in compiled.items()}

    @classmethod
    def compile(cls, policy: Policy, precision: str, threads: int) -> OpenVinoEngine:
        """Convert and compile the networks of a policy."""
        core, options = _openvino().Core(), _options(precision, threads)
        return cls({name: core.compile_model(model, "CPU", options) for name, model in _convert(policy).items()})

    @classmethod
    def restore(cls, networks: Mapping[str, bytes], precision: str, threads: int) -> OpenVinoEngine:
        """From what :meth:`export` gave, on the same machine, with the same versions."""
        core, options = _openvino().Core(), _options(precision, threads)
        return cls({name: core.import_model(data, "CPU", options) for name, data in networks.items()})

    def export(self) -> dict[str, bytes]:
        """The compiled networks by name."""
        return {name: _bytes(model.export_model()) for name, model in self._compiled.items()}

    def encode(self, camera: str, images: Tensor) -> Tensor:
        return self._run(f"encoder.{camera}", images)

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self._run("unet", sample, step, condition)

    def _run(self, name: str, *inputs: Tensor) -> Tensor:
        arrays = [np.ascontiguousarray(i.numpy()) for i in inputs]
        return torch.from_numpy(self._requests[name].infer(arrays, share_inputs=True)[0].copy())


def _openvino() -> Any:
    # openvino then uses its own stub: the real module forks processes that report to a server
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError("engine 'openvino' needs the package openvino; 'pip install openvino', or choose 'torch'") from error
    return openvino


def _options(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # or it waits for its core while another one is idle
        "SNIPPETS_MODE": "DISABLE",  # generated element-wise kernels: 2026.4 fails on some shapes, or crashes, and gains little
    }


def _bytes(exported: Any) -> bytes:
    return exported if isinstance(exported, bytes) else bytes(exported.getvalue())


_converted: WeakKeyDictionary[Policy, dict[str, Any]] = WeakKeyDictionary()  # so that the precisions share one conversion


def _convert(policy: Policy) -> dict[str, Any]:
    """The networks as OpenVINO's models of fixed shapes."""
    if policy not in _converted:
        openvino, models = _openvino(), {}
        for name, (network, example) in _networks(copy.deepcopy(policy).cpu().eval()).items():
            # traced here, since convert_model's own way to trace takes three times as long
            with torch.no_grad(), warnings.catch_warnings():
                for category in (DeprecationWarning, torch.jit.TracerWarning):  # shapes are fixed
                    warnings.simplefilter("ignore", category)
                traced = torch.jit.trace(network, example, check_trace=False, strict=False)
            models[name] = openvino.convert_model(traced, example_input=example)
            models[name].reshape(
                {i: openvino.PartialShape(list(e.shape)) for i, e in zip(models[name].inputs, example, strict=True)}
            )
        _converted[policy] = models
    return _converted[policy]


def _networks(policy: Policy) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """U-Net and encoders by name, with example inputs."""
    c = policy.contract
    condition = c.n_obs_steps * (policy.config.features * len(c.cameras) + c.state_dim)
    example = (torch.zeros(1, c.horizon, c.action_dim), torch.zeros(1, dtype=torch.int64), torch.zeros(1, condition))
    networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {"unet": (policy.unet, example)}
    for name, camera in c.cameras.items():
        images = torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8)
        networks[f"encoder.{name}"] = (_Encoder(policy, name), (images,))
    return networks


class _Encoder(nn.Module):
    """One camera's way from uint8 images to features, as a network of its own: tracing takes as long as it has parts."""

    def __init__(self, policy: Policy, camera: str) -> None:
        super().__init__()
        self.encoder, self.crop = policy.encoders[camera], policy.contract.crop

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(network_input(images, self.crop))


class Predictor:
    """A policy on an engine. Made by :func:`load_predictor`.

    A chunk depends on the seed and on its window alone, not on what was predicted before or beside it: the noise is that of the
    seed and the newest observation's stamp. So a replay of the same observations gives the same chunks.

    Attributes:
        contract: what the policy sees and says.
        method: for example ``onedp_s``.
        nfe: network evaluations of one prediction.
        engine: name of the engine in use.
        network: ``paper``, ``compact``, or the sizes.
        parity: greatest difference of the engine from eager PyTorch at load, in normalised action units.
    """

    def __init__(self, policy: Sampler, runner: Engine, engine: str, parity: float, seed: int) -> None:
        self.policy = policy.to(runner.device)
        self.contract: Contract = policy.contract
        self.method: str = policy.method
        self.nfe: int = policy.nfe
        self.network = network_name(policy.config)
        self.engine, self.parity = engine, parity
        self._runner = runner
        self._features: dict[str, OrderedDict[bytes, Tensor]] = {name: OrderedDict() for name in self.contract.cameras}
        self._random = torch.Generator(runner.device)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Take another seed of the noise."""
        self._seed = seed

    @torch.inference_mode()
    def predict(self, windows: Sequence[Sequence[Observation]]) -> NDArray[np.float32]:
        """Windows of ``n_obs_steps`` observations, oldest first -> action chunks (B, horizon, 10).

        Frames seen in the last calls are not encoded again.

        Raises:
            ValueError: a window with another number of observations.
        """
        for window in windows:
            if len(window) != self.contract.n_obs_steps:
                raise ValueError(f"a window has {len(window)} observations, expected n_obs_steps = {self.contract.n_obs_steps}")
        features = torch.cat([self._encode(camera, windows) for camera in self.contract.cameras], dim=-1)
        state = torch.from_numpy(np.array([[o.state for o in window] for window in windows], np.float32))
        conditions = self.policy.condition(features, state.to(self._runner.device))
        chunks = [self._sample(c[None], window[-1].stamp) for c, window in zip(conditions, windows, strict=True)]
        return torch.cat(chunks).float().cpu().numpy()

    def _sample(self, condition: Tensor, stamp: int) -> Tensor:
        """A condition (1, n_obs 137) -> a chunk (1, horizon, 10), with the noise of a stamp (ns)."""
        self._random.manual_seed(noise_seed(self._seed, stamp))
        return self.policy.sample_with(self._runner.denoise, condition, self._random)

    def _encode(self, camera: str, windows: Sequence[Sequence[Observation]]) -> Tensor:
        """Features (B, n_obs, 64) of one camera, from the cache where the frame is there."""
        known = self._features[camera]
        images = [[o.images[camera] for o in window] for window in windows]
        keys = [[image.tobytes() for image in row] for row in images]
        new: dict[bytes, Image] = {
            k: i for ks, row in zip(keys, images, strict=True) for k, i in zip(ks, row, strict=True) if k not in known
        }
        for key, image in new.items():  # one by one: the last bits of a batch's features depend on its size
            frame = torch.from_numpy(np.array(image[None])).to(self._runner.device)
            known[key] = self._runner.encode(camera, frame)[0]
        features = torch.stack([torch.stack([known[k] for k in row]) for row in keys])
        for key in (k for row in keys for k in row):
            known.move_to_end(key)
        while len(known) > 4 * len(windows) + 16:
            known.popitem(last=False)
        return features


def noise_seed(seed: int, stamp: int) -> int:
    """Seed of one prediction's noise, from the policy's ``seed`` and the newest observation's ``stamp`` (ns). All its bits differ
    between neighbours: a generator may use the lower 32 alone."""
    return int.from_bytes(hashlib.blake2b(struct.pack("<qq", seed, stamp), digest_size=8).digest(), "little")


def network_name(config: NetworkConfig) -> str:
    """``paper``, ``compact``, or the sizes."""
    known: dict[tuple[int, tuple[int, ...]], str] = {(64, (256, 512, 1024)): "paper", (16, (64, 128, 256)): "compact"}
    sizes = (config.encoder_width, config.unet_channels)
    return known.get(sizes, f"ResNet-18 width {sizes[0]}, U-Net {list(sizes[1])}")


def load_predictor(
    path: str | Path,
    method: str | None = None,
    engine: str = "auto",
    seed: int = 0,
    contract: Contract | None = None,
    threads: int = 0,
    progress: Callable[[str], None] = log.info,
) -> Predictor:
    """Load a checkpoint and start an engine for it.

    Args:
        path: checkpoint directory.
        method: another sampler of the same weights, for example ``dp_ddim10``.
        engine: one of ``ENGINES``, or ``auto``: the fastest that agrees with eager PyTorch, as found at the first start.
        seed: of the policy's random numbers.
        contract: when given, the checkpoint must have been made with it.
        threads: CPU threads of the engine; 0: half of the processors, since cameras, robot and the other nodes need the rest.
        progress: is told what begins, such as "converting the networks for OpenVINO".

    Raises:
        EngineError: the engine is not there or differs from eager by more than ``PARITY_BOUND``.
        CheckpointError, ContractError: see :func:`onedp_ros.policy.checkpoint.load_policy`.
    """
    if engine != "auto" and engine not in ENGINES:
        raise EngineError(f"unknown engine '{engine}', expected auto or one of {', '.join(ENGINES)}")
    progress(f"reading {path}")
    sampler, digests = load_sampler(path, method, contract)
    threads = threads or max(1, len(os.sched_getaffinity(0)) // 2)
    torch.set_num_threads(threads)
    kept = _Kept(digests, threads)
    auto = engine == "auto"
    if auto and not torch.cuda.is_available():
        engine = kept.choice() or "auto"
    if engine in OPENVINO and (restored := kept.engine(engine, sampler, progress)) is not None:
        return Predictor(sampler, restored[0], engine, restored[1], seed)

    policy = load_policy(path, method, contract)
    if auto and engine == "torch":
        return Predictor(policy, TorchEngine(policy), engine, 0.0, seed)
    reference = _actions(policy, TorchEngine(policy))
    if not auto:
        progress(f"starting engine {engine}")
        runner = start_engine(engine, policy, threads)
        difference = _difference(reference, _actions(sampler, runner))
        if not difference <= PARITY_BOUND:
            raise EngineError(
                f"engine '{engine}' differs from eager PyTorch by {difference:.3g} (normalised action), more than {PARITY_BOUND}; "
                f"choose 'auto' or 'torch'"
            )
        kept.keep(engine, runner, reference)
        return Predictor(policy if engine == "torch" else sampler, runner, engine, difference, seed)

    best: tuple[float, Engine, str, float] | None = None
    for name in ("cuda", "torch") if torch.cuda.is_available() else (*OPENVINO, "torch"):
        progress(f"trying engine {name}")
        try:
            runner = start_engine(name, policy, threads)
            difference = _difference(reference, _actions(sampler, runner))
        except Exception as error:  # a broken engine must not keep the policy from running on another
            log.warning("engine %s cannot be used: %s", name, error)
            continue
        seconds = _clock(policy, runner)
        log.info("engine %s: %.1f ms, difference from eager %.2g", name, 1e3 * seconds, difference)
        if difference <= PARITY_BOUND and (best is None or seconds < best[0]):
            best = (seconds, runner, name, difference)
    if best is None:
        raise EngineError(f"no engine runs {path}; the first warnings say why")
    _, runner, name, difference = best
    if not torch.cuda.is_available():
        kept.keep(name, runner, reference, chosen=True)
    return Predictor(policy if name == "torch" else sampler, runner, name, difference, seed)


class _Kept:
    """What starts with the same checkpoint and threads keep for the next one on this machine.

    Args:
        digests: of the checkpoint's files.
        threads: of the engine.
    """

    def __init__(self, digests: str, threads: int) -> None:
        self._threads = threads
        self._key = {
            "checkpoint": digests,
            "threads": threads,
            "processor": _processor(),
            "program": [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in PROGRAM],
            "versions": {name: _version(name) for name in ("openvino", "torch")},
        }
        self._folder: Path | None = None
        try:
            self._folder = engine_cache.cache_folder()
        except OSError as error:
            log.warning("engines are not kept for the next start: %s", error)

    def choice(self) -> str:
        """The engine that was the fastest; empty when that is not known."""
        data = None if self._folder is None else engine_cache.read(self._folder, self._key | {"engine": "auto"})
        return (data or b"").decode()

    def engine(self, name: str, sampler: Sampler, progress: Callable[[str], None]) -> tuple[Engine, float] | None:
        """An OpenVINO engine and its difference from eager PyTorch; None when there is none that can be used."""
        data = None if self._folder is None else engine_cache.read(self._folder, self._key | {"engine": name})
        if data is None:
            return None
        progress(f"restoring engine {name} of an earlier start")
        try:
            arrays = safetensors.numpy.load(data)
            reference = torch.from_numpy(arrays.pop("reference"))
            networks = {network: array.tobytes() for network, array in arrays.items()}
            runner = OpenVinoEngine.restore(networks, _precision(name), self._threads)
            difference = _difference(reference, _actions(sampler, runner))
        except Exception as error:  # an engine's own errors have no common base, and there is another way
            log.warning("the kept engine %s cannot be used and is made again: %s", name, error)
            return None
        return (runner, difference) if difference <= PARITY_BOUND else None

    def keep(self, name: str, runner: Engine, reference: Tensor, chosen: bool = False) -> None:
        """Keep an engine, and that it was the fastest when it was ``chosen``."""
        if self._folder is None:
            return
        try:
            if isinstance(runner, OpenVinoEngine):
                arrays = {network: np.frombuffer(data, np.uint8) for network, data in runner.export().items()}
                data = safetensors.numpy.save(arrays | {"reference": reference.numpy()})
                engine_cache.write(self._folder, self._key | {"engine": name}, data)
            if chosen:
                engine_cache.write(self._folder, self._key | {"engine": "auto"}, name.encode())
        except (OSError, RuntimeError) as error:  # a full disk, a network that cannot be exported: the next start takes longer
            log.warning("engine %s is not kept for the next start: %s", name, error)


def _processor() -> str:
    """Name and instructions."""
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


def start_engine(name: str, policy: Policy, threads: int) -> Engine:
    """An engine of :data:`ENGINES` for a policy. EngineError when it cannot run here."""
    if name == "torch":
        return TorchEngine(policy)
    if name == "cuda":
        return CudaEngine(policy)
    return OpenVinoEngine.compile(policy, _precision(name), threads)


def _precision(name: str) -> str:
    return "bf16" if name.endswith("bf16") else "f32"


def parity(policy: Policy, runner: Engine) -> float:
    """Greatest difference of ``runner`` from eager PyTorch, over actions that one evaluation makes of fixed inputs.

    In normalised action units. NaN when either has NaN.
    """
    return _difference(_actions(policy, TorchEngine(policy)), _actions(policy, runner))


def _difference(some: Tensor, other: Tensor) -> float:
    return float((some - other).abs().max())


@torch.inference_mode()
def _actions(policy: Sampler, runner: Engine) -> Tensor:
    """The normalised actions that one evaluation by ``runner`` makes of fixed inputs."""
    sampler = Sampler(policy.contract, policy.config, policy.normalizer, policy.method).to(runner.device)
    actions = []
    for inputs in zip(*(i.split(1) for i in _example(policy, PARITY_WINDOWS)), strict=True):
        *images, state, z = (i.to(runner.device) for i in inputs)
        features = [runner.encode(c, i) for c, i in zip(policy.contract.cameras, images, strict=True)]
        repeated = torch.cat(features, -1)[:, None].expand(-1, policy.contract.n_obs_steps, -1)
        actions.append(generate(sampler.diffusion, runner.denoise, z, sampler.condition(repeated, state)).clamp(-1, 1).cpu())
    return torch.cat(actions)


def _example(policy: Sampler, windows: int) -> list[Tensor]:
    """Fixed inputs: smooth images for each camera, states within the data's range, z."""
    random = torch.Generator().manual_seed(0)
    c = policy.contract
    inputs: list[Tensor] = []
    for camera in c.cameras.values():
        coarse = 255 * torch.rand(windows, 3, 6, 8, generator=random)
        smooth = nn.functional.interpolate(coarse, (camera.height, camera.width), mode="bilinear")
        inputs.append(smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous())
    normal = 2 * torch.rand(windows, c.n_obs_steps, c.state_dim, generator=random) - 1
    inputs.append(normal * torch.from_numpy(policy.normalizer.state_scale) + torch.from_numpy(policy.normalizer.state_offset))
    inputs.append(torch.randn(windows, c.horizon, c.action_dim, generator=random))
    return inputs


@torch.inference_mode()
def _clock(policy: Sampler, runner: Engine, repeats: int = 15) -> float:
    """Least time (s) of one frame of each camera and one evaluation: whatever else the machine does only adds."""
    *images, state, z = (i[:1].to(runner.device) for i in _example(policy, 1))
    step = torch.full((1,), 65, device=runner.device)
    size = policy.contract.n_obs_steps * (policy.config.features * len(images) + state.shape[-1])
    condition = torch.zeros(1, size, device=runner.device)
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        for camera, image in zip(policy.contract.cameras, images, strict=True):
            runner.encode(camera, image)
        runner.denoise(z, step, condition).cpu()
        times.append(time.perf_counter() - begin)
    return min(times[3:])
