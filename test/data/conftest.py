"""Recordings as a robot with two staggered 30 Hz cameras makes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recordings import ARM, HALF_FRAME, START, Record, frame, position

from onedp_ros.contract import NANOSECONDS, Contract, task_contract
from onedp_ros.data.bags.writer import EpisodeWriter


@pytest.fixture
def contract() -> Contract:
    return task_contract("pnp_milk")


@pytest.fixture
def record(tmp_path: Path, contract: Contract) -> Record:
    """Record an episode of ``seconds``; frames (``camera``, ``index``) for which ``lost`` is true are missing.

    Frame k of both cameras together is at ``START + k * HALF_FRAME``, wrist first. Targets come with every third frame from the
    second on, 0.1 m above the arm, opening 0.08 m in the first second, then 0.
    """

    def write(
        name: str = "episode",
        seconds: float = 2.0,
        lost: Callable[[str, int], bool] = lambda camera, index: False,
        under: Contract = contract,
        success: bool = True,
        finish: bool = True,
    ) -> Path:
        events: list[tuple[int, int, str, int]] = []
        for k in range(round(seconds * 60)):
            stamp = START + k * HALF_FRAME
            events.append((stamp, 0, "wrist" if k % 2 == 0 else "front", k))
            if k % 3 == 1:
                events.append((stamp, 1, "target", k))
        events += [(START + k * 5_000_000, 2, "state", k) for k in range(-2, round(seconds * 200) + 2)]
        writer = EpisodeWriter(tmp_path / name, under, {"seed": 3})
        for stamp, _, kind, k in sorted(events):
            if kind == "state":
                writer.add_joint_state(stamp, [*ARM, *under.arm.finger_joints], np.full(9, 0.04), np.zeros(9))
                writer.add_pose(stamp, position(stamp), [1.0, 0.0, 0.0, 0.0])
            elif kind == "target":
                opening = 0.08 if stamp < START + NANOSECONDS else 0.0
                writer.add_target(stamp, position(stamp) + np.array([0, 0, 0.1]), [1.0, 0.0, 0.0, 0.0], opening)
            elif not lost(kind, k):
                writer.add_image(kind, stamp, frame(kind, k))
        return writer.close(success=success) if finish else writer.path

    return write
