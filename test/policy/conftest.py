import dataclasses

import numpy as np
import pytest

from onedp_ros.contract import Camera, Normalizer, task_contract


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
