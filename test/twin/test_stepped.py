"""The cell in lock step: when its sensors publish, what it observes, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from onedp_ros.contract import Contract, ContractError, task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import Cell, Scene, Target, looking
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")
MS = 1_000_000


def changed(**fields: Any) -> Contract:
    return Contract.from_dict({**CONTRACT.to_dict(), **fields})


def camera(name: str, height: int = 120, width: int = 160) -> dict[str, Any]:
    return {"topic": f"{name}_camera/color/image_raw", "height": height, "width": width}


class Watched(Scene):
    """An empty table under a third camera; remembers how often it was looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def add_to(self, spec: mujoco.MjSpec) -> None:
        spec.worldbody.add_camera(name="side", pos=[0.5, 0.8, 0.5], quat=looking([0.5, 0.8, 0.5], [0.5, 0.0, 0.1]), fovy=45)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        self.looks = 0

    def watch(self, cell: Cell) -> None:
        self.looks += 1

    def success(self, cell: Cell) -> bool:
        return False

    def failure(self, cell: Cell) -> str:
        return f"looked {self.looks} times"

    def expert(self, cell: Cell) -> Target:
        return cell.position, cell.quaternion, 0.08


class Recorded:
    """What an environment writes, in the place of a writer of bags."""

    def __init__(self) -> None:
        self.states: list[int] = []
        self.poses: list[int] = []
        self.frames: list[tuple[str, int]] = []

    def add_joint_state(self, stamp: int, names: Any, positions: Any, velocities: Any) -> None:
        assert len(names) == len(positions) == len(velocities) == 9
        self.states.append(stamp)

    def add_pose(self, stamp: int, position: Any, quaternion: Any) -> None:
        self.poses.append(stamp)

    def add_image(self, name: str, stamp: int, image: np.ndarray) -> None:
        assert image.dtype == np.uint8
        self.frames.append((name, stamp))


@pytest.fixture
def stepped() -> Iterator[SteppedCell]:
    made = SteppedCell(CONTRACT, PnpMilk())
    yield made
    made.close()


def wave(k: int) -> np.ndarray:
    """Actions that move the hand about above the table."""
    position = np.array([0.5 + 0.1 * np.sin(0.7 * k), 0.1 * np.cos(0.5 * k), 0.25 + 0.05 * np.sin(k)])
    return CONTRACT.arm.encode_action(position, gripper_down(0.4 * np.sin(0.3 * k)), 0.04 * (1 + np.cos(0.2 * k)))


def test_observations_are_those_that_the_released_policies_were_trained_on(stepped: SteppedCell) -> None:
    """observations.json: stamps, states, and means of the pictures' 4 x 4 blocks, recorded when the policies were released."""
    rows = json.loads((Path(__file__).parent / "observations.json").read_text())
    for row in rows:
        if row["step"] == 0:
            stepped.reset(np.random.default_rng(row["seed"]), row["recovery"])
            k = 0
        while k < row["step"]:
            stepped.step(wave(k))
            k += 1
        observation = stepped.observe()
        assert observation.stamp == row["stamp"] == stepped.stamp
        assert dict(observation.image_stamps) == row["image_stamps"]
        np.testing.assert_allclose(observation.state, row["state"], atol=1e-5)
        for name, image in observation.images.items():
            blocks = image.reshape(4, 30, 4, 40, 3).mean((1, 3))
            np.testing.assert_allclose(blocks, row["blocks"][name], atol=1.0)  # drivers draw edges a little differently


def test_two_cameras_take_turns_and_states_come_at_200_hz(stepped: SteppedCell) -> None:
    stepped.reset(np.random.default_rng(0))
    recorded = Recorded()
    stepped.record(recorded)
    stepped.step(wave(0))
    stepped.step(wave(1))
    frames = [("front", 0), ("wrist", 17), ("front", 33), ("wrist", 50), ("front", 67), ("wrist", 83), ("front", 100)]
    assert recorded.frames == [(name, stamp * MS) for name, stamp in frames]
    assert recorded.states == recorded.poses == [stamp * MS for stamp in range(0, 101, 5)]
    stepped.reset(np.random.default_rng(0))
    stepped.step(wave(0))
    assert len(recorded.states) == 21, "a reset ends the recording"


