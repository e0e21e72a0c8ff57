"""Rotations: each representation to another and back, against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation, Slerp

from onedp_ros.geometry import (
    gripper_down,
    matrix_to_quaternion,
    matrix_to_rotation_6d,
    quaternion_from_rotation_vector,
    quaternion_multiply,
    quaternion_to_matrix,
    rotation_6d_to_matrix,
    rotation_angle,
    rotation_difference,
    slerp,
    tool_yaw,
)

quaternions = (
    arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1).map(lambda q: q / np.linalg.norm(q))
)


def same_rotation(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-7) -> bool:
    return bool(abs(abs(np.dot(a, b)) - 1.0) < tolerance)


@given(quaternions)
def test_quaternion_matrix_and_six_numbers_are_one_rotation(q: np.ndarray) -> None:
    matrix = quaternion_to_matrix(q)
    np.testing.assert_allclose(matrix, Rotation.from_quat(q).as_matrix(), atol=1e-12)
    assert same_rotation(matrix_to_quaternion(matrix), q)
    np.testing.assert_allclose(rotation_6d_to_matrix(matrix_to_rotation_6d(matrix)), matrix, atol=1e-9)


def test_matrices_and_quaternions_are_scipys_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(20_000, 4)) * rng.uniform(0.01, 3.0, size=(20_000, 1))
    assert quaternion_to_matrix(q).tobytes() == Rotation.from_quat(q).as_matrix().tobytes()
    assert quaternion_to_matrix(q[0]).tobytes() == Rotation.from_quat(q[0]).as_matrix().tobytes()
    rows = Rotation.random(20_000, random_state=0).as_matrix()[:, :2].reshape(-1, 6) + rng.uniform(-0.3, 0.3, (20_000, 6))
    half_turns = [np.diag(d) for d in ([1.0, 1, 1], [1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])]
    matrices = np.array([*half_turns, *rotation_6d_to_matrix(rows)])
    assert matrix_to_quaternion(matrices).tobytes() == Rotation.from_matrix(matrices).as_quat().tobytes()
    with pytest.raises(ValueError, match="zero"):
        quaternion_to_matrix(np.zeros(4))


def test_six_numbers_are_the_first_two_rows() -> None:
    assert matrix_to_rotation_6d(np.arange(9.0).reshape(3, 3)).tolist() == [0, 1, 2, 3, 4, 5]


def test_functions_take_any_leading_shape() -> None:
    q = np.random.default_rng(0).normal(size=(2, 5, 4))
    matrix = quaternion_to_matrix(q)
    assert matrix.shape == (2, 5, 3, 3)
    assert matrix_to_rotation_6d(matrix).shape == (2, 5, 6)
    assert rotation_6d_to_matrix(matrix_to_rotation_6d(matrix)).shape == (2, 5, 3, 3)
    assert matrix_to_quaternion(matrix).shape == (2, 5, 4)


@settings(max_examples=300)
@given(arrays(np.float64, 6, elements=st.floats(width=32)))
def test_six_arbitrary_numbers_are_a_rotation_or_an_error(rotation: np.ndarray) -> None:
    try:
        matrix = rotation_6d_to_matrix(rotation)
    except ValueError as error:
        assert "not a rotation" in str(error)
        return
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "rotation", [[0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, -2, 0.01, 0], [np.nan, 0, 0, 0, 1, 0], [1, 0, 0, 0, np.inf, 0]]
)
def test_what_is_no_rotation_is_refused(rotation: list[float]) -> None:
    with pytest.raises(ValueError, match="not a rotation"):
        rotation_6d_to_matrix(np.array(rotation))
    with pytest.raises(ValueError, match="not a rotation"):
        rotation_6d_to_matrix(np.array([[1, 0, 0, 0, 1, 0], rotation]))


@given(quaternions, quaternions, st.floats(0, 1))
def test_slerp_is_scipys(a: np.ndarray, b: np.ndarray, fraction: float) -> None:
    if abs(np.dot(a, b)) < 1e-3:
        return  # opposite within a hair: both ways round are shortest
    expected = Slerp([0, 1], Rotation.from_quat([a, b]))(fraction).as_quat()
    assert same_rotation(slerp(a, b, fraction), expected)


def test_slerp_takes_any_length_and_stays_between_the_ends() -> None:
    a, b = gripper_down(0.0), gripper_down(1.0)
    assert rotation_angle(slerp(2 * a, -3 * b, 0.25), gripper_down(0.25)) < 1e-9
    assert rotation_angle(slerp(a, b, -1.0), a) < 1e-9
    assert rotation_angle(slerp(a, b, 2.0), b) < 1e-9


@given(quaternions, quaternions)
def test_difference_leads_from_one_to_the_other(a: np.ndarray, b: np.ndarray) -> None:
    difference = rotation_difference(b, a)
    assert np.linalg.norm(difference) <= np.pi + 1e-9
    assert same_rotation(quaternion_multiply(quaternion_from_rotation_vector(difference), a), b, 1e-6)
    assert rotation_angle(a, b) == pytest.approx((Rotation.from_quat(b) * Rotation.from_quat(a).inv()).magnitude(), abs=1e-6)


@given(st.floats(-np.pi + 1e-6, np.pi - 1e-6))
def test_tool_that_points_down_has_its_yaw(yaw: float) -> None:
    q = gripper_down(yaw)
    np.testing.assert_allclose(quaternion_to_matrix(q)[:, 2], [0, 0, -1], atol=1e-12)
    assert tool_yaw(q) == pytest.approx(yaw, abs=1e-9)
