"""A task is one file: one that a test brings along is collected, driven and shown like those of the package."""

from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.utils.seeding import np_random
from reach import contract_file

from onedp_ros.cli.evaluate import main
from onedp_ros.contract import ContractError, Observation, ObservationAssembler, task_contract
from onedp_ros.data.bags.reader import read_bag, read_metadata
from onedp_ros.evaluation.figures import plot_starts
from onedp_ros.evaluation.rollout import evaluate, rollout
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import feed
from onedp_ros.registry import UnknownNameError
from onedp_ros.tasks import TASKS, environment_id
from onedp_ros.tasks.base import EnvironmentOptions, PlainEnvironment, Task, read_options
from onedp_ros.tasks.collect import collect
from onedp_ros.tasks.environment import TaskEnv
from onedp_ros.twin.cell import build_model


def test_a_new_task_is_collected(reach: Path, tmp_path: Path) -> None:
    out = tmp_path / "bags"
    summary = collect(out, 2, task=str(reach), options={"height": 0.3}, jobs=1)
    assert summary == {"attempts": 2, "kept": 2, "failures": {}}
    metadata = read_metadata(out / "episode_000000")
    assert (metadata["task"], metadata["robot"], metadata["success"]) == ("reach", "twin", True)
    assert metadata["options"] == {"height": 0.3}
    shapes, targets = {}, []
    for topic, _, message in read_bag(out / "episode_000000"):
        if topic.endswith("image"):
            shapes[topic] = (message.height, message.width)
        if topic == "target_pose":
            targets.append(message.pose.position.z)
    assert shapes == {"side/image": (64, 96), "wrist/image": (48, 64)}
    assert targets and np.allclose(targets, 0.3)


def test_a_new_task_is_driven_and_its_starts_are_drawn(reach: Path, tmp_path: Path) -> None:
    contract = task_contract(str(reach))
    environment = TASKS.get("reach").make(contract)

    class Still:
        def predict(self, windows: list[list[Observation]]) -> np.ndarray:
            return np.tile(contract.arm.encode_action(np.array([0.5, 0.0, 0.2]), gripper_down(0.0), 0.08), (1, contract.horizon, 1))

    episodes = [rollout(Still(), environment, seed, 8, 2.0) for seed in range(3)]
    environment.close()
    assert {e.failure for e in episodes} == {"too far away"} and all(0.8 < e.score < 1.0 for e in episodes)
    assert len({e.start for e in episodes}) == 3
    results = [{"start": e.start, "success": e.success} for e in episodes]
    summary = {"start_labels": TASKS.get("reach").start_labels, "results": results, "task": "reach", "method": "m"}
    assert plot_starts({**summary, "success_rate": 0.0, "episodes": 3}, tmp_path / "starts.png")
    assert (tmp_path / "starts.png").stat().st_size > 1000
    assert not plot_starts({**summary, "start_labels": (), "success_rate": 0.0, "episodes": 3}, tmp_path / "none.png")


def test_a_new_task_is_a_gymnasium_environment(reach: Path) -> None:
    environment = TaskEnv(str(reach), render_mode="rgb_array", height=0.3)
    environment.reset(seed=0)
    assert environment.render().shape == (64, 96 + 64, 3)
    done = False
    while not done:
        _, reward, done, truncated, info = environment.step(environment.environment.expert_action())
        assert not truncated
    assert reward == 1.0 and info["success"] and info["score"] > 0.9
    environment.close()


def test_ids_follow_from_the_names_of_files() -> None:
    assert environment_id("pnp_milk") == "onedp_ros/PnpMilk-v0"


def test_a_contract_whose_task_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    """A task for a real cell only never becomes another task's scene."""
    tea = str(contract_file(tmp_path, task="tea"))
    expected = r"unknown simulated task 'tea', expected one of .*pnp_milk.*; to add one, write the file onedp_ros/tasks/tea\.py"
    with pytest.raises(UnknownNameError, match=expected):
        collect(tmp_path / "bags", 1, task=tea)
    with pytest.raises(UnknownNameError, match=expected):
        evaluate(Path("none"), task=tea)
    with pytest.raises(UnknownNameError, match=expected):
        main([tea])
    with pytest.raises(UnknownNameError, match=expected):
        TaskEnv(tea)
    assert not (tmp_path / "bags").exists()


def test_an_unknown_task_file_lists_those_that_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"tea\.yaml is not in config/tasks, which has .*pnp_milk"):
        collect(Path("none"), 1, task="tea")


def test_a_camera_that_the_twin_cannot_place_is_named(reach: Path, tmp_path: Path) -> None:
    cameras = {"top": {"topic": "top/image", "height": 64, "width": 64}}
    contract = task_contract(str(contract_file(tmp_path, cameras=cameras)))
    with pytest.raises(ContractError, match="no camera 'top', only front, side, wrist"):
        TASKS.get("reach").make(contract)


def test_options_are_read_from_the_command_line() -> None:
    assert read_options(["height=0.3", "kind=round"]) == {"height": 0.3, "kind": "round"}
    for text in ("height", "=3"):
        with pytest.raises(ValueError, match=f"option '{text}' is not of the form name=value"):
            read_options([text])


