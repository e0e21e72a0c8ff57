"""The task pnp_anything, its objects and its scripted expert."""

import dataclasses

import numpy as np
import pytest

from onedp_ros.contract import MAX_OPENING, task_contract
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.pick_and_place import AREA_CENTRE, AREA_SIZE, BOX
from onedp_ros.tasks.pnp_anything import BOX_RANGE, THINGS, Options, PnpAnything
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import Cell, CellRenderer
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_anything")


def test_its_contract_is_that_of_pnp_milk_so_that_their_data_fit_together() -> None:
    assert dataclasses.replace(CONTRACT, task="pnp_milk") == task_contract("pnp_milk")


def test_one_object_stands_in_the_area_and_no_other_can_be_seen() -> None:
    scene = PnpAnything()
    cell = Cell(scene)
    boxes, names = [], set()
    for seed in range(60):
        cell.reset(np.random.default_rng(seed))
        x, y, yaw, number, box = scene.start(cell)
        assert np.all(np.abs([x, y] - AREA_CENTRE) <= AREA_SIZE / 2) and abs(yaw) <= np.deg2rad(30) + 1e-9
        assert list(THINGS)[int(number)] == scene.thing.name
        boxes.append(box)
        names.add(scene.thing.name)
        heights = {name: cell.data.body(name).xpos[2] for name in THINGS}
        assert heights.pop(scene.thing.name) > 0 and max(heights.values()) < -0.3, "below the table"
    assert names == {*THINGS} and len(THINGS) == 11
    assert np.ptp(boxes) > 1.8 * BOX_RANGE and np.all(np.abs(np.array(boxes) - BOX[0]) <= BOX_RANGE)
    before = cell.data.qpos.copy()
    cell.step(500)
    moved = np.abs(cell.data.qpos - before)[9:]
    assert moved.max() < 2e-3, "the object settles, those put away and the box stay where they are"


@pytest.mark.parametrize("name", THINGS)
def test_expert_puts_every_object_into_the_box(name: str) -> None:
    stepped = SteppedCell(CONTRACT, PnpAnything(Options(object=name)))
    thing = THINGS[name]
    assert 2 * thing.half_width <= 0.055 and thing.half_height > 0
    stepped.reset(np.random.default_rng(7))
    while not stepped.success() and stepped.time < 10:
        stepped.step(stepped.expert_action())
    assert stepped.success() and stepped.score() == 1.0, stepped.failure()


def test_expert_recovers_from_off_path_starts_under_disturbance() -> None:
    stepped = SteppedCell(CONTRACT, PnpAnything())
    for seed in range(6):
        rng = np.random.default_rng(seed)
        stepped.reset(rng, recovery=True)
        while not stepped.success() and stepped.time < 12:
            action = stepped.expert_action()
            stepped.disturb(rng)
            stepped.step(action)
        assert stepped.success(), (seed, stepped.failure())


def test_the_carton_is_that_of_pnp_milk() -> None:
    """Its geoms, mass and inertia are; and so is the picture, with the box at its centre."""
    pictures, inertias = [], []
    for scene in (PnpMilk(), PnpAnything()):
        cell = Cell(scene, cameras=CONTRACT.cameras.values())
        seed = next(s for s in range(100) if isinstance(scene, PnpMilk) or _thing_of(scene, cell, s) == "milk")
        cell.reset(np.random.default_rng(seed))
        if isinstance(scene, PnpAnything):
            cell.data.joint("box").qpos[0] = 0.0
        scene.place(cell, np.array([0.45, 0.05, 0.035]), 0.2)
        cell.hold(MAX_OPENING)
        body = cell.model.body("milk")
        inertias.append([*body.mass, *body.inertia, *body.ipos])
        renderer = CellRenderer(cell.model, CONTRACT.cameras)
        pictures.append([renderer.render(cell.data, camera) for camera in CONTRACT.cameras])
        renderer.close()
    np.testing.assert_array_equal(*inertias)
    np.testing.assert_array_equal(*pictures)


def _thing_of(scene: PnpAnything, cell: Cell, seed: int) -> str:
    cell.reset(np.random.default_rng(seed))
    return scene.thing.name


def test_a_failure_tells_what_went_wrong() -> None:
    scene = PnpAnything(Options(object="sponge"))
    stepped = SteppedCell(CONTRACT, scene)
    stepped.reset(np.random.default_rng(0))
    cell = stepped.cell

    def advance(opening: float) -> None:
        stepped.command(cell.position, cell.quaternion, opening)
        for _ in range(300):
            stepped.advance()

    assert stepped.failure() == "never grasped"
    advance(0.0)
    assert stepped.failure() == "missed grasp"
    drop = np.array([*scene.box(cell), 0.05])
    scene.place(cell, drop, 0.0)
    advance(0.0)
    assert stepped.success()
    scene.place(cell, np.array([0.5, 0.1, 0.02]), 0.0)
    cell.data.joint("sponge").qpos[3:] = [np.sqrt(0.5), np.sqrt(0.5), 0, 0]
    advance(0.0)
    assert stepped.failure() == "knocked over" and stepped.score() == 0.0
    scene.place(cell, np.array([0.5, 0.1, -0.5]), 0.0)
    advance(0.0)
    assert stepped.failure() == "object fell off the table"


def test_the_object_is_an_option() -> None:
    environment = TASKS.get("pnp_anything").make(CONTRACT, object="mug")
    for seed in range(3):
        environment.reset(np.random.default_rng(seed))
        assert list(THINGS)[int(environment.start()[3])] == "mug"
    with pytest.raises(ValueError, match=r"option\.object is 'ball', expected one of any, milk, .*weight"):
        TASKS.get("pnp_anything").make(CONTRACT, object="ball")
