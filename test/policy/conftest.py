import dataclasses

import numpy as np
import pytest
import torch
from windows import SMALL

from onedp_ros.contract import Camera, Normalizer, task_contract
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.policies import Policy


@pytest.fixture
def small_contract():
    """Two small cameras, so that networks run fast."""
    return dataclasses.replace(
        task_contract("pnp_milk"),
        task="test",
        cameras={"wrist": Camera("wrist/image", 40, 48), "front": Camera("front/image", 40, 48)},
        crop=(36, 40),
    )


@pytest.fixture
def normalizer(small_contract):
    rng = np.random.default_rng(0)
    return Normalizer.fit(small_contract, rng.random((50, 9)), rng.random((50, 10)))


@pytest.fixture
def checkpoint(tmp_path, small_contract, normalizer):
    torch.manual_seed(0)
    policy = Policy(small_contract, SMALL, normalizer, "onedp_s")
    policy.unet.final[1].weight.data *= 0.2  # an untrained network's output is rougher than that of a trained one
    save_policy(tmp_path, policy, {}, torch.float32)
    return tmp_path
