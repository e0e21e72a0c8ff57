"""A policy in lock step with the cell: for evaluation, and to lead demonstrations to where a policy's mistakes lead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from onedp_ros.contract import ObservationHistory
from onedp_ros.twin.stepped import SteppedCell


def drive(predictor: Any, stepped: SteppedCell, action_steps: int, ahead: int = 0) -> Iterator[float]:
    """Drive a cell just reset, for ever: predict, execute ``action_steps`` actions of the chunk, repeat.

    Args:
        predictor: as of :mod:`onedp_ros.policy.inference`.
        stepped: the cell.
        action_steps: actions executed of each chunk.
        ahead: how many steps after the current one the first of them is for. ``action_steps=1, ahead=4`` comes near to the live
            graph, which samples the newest of 60 chunks a second 0.18 s ahead of the clock.

    Yields:
        After each control step, how long the last prediction took, ms.

    Raises:
        ContractError: a chunk with NaN or without a rotation.
    """
    contract = stepped.contract
    history = ObservationHistory(contract)
    history.add(stepped.observe())
    first = contract.n_obs_steps - 1 + ahead
    while True:
        window = history.window()
        assert window is not None
        begin = time.perf_counter()
        chunk = predictor.predict([window])[0]
        took = 1e3 * (time.perf_counter() - begin)
        positions, quaternions, openings = contract.arm.decode_action(chunk[first : first + action_steps])
        for i in range(action_steps):
            stepped.step(positions[i], quaternions[i], float(openings[i]))
            if i >= action_steps - contract.n_obs_steps:  # only what the next window shows is drawn
                history.add(stepped.observe())
            yield took
