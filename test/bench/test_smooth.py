"""The figures of ``onedp bench --smooth``, and a run of it on a small policy."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onedp_ros.bench import smooth
from onedp_ros.cli.bench import main
from onedp_ros.contract import Contract, Normalizer, task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.pnp_milk import TASK

ALL = np.ones(120, bool)
SECONDS = np.arange(120) / 60


@pytest.fixture
def short() -> Iterator[Contract]:
    """pnp_milk as a task of episodes that end soon."""
    contract = Contract.from_dict({**task_contract("pnp_milk").to_dict(), "task": "short"})
    TASKS.add("short", dataclasses.replace(TASK, max_time=0.5))
    yield contract
    TASKS.remove("short")


def test_steady_motion_does_not_shake_and_jumps_are_measured_beyond_it() -> None:
    steady = np.stack([0.3 * SECONDS, 0 * SECONDS, 0.1 * SECONDS], axis=1)
    turning = [gripper_down(0.5 * s) for s in SECONDS]
    figures = smooth.shaking(steady, turning, ALL)
    assert max(figures.values()) < 1e-6
    jumped, turned = steady.copy(), [gripper_down(0.5 * s + 0.02 * (s > 1)) for s in SECONDS]
    jumped[60:, 1] += 0.004
    figures = smooth.shaking(jumped, turned, ALL)
    assert figures["jump"] == pytest.approx(0.004) and figures["turn"] == pytest.approx(0.02, abs=1e-6)
    assert figures["jerk"] == pytest.approx(0.004 * np.sqrt(6 / 117) * 60**3)
    held = ALL.copy()
    held[59] = False
    assert smooth.shaking(jumped, turned, held)["jump"] < 1e-6, "where the arm was held it does not count"


def test_the_lag_of_a_stream_is_found() -> None:
    newest = np.stack([np.sin(3 * SECONDS), np.cos(2 * SECONDS), SECONDS**2], axis=1)
    late = np.stack([np.interp(SECONDS - 0.05, SECONDS, axis) for axis in newest.T], axis=1)
    assert smooth.lag(late, newest, ALL) == pytest.approx(0.05)
    assert smooth.lag(newest, newest, ALL) == pytest.approx(0.0, abs=1e-9)


def test_a_run_goes_on_where_it_was_interrupted(
    short: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    middle = short.arm.encode_action(np.array([0.5, 0.0, 0.3]), gripper_down(0.0), 0.05)
    scales = Normalizer(*(np.array(v, np.float32) for v in (np.zeros(9), np.ones(9), middle, np.full(10, 0.05))))
    save_policy(tmp_path / "model", Policy(short, NetworkConfig(16, (16, 32, 64)), scales, "onedp_s"), {"gradient_steps": 0})
    file, run_episode, seeds = tmp_path / "smooth.json", smooth.run_episode, []
    arguments = ["--smooth", "--model", str(tmp_path / "model"), "--engine", "torch", "--episodes", "2", "--jobs", "1"]
    arguments += ["--delays", "0.1", "--json", str(file)]

    def counted(loading: Any, seed: int, *more: Any) -> dict[str, Any]:
        seeds.append(seed)
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return run_episode(loading, seed, *more)

    monkeypatch.setattr(smooth, "run_episode", counted)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert main(arguments) == 0
    assert seeds == [50000, 50001, 50000, 50000, 50001], "below those of evaluations; what was there was not run again"
    result = json.loads(file.read_text())
    rows = {(r["handover"], r["delay_s"]): r for r in result["rows"]}
    assert set(rows) == {("ensemble", 0.1), ("newest", 0.1)}
    assert all(r["success_rate"] == 0.0 and r["mean_time_s"] is None for r in rows.values())
    assert rows["ensemble", 0.1]["jerk"] < rows["newest", 0.1]["jerk"]
    assert file.with_suffix(".png").stat().st_size > 1000 and not file.with_name("smooth.json.partial").exists()
    assert "newest" in capsys.readouterr().out


def test_what_cannot_be_run_is_refused(short: Contract, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latency is 'measured'"):
        smooth.run(tmp_path, latency="measured")
    with pytest.raises(SystemExit, match="2"):
        main(["--smooth"])
