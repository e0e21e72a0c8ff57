"""A predictor with the interface of ``policy.predictor.load_predictor``, for tests. Run as a program: a policy node."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from onedp_ros.contract import Contract, Floats, Observation

STEP = 0.004  # m along x between two actions of a chunk


class StandinPredictor:
    """Moves along x from where the newest observation says the arm is. Records its windows.

    ``seconds`` is how long a prediction takes, ``hold`` (an Event) stops it, ``spoil(chunk)`` may change its (1, horizon, 10).
    """

    method, nfe, engine, network, parity, encode_ms = "standin", 1, "none", "none", 0.0, 0.0

    def __init__(self, contract: Contract, seconds: float = 0.0) -> None:
        self.contract, self.seconds = contract, seconds
        self.windows: list[list[Observation]] = []
        self.spoil: Any = None
        self.hold: Any = None

    def predict(self, windows: Sequence[Sequence[Observation]]) -> Floats:
        self.windows.append(list(windows[0]))
        if self.hold is not None:
            self.hold.wait(5.0)
        if self.seconds:
            time.sleep(self.seconds)  # the time that an engine would take, without the interpreter's lock
        state = windows[0][-1].state.astype(np.float64)
        quaternion = state[3:7] if np.any(state[3:7]) else np.array([1.0, 0.0, 0.0, 0.0])
        first = self.contract.n_obs_steps - 1
        rows = [
            self.contract.arm.encode_action(
                state[:3] + np.array([STEP * (i - first), 0, 0]), quaternion, float(state[7] + state[8])
            )
            for i in range(self.contract.horizon)
        ]
        chunk = np.stack(rows)[None]
        if self.spoil is not None:
            self.spoil(chunk)
        return chunk


def load_standin(path: str, *, contract: Contract, seconds: float = 0.005, **_: Any) -> StandinPredictor:
    return StandinPredictor(contract, seconds)


if __name__ == "__main__":
    from onedp_ros.nodes.lib.process import run_node
    from onedp_ros.nodes.policy_node import make_node

    sys.exit(run_node(lambda: make_node(load_standin)))
