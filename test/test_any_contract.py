"""Contracts of any shape go the whole way: recorded, converted, trained on, distilled, and predicted from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from onedp_ros.contract import Camera, Contract, Feature, Observation
from onedp_ros.contract.features import slices
from onedp_ros.data.bags.writer import EpisodeWriter
from onedp_ros.data.convert import convert
from onedp_ros.geometry import gripper_down, matrix_to_rotation_6d, quaternion_to_matrix
from onedp_ros.learning.distill import distill
from onedp_ros.learning.train import train
from onedp_ros.policy.methods.one_step_generator import OneDPSettings
from onedp_ros.policy.methods.settings import PretrainingSettings
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.predictor import load_predictor

NETWORK = NetworkConfig(encoder_width=16, unet_channels=(8, 16), step_dim=8)
RATES = {"base_frame": "base", "control_hz": 10.0, "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "slop": 0.03}
STEPS, START = 24, 1_700_000_000_000_000_000

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


@pytest.fixture
def record(tmp_path: Path) -> Callable[[Contract], Path]:
    def write(contract: Contract) -> Path:
        with EpisodeWriter(tmp_path / "bag", contract, {"success": True}) as writer:
            for step in range(STEPS):
                stamp = START + step * contract.dt_ns
                writer.add_state(stamp, values(contract.state, step))
                writer.add_action(stamp, values(contract.action, step))
                for camera, image in images(contract, step).items():
                    writer.add_image(camera, stamp, image)
        return tmp_path / "bag"

    return write


@pytest.mark.parametrize("contract", [POINT, TWO_ARMS], ids=lambda contract: contract.task)
def test_a_contract_goes_from_recordings_to_predictions(
    contract: Contract, record: Callable[[Contract], Path], tmp_path: Path
) -> None:
    report = convert([record(contract)], tmp_path / "data.zarr", workers=1, progress=False)
    assert report.steps >= STEPS - 2 and not report.skipped
    root = zarr.open_group(str(tmp_path / "data.zarr"), mode="r")
    assert Contract.from_dict(dict(root.attrs["contract"])) == contract
    assert set(root["data"].array_keys()) == {"state", "action", *contract.cameras}
    expected = np.array([values(contract.action, step) for step in range(STEPS)], np.float32)
    first = int(np.argmin(np.abs(expected - root["data/action"][0]).sum(1)))
    np.testing.assert_allclose(root["data/action"][:], expected[first:][: report.steps], atol=1e-5)
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
    low, high = expected.min(0), expected.max(0)
    for name, at in slices(contract.action).items():
        if not name.endswith("rotation"):  # which is not normalised
            assert np.all(chunk[:, at] >= low[at] - 1e-4) and np.all(chunk[:, at] <= high[at] + 1e-4), "within what was seen"
