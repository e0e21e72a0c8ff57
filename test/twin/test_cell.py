"""The arm, the hand and the cameras of the cell, and what they take from a robot file."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from onedp_ros.contract import Camera
from onedp_ros.geometry import gripper_down, quaternion_to_matrix, rotation_angle
from onedp_ros.resources import resource
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.cell import Cell, CellRenderer, camera_frames
from onedp_ros.twin.settings import TwinSettings


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


def test_unreachable_pose_is_named(cell: Cell) -> None:
    with pytest.raises(ValueError, match=r"\[2\.0, 0\.0, 0\.3\]"):
        cell.inverse_kinematics(np.array([2.0, 0.0, 0.3]), gripper_down(0.0))


def test_each_camera_is_drawn_in_its_own_size_even_beyond_mujocos_default() -> None:
    cameras = {"front": Camera("a", 60, 80), "wrist": Camera("b", 600, 800)}
    cell = Cell(PnpMilk(), cameras=cameras.values())
    cell.reset(np.random.default_rng(0))
    renderer = CellRenderer(cell.model, cameras)
    small, large = renderer.render(cell.data, "front"), renderer.render(cell.data, "wrist")
    assert (small.shape, large.shape) == ((60, 80, 3), (600, 800, 3))
    assert small.std() > 20 and large.std() > 20
    assert np.array_equal(small, renderer.render(cell.data, "front")), "the sizes do not disturb each other"
    renderer.close()


def robot_file(folder: Path, **changes: float) -> Path:
    data = yaml.safe_load(resource("config", "robot", "twin.yaml").read_text())
    for name, value in changes.items():
        data["servo"][name] = value
    path = folder / "robot.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_arm_keeps_the_speed_of_the_robot_file(tmp_path: Path) -> None:
    slow = Cell(PnpMilk(), TwinSettings.from_yaml(robot_file(tmp_path, linear_speed=0.1)))
    slow.reset(np.random.default_rng(0))
    begin = slow.position
    slow.set_target(begin + np.array([0.0, 0.3, 0.0]), slow.quaternion, 0.08)
    slow.step(500)
    way = [np.linalg.norm(slow.position - begin)]
    slow.step(1000)
    way.append(np.linalg.norm(slow.position - begin))
    assert way[1] - way[0] == pytest.approx(0.1, rel=0.05)


def test_a_robot_file_without_what_the_arm_needs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump({"safety": yaml.safe_load(resource("config", "robot", "twin.yaml").read_text())["safety"]}))
    with pytest.raises(ValueError, match=r"robot\.yaml: section servo is None, expected the fields .*linear_jerk.*twin\.yaml"):
        TwinSettings.from_yaml(path)
    with pytest.raises(ValueError, match=r"servo\.linear_speed is -1"):
        TwinSettings.from_yaml(robot_file(tmp_path, linear_speed=-1.0))
