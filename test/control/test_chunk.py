import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.contract import ContractError, task_contract
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.geometry import gripper_down, rotation_angle

CONTRACT = task_contract("pnp_milk")
MS = 1_000_000
STAMP = 1_000_000_000_000


def chunk_along_x(stamp: int = STAMP, speed: float = 0.2) -> ActionChunk:
    """A hand that is at x = 0.5 m at ``stamp`` and moves at ``speed``, turning by 0.1 rad and closing by 1 mm a step."""
    first = CONTRACT.n_obs_steps - 1
    actions = [
        CONTRACT.arm.encode_action(
            np.array([0.5 + speed * CONTRACT.dt * (i - first), 0, 0.3]), gripper_down(0.1 * (i - first)), 0.05 - 0.001 * i
        )
        for i in range(CONTRACT.horizon)
    ]
    return ActionChunk.from_actions(CONTRACT, stamp, np.stack(actions))


def test_each_action_is_meant_for_its_time():
    chunk = chunk_along_x()
    assert chunk.stamps[0] == STAMP - 50 * MS
    assert chunk.stamps[1] == STAMP
    assert chunk.stamps[-1] == STAMP + 14 * 50 * MS


def test_interpolates_by_time():
    target = chunk_along_x().at(STAMP + 125 * MS)
    np.testing.assert_allclose(target.position, [0.5 + 0.2 * 0.125, 0, 0.3], atol=1e-6)
    assert rotation_angle(target.quaternion, gripper_down(0.25)) < 1e-5
    assert target.opening == pytest.approx(0.05 - 0.001 * 3.5, abs=1e-6)


@given(st.integers(-200, 1200))
@settings(max_examples=50)
def test_stays_on_the_path_and_holds_its_ends(after_ms):
    target = chunk_along_x().at(STAMP + after_ms * MS)
    along = np.clip(after_ms / 1000, -0.05, 0.7)
    np.testing.assert_allclose(target.position, [0.5 + 0.2 * along, 0, 0.3], atol=1e-5)
    assert np.linalg.norm(target.quaternion) == pytest.approx(1.0)


def test_neither_path_nor_velocity_jumps_between_actions_and_both_signs_of_a_quaternion_are_the_same():
    chunk, step = chunk_along_x(), 0.01
    positions = chunk.positions + np.outer((np.arange(16) // 8), [0.0, 0.02, 0.0])  # a sudden step aside
    signs = np.where(np.arange(16) % 2, 1.0, -1.0)[:, None]
    chunk = dataclasses.replace(chunk, positions=positions, quaternions=chunk.quaternions * signs)
    targets = [chunk.at(STAMP + round(s * 1e9)) for s in np.arange(0.0, 0.6, step)]
    velocities = np.diff([t.position for t in targets], axis=0) / step
    assert np.abs(velocities).max() < 0.45
    assert np.abs(np.diff(velocities, axis=0)).max() < 0.09  # on straight lines between the actions: 0.4
    assert max(rotation_angle(a.quaternion, b.quaternion) for a, b in itertools.pairwise(targets)) < 0.021


def test_a_chunk_of_one_action_is_held():
    chunk = ActionChunk(STAMP, np.array([STAMP]), np.array([[0.5, 0.0, 0.3]]), gripper_down(0.2)[None], np.array([0.04]))
    for time in (STAMP - MS, STAMP, STAMP + 500 * MS):
        np.testing.assert_allclose(chunk.at(time).position, [0.5, 0.0, 0.3])
        assert rotation_angle(chunk.at(time).quaternion, gripper_down(0.2)) < 1e-6


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_actions_that_are_not_finite_make_no_chunk(spoil):
    actions = np.tile(CONTRACT.arm.encode_action(np.array([0.5, 0, 0.3]), gripper_down(0.0), 0.05), (CONTRACT.horizon, 1))
    actions[3, 1] = spoil
    with pytest.raises(ContractError, match="NaN"):
        ActionChunk.from_actions(CONTRACT, STAMP, actions)


def test_actions_without_a_rotation_make_no_chunk():
    actions = np.tile(CONTRACT.arm.encode_action(np.array([0.5, 0, 0.3]), gripper_down(0.0), 0.05), (CONTRACT.horizon, 1))
    actions[5, 3:9] = 0.0
    with pytest.raises(ContractError, match="rotation"):
        ActionChunk.from_actions(CONTRACT, STAMP, actions)
