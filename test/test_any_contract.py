"""Contracts of any shape go the whole way: collected, converted, trained on, distilled, predicted from, and evaluated."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr

from onedp_ros.contract import Camera, Contract, Feature, Observation
from onedp_ros.contract.features import slices
from onedp_ros.data.convert import convert
from onedp_ros.evaluation.rollout import evaluate
from onedp_ros.geometry import gripper_down, matrix_to_rotation_6d, quaternion_to_matrix
from onedp_ros.learning.distill import distill
from onedp_ros.learning.train import train
from onedp_ros.policy.methods.one_step_generator import OneDPSettings
from onedp_ros.policy.methods.settings import PretrainingSettings
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.predictor import load_predictor
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import PlainEnvironment, Task
from onedp_ros.tasks.collect import collect

NETWORK = NetworkConfig(encoder_width=16, unet_channels=(8, 16), step_dim=8)
RATES = {"base_frame": "base", "control_hz": 10.0, "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "slop": 0.03}
STEPS = 24

POINT = Contract(
    task="point",
    cameras={},
    crop=(),
    state=(Feature("place", "plain", "agent", size=2),),
    action=(Feature("goal", "plain", "agent/goal", size=2),),
    **RATES,
)


def arm(side: str, target: bool) -> tuple[Feature, ...]:
    """Ten numbers: those that are measured of an arm, or commanded to it."""
    pose, gripper = (f"{side}/target_pose", f"{side}/gripper_target") if target else (f"{side}/pose", f"{side}/joints")
    return (
        Feature(f"{side}_position", "position", pose),
        Feature(f"{side}_rotation", "rotation_6d", pose),
        Feature(f"{side}_opening", "opening", gripper, () if target else (f"{side}_gripper",), range=(0.0, 0.08)),
    )


TWO_ARMS = Contract(
    task="two_arms",
    cameras={name: Camera(f"{name}/image", 40, 48) for name in ("left_wrist", "right_wrist", "overhead")},
    crop=(36, 40),
    state=(*arm("left", False), *arm("right", False)),
    action=(*arm("left", True), *arm("right", True)),
    **RATES,
)


def values(features: tuple[Feature, ...], step: int) -> np.ndarray:
    """What the features are at a step: all of them move, and no two alike."""
    parts = []
    for number, feature in enumerate(features):
        if feature.kind == "rotation_6d":
            parts.append(matrix_to_rotation_6d(quaternion_to_matrix(gripper_down(0.05 * step + number))))
        elif feature.kind == "opening":
            parts.append(np.array([0.08 * (step % 2)]))
        else:
            parts.append(0.02 * step + 0.1 * np.arange(feature.dim) + number)
    return np.concatenate(parts)


def images(contract: Contract, step: int) -> dict[str, np.ndarray]:
    """A picture that only this step of this camera has."""
    return {
        name: np.random.default_rng([step, number]).integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
        for number, (name, camera) in enumerate(contract.cameras.items())
    }


class Parade(PlainEnvironment):
    """Goes its way whatever is commanded, and is accomplished after :data:`STEPS` steps."""

    def begin(self, rng: np.random.Generator, recovery: bool) -> None:
        pass

    def execute(self, action: np.ndarray) -> None:
        pass

    def state(self) -> np.ndarray:
        return values(self.contract.state, self._steps)

    def images(self) -> dict[str, np.ndarray]:
        return images(self.contract, self._steps)

    def success(self) -> bool:
        return self._steps >= STEPS

    def failure(self) -> str:
        return "not yet at its end"

    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.full(self.contract.action_dim, -2.0), np.full(self.contract.action_dim, 3.0)

    def expert_action(self) -> np.ndarray:
        return values(self.contract.action, self._steps)


@pytest.fixture(params=[POINT, TWO_ARMS], ids=lambda contract: contract.task)
def contract(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Contract]:
    """A contract, written to ``<task>.yaml``, whose task is registered."""
    (tmp_path / f"{request.param.task}.yaml").write_text(yaml.safe_dump(request.param.to_dict(), sort_keys=False))
    TASKS.add(request.param.task, Task(environment=lambda contract, _: Parade(contract), max_time=5.0))
    yield request.param
    TASKS.remove(request.param.task)


def test_a_contract_goes_from_demonstrations_to_an_evaluation(contract: Contract, tmp_path: Path) -> None:
    task = str(tmp_path / f"{contract.task}.yaml")
    assert collect(tmp_path / "bags", 1, task=task, jobs=1)["kept"] == 1
    report = convert([tmp_path / "bags"], tmp_path / "data.zarr", workers=1, progress=False)
    assert report.steps >= STEPS - 2 and not report.skipped
    root = zarr.open_group(str(tmp_path / "data.zarr"), mode="r")
    assert Contract.from_dict(dict(root.attrs["contract"])) == contract
    assert set(root["data"].array_keys()) == {"state", "action", *contract.cameras}
    expected = np.array([values(contract.action, step) for step in range(2 * STEPS)], np.float32)
    first = int(np.argmin(np.abs(expected - root["data/action"][0]).sum(1)))
    # nothing is commanded at the last observation
    np.testing.assert_allclose(root["data/action"][:-1], expected[first:][: report.steps - 1], atol=1e-5)
    for name, array in images(contract, first).items():
        assert (root[f"data/{name}"][0] == array).all()

    torch.manual_seed(0)
    train(
        tmp_path / "data.zarr",
        tmp_path / "teacher",
        NETWORK,
        PretrainingSettings(steps=3, batch_size=4, warmup_steps=1, mixed_precision="no"),
    )
    settings = OneDPSettings(steps=3, batch_size=4, warmup_steps=1)
    distill(tmp_path / "teacher", tmp_path / "data.zarr", "onedp_s", tmp_path / "generator", settings)

    predictor = load_predictor(tmp_path / "generator", engine="torch", contract=contract, threads=1)
    window = [
        Observation(step * contract.dt_ns, images(contract, step), dict.fromkeys(contract.cameras, step * contract.dt_ns), state)
        for step in range(contract.n_obs_steps)
        for state in [values(contract.state, step).astype(np.float32)]
    ]
    (chunk,) = predictor.predict([window])
    assert chunk.shape == (contract.horizon, contract.action_dim) and np.isfinite(chunk).all()
    low, high = root["data/action"][:].min(0), root["data/action"][:].max(0)
    for name, at in slices(contract.action).items():
        if not name.endswith("rotation"):  # which is not normalised
            assert np.all(chunk[:, at] >= low[at] - 1e-4) and np.all(chunk[:, at] <= high[at] + 1e-4), "within what was seen"

    result = evaluate(tmp_path / "generator", task=task, engine="torch", episodes=1, jobs=1)
    (episode,) = result["results"]
    assert result["method"] == "onedp_s" and (episode["success"] or "rotation" in episode["failure"]), episode