def test_options_are_checked_before_anything_is_made(reach: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown option 'depth', expected variation, height"):
        collect(tmp_path / "bags", 1, task=str(reach), options={"depth": 1})
    with pytest.raises(ValueError, match=r"option\.height is 9, expected a number from 0\.1 to 0\.4 m"):
        evaluate(Path("none"), task=str(reach), options={"height": 9})


@pytest.mark.parametrize("name", TASKS.names())
def test_a_scene_can_be_sent_to_the_process_that_draws_it(name: str) -> None:
    task = TASKS.get(name)
    if task.scene is not None:
        scene = task.scene(task.choose({}))
        build_model(scene)
        sent = ForkingPickler.loads(ForkingPickler.dumps(scene))
        assert build_model(sent).nbody == build_model(scene).nbody


def test_a_task_has_a_scene_or_an_environment() -> None:
    with pytest.raises(ValueError, match="either a scene"):
        Task()
    with pytest.raises(ValueError, match="study_by is 'way', expected one of the start labels, x, y"):
        Task(environment=lambda contract, options: TaughtPush(contract), start_labels=("x", "y"), study_by="way")


def test_every_task_in_the_cell_can_vary_and_no_other(reach: Path, tmp_path: Path) -> None:
    environment = TaskEnv(str(reach), variation="strong", height=0.3)
    one, _ = environment.reset(seed=0)
    other, _ = environment.reset(seed=1)
    assert np.abs(one["wrist"].astype(int) - other["wrist"]).mean() > 3, "the table has another colour"
    environment.close()
    with pytest.raises(ValueError, match=r"option\.variation is 'wild', expected one of none, mild, strong, mild_noiseless"):
        TaskEnv(str(reach), variation="wild")
    collect(tmp_path / "bags", 1, task=str(reach), options={"variation": "mild"}, jobs=1)
    assert read_metadata(tmp_path / "bags" / "episode_000000")["options"] == {"variation": "mild"}

    def make(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match="unknown option 'variation', expected none: this task has no options"):
        Task(environment=make).choose({"variation": "mild"})
    with pytest.raises(ValueError, match="options is EnvironmentOptions, expected a subclass of TaskOptions"):
        Task(scene=make, options=EnvironmentOptions)


class Push(PlainEnvironment):
    """A benchmark's environment, of a point in the plane: an action is where it is pushed to, half of the way in a step."""

    def begin(self, rng: np.random.Generator, recovery: bool) -> None:
        self.point = rng.uniform(-1.0, 0.0, size=2)

    def execute(self, action: np.ndarray) -> None:
        self.point = (self.point + action) / 2

    def state(self) -> np.ndarray:
        return self.point

    def images(self) -> dict[str, np.ndarray]:
        return {"above": np.full((64, 64, 3), round(100 + 50 * self.point[0]), np.uint8)}

    def success(self) -> bool:
        return bool(np.abs(self.point - 1.0).max() < 0.05)

    def failure(self) -> str:
        return "too far away"

    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return -np.ones(2), np.ones(2)

    def start(self) -> tuple[float, ...]:
        return (float(self.point[0]), float(self.point[1]))


class TaughtPush(Push):
    def expert_action(self) -> np.ndarray:
        return np.ones(2)


@pytest.fixture
def push(tmp_path: Path) -> Iterator[Path]:
    """The task file of a benchmark without a cell."""
    plane = {"name": "point", "kind": "plain", "size": 2}
    cameras = {"above": {"topic": "above/image", "height": 64, "width": 64}}
    features = {"state": [{**plane, "topic": "point"}], "action": [{**plane, "topic": "push"}]}
    TASKS.add("push", Task(environment=lambda contract, options: TaughtPush(contract), start_labels=("x", "y")))
    yield contract_file(tmp_path, task="push", cameras=cameras, crop=[60, 60], **features)
    TASKS.remove("push")


def test_a_benchmark_without_a_cell_is_driven(push: Path) -> None:
    contract = task_contract(str(push))
    environment = TASKS.get("push").make(contract)

    class ToOne:
        stamps: ClassVar[list[list[int]]] = []

        def predict(self, windows: list[list[Observation]]) -> np.ndarray:
            self.stamps.append([observation.stamp for observation in windows[0]])
            return np.ones((1, contract.horizon, 2), np.float32)

    episode = rollout(ToOne(), environment, 0, 4, 5.0)
    assert episode.success and episode.score == 1.0 and episode.start == tuple(np_random(0)[0].uniform(-1.0, 0.0, size=2))
    assert ToOne.stamps == [[0, 0], [150_000_000, 200_000_000]]
    observation = environment.observe()
    assert observation.stamp == round(1e9 * episode.time) and observation.state.dtype == np.float32
    for spoiled, message in ((np.full(2, np.nan), "NaN"), (np.zeros(3), r"shape \(3,\), expected \(2,\)")):
        with pytest.raises(ContractError, match=message):
            environment.step(spoiled)
    with pytest.raises(ValueError, match="no scripted expert"):
        Push(contract).expert_action()


def test_a_benchmark_without_a_cell_is_collected_and_its_bag_gives_its_observations(push: Path, tmp_path: Path) -> None:
    assert collect(tmp_path / "bags", 1, task=str(push), jobs=1)["kept"] == 1
    bag, contract = tmp_path / "bags" / "episode_000000", task_contract(str(push))
    assert read_metadata(bag)["robot"] == "simulation"
    assembler, actions = ObservationAssembler(contract), 0
    for topic, _, message in read_bag(bag):
        actions += topic == "push"
        feed(assembler, topic, message)
    observations = assembler.pop()
    assert actions >= 5 and len(observations) == actions + 1
    assert np.abs(observations[-1].state - 1.0).max() < 0.01
    for observation in observations:
        assert observation.images["above"].mean() == round(100 + 50 * float(observation.state[0]))


def test_a_benchmark_without_a_cell_is_a_gymnasium_environment(push: Path) -> None:
    environment = TaskEnv(str(push))
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation) and observation["state"].shape == (2,)
    assert environment.action_space.contains(environment.action_space.sample())
    _, _, done, _, _ = environment.step(np.full(2, 1.9, np.float32))
    assert not done
