"""A task, a method, an engine and a device that are defined here, and of which no file of the package knows, go the whole way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from onedp_ros.contract import Contract, Feature, Floats
from onedp_ros.data.convert import convert
from onedp_ros.evaluation.rollout import evaluate
from onedp_ros.graph.processes import record_graph
from onedp_ros.learning.distill import distill
from onedp_ros.learning.train import train
from onedp_ros.policy.engines import ENGINES
from onedp_ros.policy.engines.torch import TorchEngine
from onedp_ros.policy.methods import METHODS, find_method
from onedp_ros.policy.methods.base import Distillation, DistilledMethod, TrainedMethod
from onedp_ros.policy.methods.settings import PretrainingSettings, TrainingSettings
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.resources import resource
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import PlainEnvironment, Task
from onedp_ros.tasks.collect import collect
from onedp_ros.teleop.devices import DEVICES
from onedp_ros.teleop.devices.base import Command, Device, Setup

NETWORK = NetworkConfig(encoder_width=16, unet_channels=(8, 16), step_dim=8)
CONTRACT = Contract(
    task="reach",
    base_frame="base",
    control_hz=10.0,
    n_obs_steps=2,
    horizon=8,
    n_action_steps=4,
    slop=0.03,
    cameras={},
    crop=(),
    state=(Feature("place", "plain", "point", size=2),),
    action=(Feature("goal", "plain", "point/goal", size=2),),
)


class Reach(PlainEnvironment):
    """A point in the plane that is led to the middle."""

    def begin(self, rng: np.random.Generator, recovery: bool) -> None:
        self.place = rng.uniform(-1.0, 1.0, 2)

    def execute(self, action: np.ndarray) -> None:
        self.place = self.place + np.clip(action - self.place, -0.2, 0.2)

    def state(self) -> Floats:
        return self.place.astype(np.float32)

    def success(self) -> bool:
        return bool(np.linalg.norm(self.place) < 0.02)

    def failure(self) -> str:
        return "the point is not in the middle"

    def action_bounds(self) -> tuple[Floats, Floats]:
        return np.full(2, -1.0), np.full(2, 1.0)

    def expert_action(self) -> Floats:
        return 0.5 * self.place


class Straight(TrainedMethod):
    """The network predicts the velocity of a straight path from noise to data, which is followed in so many steps."""

    numbers = range(1, 10)

    @property
    def nfe(self) -> int:
        assert self.number is not None
        return self.number

    def compute_loss(self, diffusion: Any, denoise: Any, clean: Any, condition: Any, generator: Any) -> torch.Tensor:
        noise = torch.randn(clean.shape, generator=generator)
        step = torch.randint(100, (len(clean),), generator=generator)
        time = (step / 100).view(-1, 1, 1)
        return (denoise((1 - time) * clean + time * noise, step, condition) - (noise - clean)).pow(2).mean()

    def sample(self, diffusion: Any, denoise: Any, start: Any, condition: Any, generator: Any) -> torch.Tensor:
        for i in reversed(range(self.nfe)):
            step = torch.full((len(start),), (i + 1) * 100 // self.nfe - 1)
            start = start - denoise(start, step, condition) / self.nfe
        return start


class Copied(DistilledMethod):
    """One step that repeats the teacher's two from the same noise."""

    teacher = "straight2"

    def sample(self, diffusion: Any, denoise: Any, start: Any, condition: Any, generator: Any) -> torch.Tensor:
        return start - denoise(start, torch.full((len(start),), 99), condition)

    def begin_distillation(
        self, diffusion: Any, teacher: Any, generator: Any, encoders: Any, settings: Any, average: Any
    ) -> Distillation:
        return Repetition(self, diffusion, teacher, generator)


class Repetition(Distillation):
    def __init__(self, method: Copied, diffusion: Any, teacher: Any, generator: Any) -> None:
        self.method, self.diffusion, self.teacher, self.generator = method, diffusion, teacher, generator
        self.networks, self.optimizers = {}, {"adam": torch.optim.Adam(generator.parameters(), 1e-3)}

    def update(
        self, step: int, start: Any, clean: Any, condition: Any, teacher_condition: Any, random: Any = None
    ) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            expected = find_method("straight2").sample(self.diffusion, self.teacher, start, teacher_condition, random)
        loss = (self.method.sample(self.diffusion, self.generator, start, condition, random) - expected).pow(2).mean()
        self.optimizers["adam"].zero_grad()
        loss.backward()
        self.optimizers["adam"].step()
        return {"loss": loss.detach()}


class Counting(TorchEngine):
    """Eager PyTorch that counts its evaluations."""

    evaluations = 0

    def denoise(self, *args: torch.Tensor) -> torch.Tensor:
        Counting.evaluations += 1
        return super().denoise(*args)


class Lever(Device):
    joy_topic = "lever/joy"

    def __init__(self, setup: Setup) -> None:
        pass

    @classmethod
    def parse_settings(cls, section: Any) -> None:
        return None

    def poll(self) -> Command:
        return Command()


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Path]:
    """Registers one of each kind, and gives the task's file."""
    file = tmp_path / "reach.yaml"
    file.write_text(yaml.safe_dump(CONTRACT.to_dict()))
    members = (
        (TASKS, "reach", Task(environment=lambda contract, _: Reach(contract), max_time=4.0)),
        (ENGINES, "counting", Counting),
    )
    members += ((METHODS, "straight", Straight), (METHODS, "copied", Copied), (DEVICES, "lever", Lever))
    for registry, name, member in members:
        registry.add(name, member)
    yield file
    for registry, name, _ in members:
        registry.remove(name)


def test_what_is_registered_is_collected_converted_trained_distilled_and_evaluated(reach: Path, tmp_path: Path) -> None:
    assert collect(tmp_path / "bags", 4, task=str(reach), jobs=1)["kept"] == 4
    report = convert([tmp_path / "bags"], tmp_path / "data.zarr", workers=1, progress=False)
    assert report.episodes == 4 and not report.skipped

    pretraining = PretrainingSettings(steps=3, batch_size=4, warmup_steps=1, mixed_precision="no")
    train(tmp_path / "data.zarr", tmp_path / "teacher", NETWORK, pretraining, method="straight2")
    distill(tmp_path / "teacher", tmp_path / "data.zarr", "copied", tmp_path / "generator", TrainingSettings(steps=3, batch_size=4))

    begin = Counting.evaluations
    result = evaluate(tmp_path / "generator", task=str(reach), engine="counting", episodes=1, max_time=1.0, jobs=1)
    assert (result["task"], result["method"], result["nfe"], result["engine"]) == ("reach", "copied", 1, "counting")
    assert result["episodes"] == 1 and set(result["failures"]) <= {"the point is not in the middle"}
    assert Counting.evaluations > begin


def test_a_registered_device_is_offered(reach: Path, tmp_path: Path) -> None:
    file = tmp_path / "teleop.yaml"
    file.write_text(resource("config", "teleop.yaml").read_text() + "lever: {}\n")
    (teleop,) = (p for p in record_graph("pnp_milk", device="lever", teleop=file) if p.name == "teleop_node")
    assert teleop.parameters["device"] == "lever"
