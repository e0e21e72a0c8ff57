"""The task pnp_milk and its scripted expert."""

import numpy as np
import pytest

from onedp_ros.contract import task_contract
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.pick_and_place import AREA_CENTRE, AREA_SIZE, BOX
from onedp_ros.tasks.pnp_milk import Options, PnpMilk
from onedp_ros.twin.cell import Cell
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")


def test_carton_starts_in_the_area() -> None:
    scene = PnpMilk()
    cell = Cell(scene)
    starts = []
    for seed in range(50):
        cell.reset(np.random.default_rng(seed))
        starts.append(scene.start(cell))
        assert scene.pose(cell)[2] < 1e-6  # upright
    spread = np.array(starts)
    assert np.all(np.abs(spread[:, :2] - AREA_CENTRE) <= AREA_SIZE / 2)
    assert np.all(np.abs(spread[:, 2]) <= np.deg2rad(30) + 1e-9)
    assert np.ptp(spread[:, 2]) > np.deg2rad(40)
    cell.reset(np.random.default_rng(49))
    assert scene.start(cell) == starts[49], "a seed gives the same start again"


@pytest.mark.parametrize("max_yaw", [30.0, 180.0])
def test_expert_succeeds_from_home(max_yaw: float) -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk(Options(max_yaw=float(np.deg2rad(max_yaw)))))
    for seed in range(4):
        stepped.reset(np.random.default_rng(seed))
        while not stepped.success() and stepped.time < 10:
            stepped.step(stepped.expert_action())
        assert stepped.success() and stepped.score() == 1.0, (seed, stepped.failure())


def test_expert_recovers_from_off_path_starts() -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk())
    for seed in range(10):
        stepped.reset(np.random.default_rng(seed), recovery=True)
        while not stepped.success() and stepped.time < 10:
            stepped.step(stepped.expert_action())
        assert stepped.success(), (seed, stepped.failure())


def test_success_needs_release_and_the_box() -> None:
    scene = PnpMilk()
    cell = Cell(scene)
    cell.reset(np.random.default_rng(0))
    assert not scene.success(cell)
    scene.place(cell, np.array([*BOX, 0.045]), 0.3)
    cell.step(500)
    assert scene.in_box(cell) and scene.success(cell)
    scene.place(cell, np.array([BOX[0], BOX[1] + 0.12, 0.036]), 0.0)
    cell.step(500)
    assert not scene.success(cell)


def test_a_failure_tells_whether_the_carton_was_ever_lifted() -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(np.random.default_rng(100_000))
    assert stepped.failure() == "never grasped"
    while stepped.cell.data.body("milk").xpos[2] < 0.15:
        stepped.step(stepped.expert_action())
    assert stepped.failure() == "still holding"
    for _ in range(20):
        stepped.command(stepped.cell.position, stepped.cell.quaternion, 0.08)
        for _ in range(10):
            stepped.advance()
    assert stepped.failure() == "dropped outside the box"
    stepped.reset(np.random.default_rng(100_000))
    assert stepped.failure() == "never grasped", "a reset forgets it"


def test_the_turn_of_the_carton_is_an_option() -> None:
    environment = TASKS.get("pnp_milk").make(CONTRACT, max_yaw=0.0)
    environment.reset(np.random.default_rng(3))
    assert environment.start()[2] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match=r"option\.max_yaw is 180, expected a number from 0 to 3\.14159 rad"):
        TASKS.get("pnp_milk").make(CONTRACT, max_yaw=180)
    with pytest.raises(ValueError, match="unknown option 'max_roll', expected variation, max_yaw"):
        TASKS.get("pnp_milk").make(CONTRACT, max_roll=1)
