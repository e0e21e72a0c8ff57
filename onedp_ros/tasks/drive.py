"""A policy in lock step with an environment: for evaluation, and to lead demonstrations to where a policy's mistakes lead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from onedp_ros.contract import ObservationHistory
from onedp_ros.tasks.base import Environment


def drive(predictor: Any, environment: Environment, action_steps: int, ahead: int = 0) -> Iterator[float]:
    """Drive an environment just reset, for ever: predict, execute ``action_steps`` actions of the chunk, repeat.

    Args:
        predictor: as of :mod:`onedp_ros.policy.predictor`.
        environment: what it drives.
        action_steps: actions executed of each chunk.
        ahead: how many steps after the current one the first of them is for. ``action_steps=1, ahead=4`` comes near to the live
            graph, which samples the newest of 60 chunks a second 0.18 s ahead of the clock.

    Yields:
        After each control step, how long the last prediction took, ms.

    Raises:
        ContractError: an action that cannot be executed, with NaN or without a rotation.
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
            if i >= action_steps - contract.n_obs_steps:  # only what the next window shows is drawn
                history.add(environment.observe())
            yield took
