"""A small network and observations for the tests."""

import numpy as np

from onedp_ros.contract import Observation
from onedp_ros.policy.networks import NetworkConfig

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)


def observations(contract, count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Observation(
            i,
            {n: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()},
            dict.fromkeys(contract.cameras, i),
            rng.random(contract.state_dim, dtype=np.float32),
        )
        for i in range(count)
    ]
