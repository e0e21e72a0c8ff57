"""PyTorch on a GPU, each network captured once as a CUDA graph: at batch 1, kernel launches dominate the cost."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from onedp_ros.policy.engines.base import Engine, EngineError
from onedp_ros.policy.policies import Policy


class CudaEngine(Engine):
    priority = 30
    on_gpu = True

    def __init__(self, policy: Policy) -> None:
        self.device = torch.device("cuda")
        self.policy = copy.deepcopy(policy).to(self.device)
        self.graphs: dict[str, tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]] = {}

    @classmethod
    def is_available(cls) -> bool:
        return torch.cuda.is_available()

    @classmethod
    def start(cls, policy: Policy, threads: int) -> CudaEngine:
        if not cls.is_available():
            raise EngineError("engine 'cuda' needs an NVIDIA GPU that PyTorch can use; choose 'auto', 'openvino' or 'torch'")
        return cls(policy)

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


ENGINE = CudaEngine
