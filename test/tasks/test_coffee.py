"""The task coffee and its scripted expert."""

import mujoco
import numpy as np
import pytest

from onedp_ros.contract import task_contract
from onedp_ros.tasks.coffee import (
    APOTHEM,
    AREA_CENTRE,
    AREA_SIZE,
    CLOSED,
    HALF_HEIGHT,
    HOLDER,
    OPEN,
    SEATED,
    Coffee,
    inserted,
    lid_angle,
    pod,
)
from onedp_ros.twin.cell import Cell
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("coffee")


@pytest.fixture
def cell() -> Cell:
    cell = Cell(Coffee())
    cell.reset(np.random.default_rng(0))
    return cell


@pytest.fixture(scope="module")
def stepped() -> SteppedCell:
    return SteppedCell(CONTRACT, Coffee())


def scene(cell: Cell) -> Coffee:
    assert isinstance(cell.scene, Coffee)
    return cell.scene


def follow(stepped: SteppedCell, seconds: float = 15.0) -> None:
    """Let the expert go on until it succeeds."""
    end = stepped.time + seconds
    while not stepped.success() and stepped.time < end:
        stepped.step(stepped.expert_action())


def test_pod_starts_upright_in_the_area_and_the_lid_open(cell: Cell) -> None:
    starts = []
    for seed in range(50):
        cell.reset(np.random.default_rng(seed))
        starts.append(scene(cell).start(cell))
        assert pod(cell)[1] < 1e-6 and lid_angle(cell) == OPEN
    assert np.all(np.abs(np.array(starts) - AREA_CENTRE) <= AREA_SIZE / 2)
    assert np.all(np.ptp(starts, axis=0) > 0.9 * AREA_SIZE)
    cell.reset(np.random.default_rng(49))
    assert scene(cell).start(cell) == starts[49], "a seed gives the same start again"


@pytest.mark.parametrize(("left", "stays"), [(OPEN, OPEN), (1.4, 1.4), (1.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_lid_stays_where_it_is_left_or_falls_shut(cell: Cell, left: float, stays: float) -> None:
    scene(cell).turn_lid(cell, left)
    cell.step(2000)
    assert lid_angle(cell) == pytest.approx(stays, abs=0.02)


@pytest.mark.parametrize("angle", (0.0, 75.0, 160.0, 290.0))
@pytest.mark.parametrize(("off", "enters"), [(0.0, True), (0.006, True), (0.012, False)])
def test_holder_takes_a_pod_that_its_mouth_guides_and_no_other(cell: Cell, angle: float, off: float, enters: bool) -> None:
    aside = off * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    scene(cell).place(cell, np.array([*(HOLDER + aside), SEATED + 0.025]))
    cell.step(1000)
    assert inserted(cell) == enters, pod(cell)


def test_a_seated_pod_has_less_than_two_and_a_half_millimetres_of_play(cell: Cell) -> None:
    def free(aside: float, direction: float) -> bool:
        """Whether the pod would stand there without cutting into the wall."""
        place = HOLDER + aside * np.array([np.cos(direction), np.sin(direction)])
        scene(cell).place(cell, np.array([*place, SEATED + 1e-3]), 0.1)
        mujoco.mj_forward(cell.model, cell.data)
        return not any(contact.dist < 0 for contact in cell.data.contact)

    steps = np.arange(0.001, 0.004, 1e-4)
    play = [sum(free(aside, direction) for aside in steps) * 1e-4 + steps[0] for direction in np.arange(0.0, 2 * np.pi, 0.2)]
    assert min(play) > 0.0015 and np.mean(play) < 0.0025


def test_success_needs_the_pod_the_lid_and_no_finger(cell: Cell) -> None:
    coffee = scene(cell)
    coffee.turn_lid(cell, 0.0)
    cell.step(300)
    assert not coffee.success(cell) and coffee.score(cell) == 0.0, "the pod is on the table"
    coffee.place(cell, np.array([*HOLDER, SEATED]))
    coffee.turn_lid(cell, OPEN)
    cell.step(300)
    assert inserted(cell) and not coffee.success(cell) and coffee.score(cell) == pytest.approx(2 / 3)
    assert coffee.failure(cell) == "lid open"
    coffee.turn_lid(cell, 0.4)
    while lid_angle(cell) > CLOSED:
        assert not coffee.success(cell)
        cell.step(50)
    cell.step(300)
    assert coffee.success(cell) and coffee.score(cell) == 1.0
    coffee.place(cell, np.array([*HOLDER, SEATED + 0.004]))
    mujoco.mj_forward(cell.model, cell.data)
    assert not coffee.success(cell), "it is not down yet"


def test_expert_succeeds_from_home(stepped: SteppedCell) -> None:
    stepped.reset(np.random.default_rng(1))
    follow(stepped)
    assert stepped.success() and stepped.score() == 1.0, stepped.failure()
    assert 8.0 < stepped.time < 14.0


def test_expert_recovers_from_off_path_starts(stepped: SteppedCell) -> None:
    for seed in (8, 24, 27, 11):  # a missed grasp, a pod above the holder, a pod inserted, a lid half-way and the hand behind it
        stepped.reset(np.random.default_rng(seed), recovery=True)
        follow(stepped)
        assert stepped.success(), (seed, stepped.failure())


def test_expert_succeeds_though_pushed_and_followed_inexactly(stepped: SteppedCell) -> None:
    """Every threshold is passed by an arm that is led some millimetres astray, as by a policy."""
    rng = np.random.default_rng(5)
    stepped.reset(rng)
    while not stepped.success() and stepped.time < 25.0:
        action = np.array(stepped.expert_action())
        action[:3] += [0.004, -0.003, 0.004]
        stepped.disturb(rng)
        stepped.step(action)
    assert stepped.success(), stepped.failure()


def test_a_failure_tells_how_far_it_came(stepped: SteppedCell) -> None:
    cell, coffee = stepped.cell, scene(stepped.cell)

    def wait(opening: float, position: np.ndarray | None = None) -> None:
        stepped.command(cell.position if position is None else position, cell.quaternion, opening)
        for _ in range(150):
            stepped.advance()

    stepped.reset(np.random.default_rng(100_000))
    assert stepped.failure() == "never grasped" and stepped.score() == 0.0
    wait(0.0, pod(cell)[0] + [0.09, 0.0, 0.01])
    assert stepped.failure() == "missed the grasp"
    stepped.reset(np.random.default_rng(100_000))
    assert stepped.failure() == "never grasped", "a reset forgets it"
    while pod(cell)[0][2] < 0.10:
        stepped.step(stepped.expert_action())
    assert stepped.failure() == "still holding" and stepped.score() == pytest.approx(1 / 3)
    wait(0.08)
    assert stepped.failure() == "dropped"
    coffee.place(cell, np.array([HOLDER[0], HOLDER[1] + 0.012, SEATED + 0.025]))
    wait(0.08)
    assert stepped.failure() == "not inserted"
    coffee.place(cell, np.array([0.4, 0.8, -0.2]))
    wait(0.08)
    assert stepped.failure() == "pod fell off the table"
    stepped.reset(np.random.default_rng(100_000))
    joint = cell.data.joint("pod")
    joint.qpos[2:] = [APOTHEM + 0.001, np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0]
    wait(0.08)
    assert stepped.failure() == "knocked over"
    at = pod(cell)[0]
    wait(0.08)
    assert np.linalg.norm(pod(cell)[0] - at) < 1e-3, "it does not roll"
    assert HALF_HEIGHT > APOTHEM
