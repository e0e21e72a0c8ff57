"""Every task as a gymnasium environment, ``onedp_ros/<Task>-v0``."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import Contract, ContractError, task_contract
from onedp_ros.tasks import TASKS


class Actions(gymnasium.spaces.Box):
    """A box of actions whose samples are all valid: one in a hundred of a plain box has an invalid rotation."""

    def __init__(self, contract: Contract, low: NDArray[Any], high: NDArray[Any]) -> None:
        super().__init__(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._contract = contract

    def sample(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        while True:
            action: NDArray[Any] = super().sample(*args, **kwargs)
            with contextlib.suppress(ContractError):
                self._contract.check_action(action)
                return action


class TaskEnv(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """A task as a gymnasium environment; one step is one control step of its contract.

    Observation: each camera's image, (height, width, 3) uint8, and ``state`` (state_dim,) float32. Action: (action_dim,). Reward 1
    on success, which terminates the episode; truncated after ``max_time`` s. ``info`` has ``success``, ``score`` (0 to 1) and, at
    the end of a failed episode, ``failure``.

    Args:
        task: name of a file in config/tasks, or path of a task file.
        render_mode: ``rgb_array`` or None.
        max_time: s; default: the task's.
        options: the task's, by name.

    Raises:
        UnknownNameError: the contract's task has no simulation.
        ValueError: an unknown option or an invalid value.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's attribute)

    def __init__(self, task: str, render_mode: str | None = None, max_time: float | None = None, **options: Any) -> None:
        contract = task_contract(task)
        made = TASKS.get(contract.task)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(contract.control_hz)}
        self.max_time = made.max_time if max_time is None else max_time
        self.environment = made.make(contract, **options)
        spaces: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for name, c in contract.cameras.items()
        }
        spaces["state"] = gymnasium.spaces.Box(-np.inf, np.inf, (contract.state_dim,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment]
        self.action_space = Actions(contract, *self.environment.action_bounds())  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self.environment.reset(self.np_random)
        return self._observation(), {"success": False, "score": self.environment.score()}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Execute one control step. ContractError if the action holds NaN or an invalid rotation."""
        self.environment.step(action)
        success = self.environment.success()
        over = self.environment.time >= self.max_time - 1e-6
        info: dict[str, Any] = {"success": success, "score": self.environment.score()}
        if over and not success:
            info["failure"] = self.environment.failure()
        return self._observation(), float(success), success, over and not success, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The cameras' images side by side, uint8 (largest height, sum of widths, 3), or None without cameras. Call reset first."""
        images = list(self.environment.observe().images.values())
        if self.render_mode != "rgb_array" or not images:
            return None
        height = max(len(image) for image in images)
        return np.concatenate([np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in images], axis=1)

    def close(self) -> None:
        self.environment.close()

    def _observation(self) -> dict[str, NDArray[Any]]:
        observation = self.environment.observe()
        return {**observation.images, "state": observation.state}
