"""Evaluation in the twin and the figures around it."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from onedp_ros.bench import inference as bench
from onedp_ros.bench import recorder, start
from onedp_ros.cli.evaluate import main
from onedp_ros.contract import Normalizer, Observation, task_contract
from onedp_ros.evaluation import rollout as module
from onedp_ros.evaluation.figures import plot_recorder
from onedp_ros.evaluation.rollout import EpisodeResult, evaluate, rollout
from onedp_ros.geometry import gripper_down
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy
from onedp_ros.tasks.base import EVALUATION_SEEDS
from onedp_ros.tasks.drive import drive
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")


class ExpertPredictor:
    """The scripted expert as a policy: every action of the chunk is what it would command now."""

    def __init__(self, stepped: SteppedCell) -> None:
        self.stepped, self.windows = stepped, 0

    def predict(self, windows: list[list[Observation]]) -> np.ndarray:
        (window,) = windows
        assert len(window) == CONTRACT.n_obs_steps
        if self.windows:
            assert window[1].stamp - window[0].stamp == CONTRACT.dt_ns
        self.windows += 1
        return np.tile(self.stepped.expert_action(), (1, CONTRACT.horizon, 1))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    range_ = Normalizer(*(np.array(v, np.float32) for v in (np.zeros(9), np.ones(9), np.zeros(10), np.ones(10))))
    path = tmp_path_factory.mktemp("bundle")
    save_policy(path, Policy(CONTRACT, NetworkConfig(16, (16, 32, 64)), range_, "onedp_s"), {"gradient_steps": 0})
    return path


def test_rollout_succeeds_with_the_expert() -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk())
    episode = rollout(ExpertPredictor(stepped), stepped, EVALUATION_SEEDS, action_steps=2, max_time=15.0)
    stepped.close()
    assert episode.success and episode.failure == "" and 2 < episode.time < 15


def test_with_a_lead_each_step_executes_the_action_that_is_for_later() -> None:
    class Counting:
        def predict(self, windows: list[list[Observation]]) -> np.ndarray:
            rows = [
                CONTRACT.arm.encode_action(np.array([0.4 + 0.01 * i, 0.0, 0.3]), gripper_down(0.0), 0.08)
                for i in range(CONTRACT.horizon)
            ]
            return np.stack(rows)[None]

    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(np.random.default_rng(0))
    driving = drive(Counting(), stepped, action_steps=1, ahead=6)
    for _ in range(3):
        next(driving)
        assert stepped.cell.target_position[0] == pytest.approx(0.47)
    stepped.close()
    with pytest.raises(ValueError, match="lead"):
        evaluate(Path("none"), task="pnp_milk", action_steps=10, lead=0.3)


def test_broken_chunk_ends_the_episode_with_its_reason() -> None:
    class Broken:
        def predict(self, windows: list[list[Observation]]) -> np.ndarray:
            return np.full((1, CONTRACT.horizon, 10), np.nan, np.float32)

    stepped = SteppedCell(CONTRACT, PnpMilk())
    episode = rollout(Broken(), stepped, EVALUATION_SEEDS, action_steps=8, max_time=5.0)
    stepped.close()
    assert not episode.success and "NaN" in episode.failure


def test_evaluate_an_untrained_policy(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    arguments = ["pnp_milk", "--model", str(bundle), "--engine", "torch", "--episodes", "2", "--max-time", "0.8"]
    assert main([*arguments, "--jobs", "1", "--json", str(file)]) == 0
    summary = json.loads(file.read_text())
    assert summary["success_rate"] == 0 and summary["nfe"] == 1 and summary["mean_time_s"] is None
    assert sum(summary["failures"].values()) == 2 and len(summary["ci95"]) == 2
    assert file.with_suffix(".png").stat().st_size > 1000
    assert "failed" in capsys.readouterr().out


def test_training_seeds_are_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pnp_milk", "--model", str(bundle), "--seed", "7"])
    assert f"--seed 7 may be training data; evaluation seeds start at {EVALUATION_SEEDS}" in capsys.readouterr().err


def test_action_steps_must_fit_the_chunk(bundle: Path) -> None:
    with pytest.raises(ValueError, match="action_steps is 16, expected 1 to 15"):
        evaluate(bundle, task="pnp_milk", action_steps=16)


def test_with_a_latency_the_world_goes_on(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pnp_milk", "--model", str(bundle), "--engine", "torch", "--episodes", "1", "--max-time", "0.5", "--jobs", "1"]
    assert main([*arguments, "--latency", "v100"]) == 0
    assert "in continuous time, latency v100, 0.18 s ahead" in capsys.readouterr().out
    with pytest.raises(ValueError, match="action_steps is 8, but with a latency"):
        evaluate(bundle, task="pnp_milk", action_steps=8, latency="v100")
    with pytest.raises(ValueError, match="latency is 'slow', expected measured or v100"):
        evaluate(bundle, task="pnp_milk", latency="slow")


@pytest.mark.real_time
def test_bench_rows_take_turns_and_count_evaluations() -> None:
    rows = bench.measure("compact", repeats=2, threads=1)
    assert {"torch", "openvino"} <= {r["engine"] for r in rows}
    assert {(r["method"], r["nfe"]) for r in rows} == {("onedp_s", 1), ("dp_ddim10", 10)}
    assert all(0 < r["p50_ms"] <= r["p95_ms"] for r in rows)
    eager = {r["method"]: r["p50_ms"] for r in rows if r["engine"] == "torch"}
    assert eager["dp_ddim10"] > eager["onedp_s"]


@pytest.mark.real_time
def test_frames_arrive_with_the_shared_memory_profile() -> None:
    rows = {r["profile"]: r for r in bench.frames(seconds=0.5, width=160, height=120)}
    assert rows["shared memory"]["received"] == rows["shared memory"]["sent"] == 60


@pytest.mark.real_time
def test_the_starts_bench_takes_first_and_next_in_turn() -> None:
    pytest.importorskip("rclpy")
    result = start.run("openvino", repeats=1)
    (first,), (following,) = result["seconds"].values()
    assert result["next_to_first"] == pytest.approx(following / first, abs=0.01)
    assert f"{following}" in start.table(result)


@pytest.mark.real_time
def test_the_recorders_bench_counts_what_is_not_in_the_bag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_bag, camera = recorder.read_bag, CONTRACT.cameras["front"].topic

    def without_one_frame(bag: Path) -> Iterator[Any]:
        frames = 0
        for topic, stamp, message in read_bag(bag):
            frames += topic == camera
            if topic != camera or frames != 20:
                yield topic, stamp, message

    monkeypatch.setattr(recorder, "read_bag", without_one_frame)
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # whatever becomes of them is undone afterwards
        monkeypatch.delenv(name)
    result = recorder.run(1.5, tmp_path)
    assert {topic for topic, counts in result["topics"].items() if counts["lost"]} == {camera}
    assert result["lost"] == result["topics"][camera]["lost"] == 1
    assert result["topics"][camera]["recorded"] > 20
    assert result["core_percent"] > 0
    assert f"{camera}" in recorder.table(result)
    plot_recorder(result, tmp_path / "recorder.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "recorder.png"]  # the bag is gone


def episodes(file: Path) -> list[dict[str, Any]]:
    """But for how long they took."""
    return [{k: v for k, v in episode.items() if k != "inference_ms"} for episode in json.loads(file.read_text())["results"]]


def end_in_the_second_episode() -> None:
    """Makes the process that it is called in die amid its second episode from now on, as when memory runs out."""
    driven: list[object] = []
    drive = module.drive

    def fatal(*arguments: Any) -> Iterator[float]:
        driven.append(arguments)
        for count, took in enumerate(drive(*arguments)):
            if len(driven) == 2 and count == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield took

    module.drive = fatal


def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(bundle: Path, tmp_path: Path, cluster: LocalCluster) -> None:
    arguments = ["pnp_milk", "--model", str(bundle), "--engine", "torch", "--episodes", "6", "--max-time", "0.6"]
    assert main([*arguments, "--jobs", "1", "--json", str(tmp_path / "here.json")]) == 0
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        first, *_ = client.scheduler_info()["workers"]
        client.run(end_in_the_second_episode, workers=[first])
        assert main([*arguments, "--scheduler", cluster.scheduler_address, "--json", str(tmp_path / "there.json")]) == 0
        assert first not in client.scheduler_info()["workers"], "it was killed"
    assert episodes(tmp_path / "there.json") == episodes(tmp_path / "here.json")


def test_an_interrupted_evaluation_goes_on(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["pnp_milk", "--model", str(bundle), "--engine", "torch", "--jobs", "1", "--max-time", "0.2", "--episodes", "3"]
    file, partial = tmp_path / "went_on.json", tmp_path / "went_on.json.partial"
    assert main([*arguments, "--json", str(tmp_path / "straight.json")]) == 0
    begun: list[int] = []
    rollout = module.rollout

    def interrupted(predictor: Any, environment: Any, seed: int, *more: Any) -> EpisodeResult:
        begun.append(seed)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return rollout(predictor, environment, seed, *more)

    monkeypatch.setattr(module, "rollout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--json", str(file)])
    with open(partial, "a") as lines:
        lines.write('{"episode": {"seed"')  # as it was killed
    assert main([*arguments, "--json", str(file)]) == 0
    first = begun[0]
    assert begun == [first, first + 1, first + 2, first + 2]
    assert episodes(file) == episodes(tmp_path / "straight.json") and not partial.exists()

    begun[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--json", str(file)])
    begun[:] = [0] * 3
    assert main([*arguments, "--json", str(file), "--action-steps", "4"]) == 0
    assert begun[3:] == [first, first + 1, first + 2], "other settings, other results"