def test_three_cameras_of_different_sizes_are_staggered_evenly() -> None:
    cameras = {"wrist": camera("wrist"), "side": camera("side", 96, 96), "front": camera("front", 240, 320)}
    stepped = SteppedCell(changed(cameras=cameras, crop=[90, 90]), Watched())
    stepped.reset(np.random.default_rng(0))
    recorded = Recorded()
    stepped.record(recorded)
    assert stepped.observe().image_stamps == {"front": 0, "side": -22 * MS, "wrist": -11 * MS}
    for k in range(2):
        stepped.step(wave(k))
    names, stamps = zip(*recorded.frames, strict=True)
    assert names == ("front", "side", "wrist") * 3 + ("front",)
    assert set(np.diff(stamps)) <= {11 * MS, 12 * MS}
    images = stepped.observe().images
    assert {name: image.shape for name, image in images.items()} == {
        "wrist": (120, 160, 3),
        "side": (96, 96, 3),
        "front": (240, 320, 3),
    }
    assert all(image.std() > 10 for image in images.values())
    assert stepped.failure() == f"looked {stepped.scene.looks} times" and stepped.scene.looks >= 20
    stepped.close()


def test_one_camera_is_enough() -> None:
    stepped = SteppedCell(changed(cameras={"wrist": camera("wrist", 96, 128)}, crop=[84, 112]), PnpMilk())
    stepped.reset(np.random.default_rng(0))
    first = stepped.observe()
    stepped.step(wave(0))
    second = stepped.observe()
    assert (first.stamp, second.stamp) == (0, 33 * MS) and set(second.images) == {"wrist"}
    stepped.close()


def test_the_state_is_that_at_the_stamp_when_a_step_does_not_end_on_a_frame() -> None:
    """At 25 Hz a step ends at 40 ms, but the newest frame is of 33 ms."""
    stepped = SteppedCell(changed(control_hz=25.0), PnpMilk())
    stepped.reset(np.random.default_rng(0))
    for k in range(11):
        stepped.step(wave(k))
    track = Cell(PnpMilk())
    track.reset(np.random.default_rng(0))
    observation = stepped.observe()
    assert stepped.stamp == 440 * MS and observation.stamp == 433 * MS
    assert np.linalg.norm(observation.state[:3] - stepped.cell.position) > 3e-4, "the arm moves"
    positions = []
    for k in range(11):
        position, quaternion = np.asarray(wave(k)[:3], np.float64), gripper_down(0.4 * np.sin(0.3 * k))
        track.set_target(position, quaternion, float(wave(k)[9]))
        for _ in range(8):
            track.step(5)
            positions.append(track.position)
    at = 430 // 5 - 1
    expected = positions[at] + 0.6 * (positions[at + 1] - positions[at])
    np.testing.assert_allclose(observation.state[:3], expected, atol=3e-5)


def test_steps_do_not_drift_from_the_control_rate() -> None:
    stepped = SteppedCell(changed(control_hz=30.0), PnpMilk())
    stepped.reset(np.random.default_rng(0))
    for k in range(30):
        stepped.step(wave(k))
    assert stepped.stamp == 1000 * MS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cameras": {"top": camera("top")}}, r"no camera 'top', only front, wrist; .* add_to\(\)"),
        ({"slop": 0.01}, r"slop is 0\.01 s, but the twin's 2 cameras expose up to 0\.017 s apart"),
        ({"control_hz": 50.0}, r"control_hz is 50, but the twin's cameras run at 30 Hz"),
    ],
)
def test_a_contract_that_the_cell_cannot_keep_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        SteppedCell(changed(**fields), PnpMilk())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda action: np.where(np.arange(10) == 2, np.nan, action), "NaN"),
        (lambda action: np.where((np.arange(10) >= 3) & (np.arange(10) < 9), 0.0, action), "rotation"),
        (lambda action: action[:9], r"shape \(9,\), expected \(10,\)"),
        (lambda action: action[None], r"shape \(1, 10\), expected \(10,\)"),
    ],
)
def test_an_action_that_no_arm_can_follow_is_refused_and_moves_nothing(stepped: SteppedCell, spoil: Any, message: str) -> None:
    stepped.reset(np.random.default_rng(0))
    with pytest.raises(ContractError, match=message):
        stepped.step(spoil(wave(0)))
    assert stepped.stamp == 0


