"""OpenVINO on the CPU, float32. Encoders and U-Net are separate models of fixed shapes: a third faster at batch 1."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from onedp_ros.policy.engines.base import Engine, EngineError
from onedp_ros.policy.policies import Policy, network_input


class OpenVinoEngine(Engine):
    """Runs compiled OpenVINO models.

    Args:
        compiled: OpenVINO's compiled models by name.
    """

    priority = 10
    packages = ("openvino",)
    precision: ClassVar[str] = "f32"

    def __init__(self, compiled: Mapping[str, Any]) -> None:
        self.device = torch.device("cpu")
        self._compiled = compiled
        self._requests = {name: model.create_infer_request() for name, model in compiled.items()}

    @classmethod
    def is_available(cls) -> bool:
        return importlib.util.find_spec("openvino") is not None

    @classmethod
    def start(cls, policy: Policy, threads: int) -> OpenVinoEngine:
        core, options = _openvino().Core(), cls._options(threads)
        return cls({name: core.compile_model(model, "CPU", options) for name, model in convert(policy).items()})

    @classmethod
    def restore(cls, networks: Mapping[str, bytes], threads: int) -> OpenVinoEngine:
        core, options = _openvino().Core(), cls._options(threads)
        return cls({name: core.import_model(data, "CPU", options) for name, data in networks.items()})

    @classmethod
    def _options(cls, threads: int) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": cls.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # or it waits for its core while another one is idle
            "SNIPPETS_MODE": "DISABLE",  # generated element-wise kernels: 2026.4 fails on some shapes, or crashes, and gains little
        }

    def export(self) -> dict[str, bytes]:
        exported = {name: model.export_model() for name, model in self._compiled.items()}
        return {name: e if isinstance(e, bytes) else bytes(e.getvalue()) for name, e in exported.items()}

    def encode(self, camera: str, images: Tensor) -> Tensor:
        return self._run(f"encoder.{camera}", images)

    def denoise(self, sample: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self._run("unet", sample, step.float(), condition)

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


_converted: WeakKeyDictionary[Policy, dict[str, Any]] = WeakKeyDictionary()  # so that the precisions share one conversion


def convert(policy: Policy) -> dict[str, Any]:
    """The networks as OpenVINO models of fixed shapes."""
    if policy not in _converted:
        openvino, models = _openvino(), {}
        for name, (network, example) in _networks(copy.deepcopy(policy).cpu().eval()).items():
            # traced here, since convert_model's own tracing takes three times as long
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
    condition = torch.zeros(1, policy.config.condition_dim(c))
    example = (torch.zeros(1, c.horizon, c.action_dim), torch.zeros((1, 2) if policy.method.stops else 1), condition)
    networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {"unet": (policy.unet, example)}
    for name, camera in c.cameras.items():
        images = torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8)
        networks[f"encoder.{name}"] = (_Encoder(policy, name), (images,))
    return networks


class _Encoder(nn.Module):
    """One camera's encoder, from uint8 images to features, as a separate module: tracing time grows with the submodules."""

    def __init__(self, policy: Policy, camera: str) -> None:
        super().__init__()
        self.encoder, self.crop = policy.encoders[camera], policy.contract.crop

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(network_input(images, self.crop))


ENGINE = OpenVinoEngine
