"""Run a policy in lockstep with an environment, for evaluation and to start recovery demonstrations where it makes mistakes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from onedp_ros.contract import ObservationHistory
from onedp_ros.tasks.base import Environment


def drive(predictor: Any, environment: Environment, action_steps: int, ahead: int = 0) -> Iterator[float]:
    """Run a policy on an environment that was just reset: predict, execute ``action_steps`` actions of the chunk, repeat forever.

    Args:
        predictor: see :mod:`onedp_ros.policy.predictor`.
        environment: what it drives.
        action_steps: actions executed per chunk.
        ahead: how many steps after the current one the first executed action is for. ``action_steps=1, ahead=4`` approximates the
            live graph, which samples the newest of 60 chunks per second 0.18 s ahead of the clock.

    Yields:
        After each control step, the duration of the last prediction, ms.

    Raises:
        ContractError: an action holds NaN or an invalid rotation.
    """
    contract = environment.contract
    history = ObservationHistory(contract)
    history.add(environment.observe())
    first = contract.n_obs_steps - 1 + ahead
    while True:
        window = history.window()
        assert window is not None
        begin = time.perf_counter()
        chunk = predictor.predict([window])[0]
        took = 1e3 * (time.perf_counter() - begin)
        for i in range(action_steps):
            environment.step(chunk[first + i])
            if i >= action_steps - contract.n_obs_steps:  # only what the next window needs is rendered
                history.add(environment.observe())
            yield took