def test_targets_are_clamped_to_the_workspace_of_the_robot_file(stepped: SteppedCell) -> None:
    stepped.reset(np.random.default_rng(0))
    safety = stepped.cell.settings.safety
    stepped.step(CONTRACT.arm.encode_action(np.array([9.0, -9.0, -9.0]), gripper_down(0.0), 0.08))
    expected = [safety.workspace_max[0], safety.workspace_min[1], safety.workspace_min[2]]
    np.testing.assert_array_equal(stepped.cell.target_position, expected)
    low, high = stepped.action_bounds()
    np.testing.assert_array_equal(low[:3], safety.workspace_min)
    np.testing.assert_array_equal(high[:3], safety.workspace_max)


def test_images_show_the_carton_move(stepped: SteppedCell) -> None:
    stepped.reset(np.random.default_rng(1))
    first = stepped.observe()
    stepped.reset(np.random.default_rng(2))
    assert np.abs(first.images["front"].astype(int) - stepped.observe().images["front"]).max() > 60


class Pointed(Watched):
    """A red disc, a mocap body, that a reset puts left or right."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        disc = spec.worldbody.add_body(name="disc", mocap=True)
        disc.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.03, 0.001, 0], rgba=[1, 0, 0, 1], contype=0, conaffinity=0)

    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        cell.data.mocap_pos[0] = [0.5, rng.choice([-0.2, 0.2]), 0.001]


def test_mocap_bodies_are_drawn_where_they_are() -> None:
    stepped = SteppedCell(CONTRACT, Pointed())
    for seed in range(4):
        stepped.reset(np.random.default_rng(seed))
        image = stepped.observe().images["front"].astype(int)
        red = np.argwhere(image[..., 0] - image[..., 1:].max(axis=-1) > 80)
        assert len(red) > 20
        assert (red[:, 1].mean() > 80) == (stepped.cell.data.mocap_pos[0, 1] > 0), "the front camera faces the arm: left is right"
    stepped.close()


def test_a_disturbance_pushes_the_hand_off_its_way(stepped: SteppedCell) -> None:
    ways = []
    for disturbed in (False, True):
        stepped.reset(np.random.default_rng(0))
        rng = np.random.default_rng(1)
        for k in range(10):
            if disturbed:
                stepped.disturb(rng)
            stepped.step(wave(k))
        ways.append(stepped.cell.position)
    assert 1e-4 < np.linalg.norm(ways[0] - ways[1]) < 0.05


def test_a_contract_without_cameras_is_observed_at_every_step() -> None:
    contract = changed(cameras={}, crop=[])
    stepped = SteppedCell(contract, PnpMilk())
    stepped.reset(np.random.default_rng(0))
    for k in range(3):
        stepped.step(wave(k))
    observation = stepped.observe()
    assert observation.stamp == 150 * MS and observation.images == {}
    np.testing.assert_allclose(observation.state[:3], stepped.cell.position, atol=1e-6)


def test_a_contract_that_is_not_of_one_arm_is_refused() -> None:
    data = CONTRACT.to_dict()
    two = [*data["action"], *({**feature, "name": f"left_{feature['name']}"} for feature in data["action"])]
    with pytest.raises(ContractError, match="not of one arm"):
        SteppedCell(changed(action=two), PnpMilk())
    plain = [{"name": "push", "kind": "plain", "topic": "push", "size": 2}]
    with pytest.raises(ContractError, match="not of one arm"):
        SteppedCell(changed(action=plain, state=plain), PnpMilk())
    fraction = [*data["action"][:2], {**data["action"][2], "range": [0.0, 1.0]}]
    with pytest.raises(ContractError, match=r"opening has the range \(0\.0, 1\.0\)"):
        SteppedCell(changed(action=fraction), PnpMilk())
