"""The gymnasium environments of tasks."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import onedp_ros.tasks  # noqa: F401 (registers the environments)
from onedp_ros.contract import ContractError, task_contract
from onedp_ros.geometry import gripper_down
from onedp_ros.tasks.environment import TaskEnv

CONTRACT = task_contract("pnp_milk")


def test_environment_passes_the_checker() -> None:
    environment = gymnasium.make("onedp_ros/PnpMilk-v0", render_mode="rgb_array", max_yaw=0.2)
    check_env(environment.unwrapped, skip_render_check=True)
    environment.reset(seed=100000)
    assert environment.render().shape == (120, 320, 3)
    environment.close()


def test_every_sampled_action_can_be_executed() -> None:
    space = TaskEnv("pnp_milk").action_space
    space.seed(0)
    position, _, opening = CONTRACT.arm.decode_action(np.stack([space.sample() for _ in range(1000)]))
    assert np.all(np.ptp(position, axis=0) > 0.3) and np.ptp(opening) > 0.07  # all over the box


def test_environment_rewards_the_expert_and_times_out() -> None:
    environment = TaskEnv("pnp_milk", max_time=0.2)
    environment.reset(seed=100000)
    action = CONTRACT.arm.encode_action(np.array([0.5, 0.0, 0.4]), gripper_down(0.0), 0.08)
    for _ in range(4):
        _, reward, terminated, truncated, info = environment.step(action)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["failure"] == "never grasped"
    environment.max_time = 20.0
    environment.reset(seed=100000)
    while not terminated:
        _, reward, terminated, truncated, _ = environment.step(environment.environment.expert_action())
        assert not truncated
    assert reward == 1.0
    with pytest.raises(ContractError, match="NaN"):
        environment.step(np.full(10, np.nan, np.float32))
    environment.close()
