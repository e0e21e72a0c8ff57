"""The cell, the task, the expert, the gymnasium environment and the collection of demonstrations."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import onedp_ros.twin  # noqa: F401 (registers the environment)
from onedp_ros.contract import ContractError, Observation, ObservationAssembler, task_contract
from onedp_ros.data.bags.reader import read_bag, read_metadata
from onedp_ros.geometry import gripper_down, quaternion_to_matrix, rotation_angle
from onedp_ros.messages.decode import feed, pose_arrays
from onedp_ros.tasks.collect import collect, demonstrate, take_over
from onedp_ros.tasks.pnp_milk import AREA_CENTRE, AREA_SIZE, BOX, Expert, PnpMilk, carton, failure, in_box
from onedp_ros.twin.cell import Cell, camera_frames
from onedp_ros.twin.stepped import Frame, PnpMilkEnv, SteppedCell

CONTRACT = task_contract("pnp_milk")


@pytest.fixture(scope="module")
def cell() -> Cell:
    return Cell(PnpMilk())


def test_arm_reaches_cartesian_targets(cell: Cell) -> None:
    cell.reset(np.random.default_rng(0))
    goal, orientation = np.array([0.45, 0.15, 0.25]), gripper_down(0.4)
    cell.set_target(goal, orientation, 0.02)
    cell.step(2500)
    assert np.linalg.norm(cell.position - goal) < 0.002
    assert rotation_angle(cell.quaternion, orientation) < 0.02
    assert cell.fingers.sum() == pytest.approx(0.02, abs=0.002)


def test_hand_takes_real_time(cell: Cell) -> None:
    cell.reset(np.random.default_rng(0))
    cell.set_target(cell.position, cell.quaternion, 0.0)
    cell.step(300)
    assert 0.04 < cell.fingers.sum() < 0.07  # 0.1 m/s, and the fingers lag
    cell.step(700)
    assert cell.fingers.sum() < 0.003


def test_optical_frames_of_the_cameras_are_where_they_see_from(cell: Cell) -> None:
    """In the frames of the bodies that they are fixed to, z is where MuJoCo's camera looks and y is down in the picture."""
    cell.reset(np.random.default_rng(0))
    frames = camera_frames(cell.model)
    assert {name: body for name, (body, *_) in frames.items()} == {"front": "world", "wrist": "hand"}
    for name, (body, position, quaternion) in frames.items():
        seen, held = cell.data.camera(name), cell.data.body(body)
        turned = held.xmat.reshape(3, 3)
        assert np.allclose(held.xpos + turned @ position, seen.xpos, atol=1e-6)
        assert np.allclose(turned @ quaternion_to_matrix(quaternion), seen.xmat.reshape(3, 3) * [1, -1, -1], atol=1e-6)


def test_carton_starts_in_the_area(cell: Cell) -> None:
    starts = []
    for seed in range(50):
        cell.reset(np.random.default_rng(seed))
        centre, yaw, tilt = carton(cell)
        starts.append([*centre[:2], yaw])
        assert tilt < 1e-6
    spread = np.array(starts)
    assert np.all(np.abs(spread[:, :2] - AREA_CENTRE) <= AREA_SIZE / 2)
    assert np.all(np.abs(spread[:, 2]) <= np.deg2rad(30) + 1e-9)
    assert np.ptp(spread[:, 2]) > np.deg2rad(40)
    cell.reset(np.random.default_rng(7))
    again = carton(cell)[0]
    cell.reset(np.random.default_rng(7))
    assert np.array_equal(again, carton(cell)[0])


@pytest.mark.parametrize("max_yaw", [30.0, 180.0])
def test_expert_succeeds_from_home(max_yaw: float) -> None:
    stepped, expert = SteppedCell(CONTRACT, PnpMilk(float(np.deg2rad(max_yaw)))), Expert()
    for seed in range(4):
        stepped.reset(np.random.default_rng(seed))
        while not stepped.success() and stepped.cell.time < 10:
            stepped.step(*expert.act(stepped.cell))
        assert stepped.success(), (seed, stepped.failure())


def test_expert_recovers_from_off_path_starts() -> None:
    stepped, expert = SteppedCell(CONTRACT, PnpMilk()), Expert()
    for seed in range(10):
        stepped.reset(np.random.default_rng(seed), recovery=True)
        while not stepped.success() and stepped.cell.time < 10:
            stepped.step(*expert.act(stepped.cell))
        assert stepped.success(), (seed, stepped.failure())


def test_success_needs_release_and_the_box(cell: Cell) -> None:
    cell.reset(np.random.default_rng(0))
    task = PnpMilk()
    assert not task.success(cell)
    assert failure(cell, lifted=False) == "never grasped"
    assert failure(cell, lifted=True) == "dropped outside the box"
    task.place(cell, np.array([*BOX, 0.045]), 0.3)
    cell.step(500)
    assert in_box(cell) and task.success(cell)
    task.place(cell, np.array([BOX[0], BOX[1] + 0.12, 0.036]), 0.0)
    cell.step(500)
    assert not task.success(cell)


def test_unreachable_pose_is_named(cell: Cell) -> None:
    with pytest.raises(ValueError, match=r"\[2\.0, 0\.0, 0\.3\]"):
        cell.inverse_kinematics(np.array([2.0, 0.0, 0.3]), gripper_down(0.0))


