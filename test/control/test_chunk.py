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
