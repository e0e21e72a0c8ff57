import dataclasses

import pytest
import torch
from replays import LENGTHS, write_replay

from onedp_ros.contract import Camera, task_contract


@pytest.fixture(scope="session")
def small_contract():
    """Two small cameras, so that networks run fast."""
    return dataclasses.replace(
        task_contract("pnp_milk"),
        task="test",
        cameras={"wrist": Camera("wrist/image", 40, 48), "front": Camera("front/image", 40, 48)},
        crop=(36, 40),
    )


@pytest.fixture
def replay(tmp_path, small_contract):
    return write_replay(tmp_path / "data.zarr", small_contract, LENGTHS)


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and results then do not depend on the machine's load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