def test_environment_passes_the_checker() -> None:
    environment = gymnasium.make("onedp_ros/PnpMilk-v0", render_mode="rgb_array")
    check_env(environment.unwrapped, skip_render_check=True)
    environment.reset(seed=100000)
    assert environment.render().shape == (120, 320, 3)
    environment.close()


def test_every_sampled_action_can_be_executed() -> None:
    space = PnpMilkEnv().action_space
    space.seed(0)
    position, _, opening = CONTRACT.arm.decode_action(np.stack([space.sample() for _ in range(1000)]))
    assert np.all(np.ptp(position, axis=0) > 0.3) and np.ptp(opening) > 0.07  # all over the box


def test_environment_rewards_the_expert_and_times_out() -> None:
    environment = PnpMilkEnv(max_time=0.2)
    environment.reset(seed=100000)
    action = CONTRACT.arm.encode_action(np.array([0.5, 0.0, 0.4]), gripper_down(0.0), 0.08)
    for _ in range(4):
        _, reward, terminated, truncated, info = environment.step(action)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["failure"] == "never grasped"
    environment.max_time, expert = 20.0, Expert()
    environment.reset(seed=100000)
    while not terminated:
        _, reward, terminated, truncated, _ = environment.step(CONTRACT.arm.encode_action(*expert.act(environment.stepped.cell)))
        assert not truncated
    assert reward == 1.0
    with pytest.raises(ContractError, match="NaN"):
        environment.step(np.full(10, np.nan, np.float32))
    environment.close()


def test_images_show_the_carton_move() -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(np.random.default_rng(1))
    first = stepped.observe()
    assert first.image_stamps["wrist"] != first.image_stamps["front"]  # staggered
    assert {image.shape for image in first.images.values()} == {(120, 160, 3)}
    stepped.reset(np.random.default_rng(2))
    assert np.abs(first.images["front"].astype(int) - stepped.observe().images["front"]).max() > 60
    stepped.close()


def test_demonstration_equals_what_the_environment_shows(tmp_path: Path) -> None:
    """Sets assembled from a bag are those that the lock-step cell shows a policy: same stamps, images and states."""
    success, _ = demonstrate(CONTRACT, 1, tmp_path / "bag", recoveries=0.0, max_yaw=PnpMilk.max_yaw)
    assert success and read_metadata(tmp_path / "bag")["nudged"] is False
    assembler = ObservationAssembler(CONTRACT)
    sets, targets, openings = {}, [], []
    for topic, stamp, message in read_bag(tmp_path / "bag"):
        if topic == "target_pose":
            targets.append((stamp, *pose_arrays(message.pose)))
        elif topic == "gripper_target":
            openings.append(message.position[0])
        feed(assembler, topic, message)
        sets.update({o.stamp: o for o in assembler.pop()})
    rng = np.random.default_rng(1)
    rng.uniform(size=2)  # by which the demonstration chose neither to recover nor to be nudged
    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(rng)
    compared = 0
    for (stamp, position, quaternion), opening in zip(targets, openings, strict=True):
        observation = stepped.observe()
        assert stamp == observation.stamp == stepped.stamp
        if stamp in sets:
            live = sets[stamp]
            assert dict(live.image_stamps) == dict(observation.image_stamps)
            for name in CONTRACT.cameras:
                assert np.array_equal(live.images[name], observation.images[name])
            assert np.allclose(live.state, observation.state, atol=1e-6)
            compared += 1
        stepped.step(position, quaternion, opening)
    assert compared > len(targets) - 5 and stepped.success()
    stepped.close()


def test_collect_keeps_successes_and_goes_on(tmp_path: Path) -> None:
    first = collect(tmp_path, 2, jobs=1)
    assert first["kept"] == 2
    written = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = collect(tmp_path, 3, jobs=1)
    assert again["kept"] == 3
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(kept) == 3 and kept.items() >= written.items()


class Aside:
    """A policy that only ever goes to the right, with its hand closed."""

    def reset(self, seed: int) -> None:
        pass

    def predict(self, windows: list[list[Observation]]) -> np.ndarray:
        return np.tile(CONTRACT.arm.encode_action(np.array([0.5, 0.2, 0.35]), gripper_down(0.0), 0.0), (1, CONTRACT.horizon, 1))


def test_the_expert_takes_over_where_a_policy_led() -> None:
    stepped, moments, led = SteppedCell(CONTRACT, PnpMilk()), set(), 0
    for seed in range(3):
        take_over(stepped, Aside(), seed, np.random.default_rng(seed))
        moments.add(stepped.cell.time)
        if stepped.cell.time > 2.0:
            assert stepped.cell.position[1] == pytest.approx(0.2, abs=0.02)
            led += 1
        expert = Expert()
        begin = stepped.cell.time
        while not stepped.success() and stepped.cell.time < begin + 12:
            stepped.step(*expert.act(stepped.cell))
        assert stepped.success()
    assert len(moments) == 3 and led
    states: list[int] = []
    frames: list[Frame] = []
    begin_stamp = stepped.stamp
    stepped.watch(states.append, frames.append)
    stepped.step(*expert.act(stepped.cell))
    assert states[0] == begin_stamp and len(states) == 11 and all(f.stamp >= begin_stamp for f in frames)
    stepped.close()
