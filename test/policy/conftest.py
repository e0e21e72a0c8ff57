import numpy as np
import pytest

from onedp_ros.contract import Camera, Contract, Normalizer


@pytest.fixture
def small_contract():
    """Two small cameras, so that networks run fast."""
    return Contract(
        task="test",
        base_frame="base",
        control_hz=20.0,
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        slop=0.03,
        cameras={"wrist": Camera("wrist/image", 40, 48), "front": Camera("front/image", 40, 48)},
        crop=(36, 40),
        joint_states_topic="joint_states",
        pose_topic="current_pose",
        finger_joints=("left", "right"),
    )


@pytest.fixture
def normalizer():
    rng = np.random.default_rng(0)
    return Normalizer.fit(rng.random((50, 9)), rng.random((50, 10)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of each test's own for the engines that are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
