"""What varies between episodes, within which bounds, and that it is the same for whoever draws it."""

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np
import pytest

from onedp_ros.contract import Observation, task_contract
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import Cell, CellRenderer, build_model
from onedp_ros.twin.stepped import Frame, SteppedCell
from onedp_ros.twin.variation import CASES, NONE, STRENGTHS, Variation

CONTRACT = task_contract("pnp_milk")


@contextmanager
def stepped(kind: str) -> Iterator[SteppedCell]:
    made = SteppedCell(CONTRACT, PnpMilk(), variation=kind)
    try:
        yield made
    finally:
        made.close()


def first(cell: SteppedCell, seed: int) -> Observation:
    cell.reset(np.random.default_rng(seed))
    return cell.observe()


def turned(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two orientations (wxyz), rad."""
    return float(2 * np.arccos(min(abs(a @ b), 1.0)))


def test_an_episode_starts_as_without_variation_and_looks_different() -> None:
    with stepped(NONE) as nominal:
        expected = first(nominal, 7)
        start = nominal.start()
        assert nominal.cell.variation.seed is None
    for kind in ("mild", "strong", *CASES):
        with stepped(kind) as varied:
            observation = first(varied, 7)
            assert varied.start() == start, kind
            np.testing.assert_allclose(observation.state, expected.state, atol=1e-6, err_msg=kind)  # the base sees the arm at home
            changed = {n: np.abs(image.astype(int) - expected.images[n]).mean() for n, image in observation.images.items()}
            assert changed["front"] > 1 or kind == "wrist_camera_moved", kind
            assert changed["wrist"] > 1 or kind == "front_camera_moved", kind
            assert all(image.std() > 8 for image in observation.images.values()), kind


def test_what_follows_from_the_generator_is_the_same() -> None:
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    Variation(build_model(PnpMilk()), "strong").draw(one)
    assert one.uniform() == other.uniform()


def test_a_seed_draws_the_same_again_whatever_was_drawn_before() -> None:
    with stepped("strong") as cell:
        once = first(cell, 1)
        second = first(cell, 2)
        again = first(cell, 1)
    for name in CONTRACT.cameras:
        assert np.array_equal(once.images[name], again.images[name])
        assert not np.array_equal(once.images[name], second.images[name])


@pytest.mark.parametrize("kind", ["strong", "half_light"])
def test_another_process_draws_the_same_pictures_from_a_frames_seed(kind: str) -> None:
    frames: list[Frame] = []
    with stepped(kind) as cell:
        observation = first(cell, 4)
        frames = [kept for queue in cell._frames.values() for kept in queue]
    model = build_model(PnpMilk(), CONTRACT.cameras.values())
    variation, data = Variation(model, kind), mujoco.MjData(model)
    renderer = CellRenderer(model, CONTRACT.cameras, variation)
    for frame in frames:
        variation.apply(frame.variation)
        frame.show(model, data)
        assert np.array_equal(renderer.render(data, frame.camera, frame.stamp), observation.images[frame.camera])
    renderer.close()


def test_noise_differs_from_frame_to_frame() -> None:
    model = build_model(PnpMilk())
    variation = Variation(model, "strong")
    variation.apply(0)
    image = np.full((60, 80, 3), 128, np.uint8)
    one, other = (variation.picture.take(image, "front", stamp).astype(float) for stamp in (0, 33_000_000))
    assert (one - other).std() == pytest.approx(2**0.5 * variation.picture.noise, rel=0.1) and variation.picture.noise > 0.5
    assert np.array_equal(one, variation.picture.take(image, "front", 0)), "of a stamp it is the same"


def test_without_noise_all_else_is_the_same() -> None:
    models, images = [], []
    for kind in ("mild", "mild_noiseless"):
        models.append(build_model(PnpMilk()))
        variation = Variation(models[-1], kind)
        variation.apply(3)
        images.append(variation.picture.take(np.full((60, 80, 3), 128, np.uint8), "front", 0).astype(float))
    for name in ("cam_pos", "geom_rgba", "light_diffuse", "body_mass"):
        assert np.array_equal(getattr(models[0], name), getattr(models[1], name))
    assert np.allclose(images[0].mean((0, 1)), images[1].mean((0, 1)), atol=1) and np.ptp(images[1], axis=(0, 1)).max() == 0


@pytest.mark.parametrize("kind", ["mild", "strong"])
def test_draws_keep_their_bounds_and_use_them(kind: str) -> None:
    nominal, model, strength = build_model(PnpMilk()), build_model(PnpMilk()), STRENGTHS[kind]
    variation, drawn = Variation(model, kind), []
    milk = model.body("milk").id
    for seed in range(60):
        variation.apply(seed)
        drawn.append(
            {
                "camera_shift": float(np.linalg.norm(model.cam_pos - nominal.cam_pos, axis=1).max()),
                "camera_turn": max(map(turned, model.cam_quat, nominal.cam_quat)),
                "height": float(abs(model.body("base").pos[2])),
                "friction": float(np.abs(np.log(model.geom_friction / nominal.geom_friction)).max()),
                "mass": float(abs(np.log(model.body_mass[milk] / nominal.body_mass[milk]))),
                "noise": variation.picture.noise,
                "table": float(np.abs(model.geom("table").rgba - nominal.geom("table").rgba).max()),
            }
        )
        assert model.body_inertia[milk] / nominal.body_inertia[milk] == pytest.approx(
            model.body_mass[milk] / nominal.body_mass[milk]
        )
        colours = {tuple(model.geom_rgba[i]) for i in range(model.ngeom) if model.geom_bodyid[i] == model.body("box").id}
        assert len(colours) == 1, "the box keeps one colour"
    most = {name: max(each[name] for each in drawn) for name in drawn[0]}
    bounds = {
        **{name: getattr(strength, name) for name in ("camera_shift", "camera_turn", "height", "noise")},
        **{name: np.log(getattr(strength, name)) for name in ("friction", "mass")},
        "table": strength.table,
    }
    for name, bound in bounds.items():
        assert most[name] <= bound + 1e-6, name
        assert most[name] >= (0.9 if name != "table" else 0.3) * bound, name


def test_half_the_light_gives_half_the_picture() -> None:
    with stepped(NONE) as nominal, stepped("half_light") as dark:
        light, half = (first(cell, 5).images["front"].astype(float) for cell in (nominal, dark))
    unsaturated = (light > 20) & (light < 250)
    assert np.median(half[unsaturated] / light[unsaturated]) == pytest.approx(0.5, abs=0.02)


def test_a_moved_camera_moves_by_what_is_told_and_alone() -> None:
    for name in ("front", "wrist"):
        nominal, model = build_model(PnpMilk()), build_model(PnpMilk())
        Variation(model, f"{name}_camera_moved").draw(np.random.default_rng(0))
        for i in range(model.ncam):
            here = model.camera(i).name == name
            shift = np.linalg.norm(model.cam_pos[i] - nominal.cam_pos[i])
            assert shift == pytest.approx(0.03 if here else 0.0)
            assert turned(model.cam_quat[i], nominal.cam_quat[i]) == pytest.approx(np.radians(3.0) if here else 0.0, abs=1e-6)


def test_poses_are_seen_and_commanded_from_the_base_wherever_the_table_stands() -> None:
    with stepped("strong") as cell:
        heights = []
        for seed in range(4):
            cell.reset(np.random.default_rng(seed))
            heights.append(cell.cell.base[2])
            assert np.allclose(cell.position + cell.cell.base, cell.cell.position)
            assert np.allclose(cell.set_point, cell.position, atol=1e-9)
            start = cell.position
            assert start == pytest.approx(home(), abs=1e-6)
            for _ in range(10):
                cell.command(start, cell.cell.quaternion, 0.08)
                cell.advance(cell._elapsed + 20)
            assert np.linalg.norm(cell.position - start) < 1e-3, "it stays where it is told to be"
    assert np.ptp(heights) > 0.003


def home() -> np.ndarray:
    """Tool point of the nominal cell at a reset."""
    cell = Cell(PnpMilk())
    cell.reset(np.random.default_rng(0))
    return cell.position


def test_the_expert_succeeds_in_a_varied_cell() -> None:
    cell = SteppedCell(CONTRACT, PnpMilk(), variation="strong")
    cell.reset(np.random.default_rng(0))
    while not cell.success() and cell.time < 15.0:
        cell.step(cell.expert_action())
    assert cell.success(), cell.failure()
