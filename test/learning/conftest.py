import pytest
import torch
from replays import write_replay

from onedp_ros.contract import Camera, Contract


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
def replay(tmp_path, small_contract):
    return write_replay(tmp_path / "data.zarr", small_contract, [12, 20])


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and results then do not depend on the machine's load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
