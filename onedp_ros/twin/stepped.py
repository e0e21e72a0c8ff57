"""The cell in lock step with a policy: the same scene, cameras and stamps as the live twin, as fast as it can."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import (
    MAX_OPENING,
    NANOSECONDS,
    Contract,
    ContractError,
    Observation,
    task_contract,
)
from onedp_ros.tasks.pnp_milk import PnpMilk, failure, off_path
from onedp_ros.twin.cameras import CAMERAS, frame_camera, frame_time
from onedp_ros.twin.cell import Cell, CellRenderer

Array = NDArray[np.float64]

WORKSPACE_LOW, WORKSPACE_HIGH = np.array([0.25, -0.45, 0.02]), np.array([0.75, 0.40, 0.55])  # m, tool point
STATE_STEP_MS = 5  # joint states and pose at 200 Hz


@dataclasses.dataclass(frozen=True)
class Frame:
    """A camera's exposure: what to draw, and when (ns). Drawn only when somebody looks."""

    camera: str
    stamp: int
    qpos: Array


class SteppedCell:
    """The cell advanced by control steps of ``contract.dt``, with the live cameras' schedule.

    ``on_state(stamp)`` is called at 200 Hz and ``on_frame(frame)`` at every exposure, while it advances.
    """

    def __init__(
        self,
        contract: Contract,
        task: PnpMilk,
        on_state: Callable[[int], None] | None = None,
        on_frame: Callable[[Frame], None] | None = None,
    ) -> None:
        self.contract = contract
        self.task = task
        self.cell = Cell(task)
        self._renderer: CellRenderer | None = None
        self._drawn = mujoco.MjData(self.cell.model)
        self._frames: dict[str, deque[Frame]] = {name: deque(maxlen=2) for name in CAMERAS}
        self._images: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._on_state, self._on_frame = on_state, on_frame
        self._step_ms = round(contract.dt * 1000)

    @property
    def stamp(self) -> int:
        """Simulated time since the start, ns."""
        return self._elapsed * 1_000_000

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """Begin an episode at home, or with ``recovery`` somewhere off the expert's path."""
        self.cell.reset(rng)
        if recovery:
            off_path(self.cell, rng)
        self._elapsed, self._frame = 0, 1
        self.lifted = False
        self._images.clear()
        for frames in self._frames.values():
            frames.clear()
        self._expose(CAMERAS[1], -round(frame_time(1) * NANOSECONDS))
        self._expose(CAMERAS[0], 0)
        self._report_state()

    def watch(self, on_state: Callable[[int], None], on_frame: Callable[[Frame], None]) -> None:
        """Call these from now on, first with what is at this instant."""
        self._on_state, self._on_frame = on_state, on_frame
        self._report_state()
        for frames in self._frames.values():
            if frames[-1].stamp == self.stamp:
                on_frame(frames[-1])

    def command(self, position: Array, quaternion: Array, opening: float) -> None:
        """Command a target, (3,) m within the workspace and (4,) xyzw, and an opening (m)."""
        self.cell.set_target(np.clip(position, WORKSPACE_LOW, WORKSPACE_HIGH), quaternion, opening)

    def advance(self, until_ms: int | None = None) -> None:
        """Advance to the next state sample or exposure, or to ``until_ms`` when that comes first."""
        due = round(frame_time(self._frame) * 1000)
        sample = (self._elapsed // STATE_STEP_MS + 1) * STATE_STEP_MS
        until = min(due, sample) if until_ms is None else min(due, sample, until_ms)
        self.cell.step(until - self._elapsed)
        self._elapsed = until
        if until == sample:
            self._report_state()
        if until == due:
            self._expose(frame_camera(self._frame), self.stamp)
            self._frame += 1
        if not self.lifted:
            self.lifted = bool(self.cell.data.body("milk").xpos[2] > 0.08 and self.cell.touching("milk") == 2)

    def step(self, position: Array, quaternion: Array, opening: float) -> None:
        """Command and advance by one control step."""
        self.command(position, quaternion, opening)
        end = self._elapsed + self._step_ms
        while self._elapsed < end:
            self.advance(end)

    def observe(self) -> Observation:
        """The newest set: each camera's last frame, drawn now, and the state at the newest one's stamp."""
        frames = {name: frames[-1] for name, frames in self._frames.items()}
        state = self.contract.arm.encode_state(self.cell.position, self.cell.quaternion, self.cell.fingers.tolist())
        return Observation(
            stamp=max(f.stamp for f in frames.values()),
            images={name: self.draw(f) for name, f in frames.items()},
            image_stamps={name: f.stamp for name, f in frames.items()},
            state=state,
        )

    def draw(self, frame: Frame) -> NDArray[np.uint8]:
        """(120, 160, 3) uint8 of an exposure; drawn once."""
        key = (frame.camera, frame.stamp)
        if key not in self._images:
            if len(self._images) > 8:
                del self._images[next(iter(self._images))]
            if self._renderer is None:
                self._renderer = CellRenderer(self.cell.model)
            self._drawn.qpos[:] = frame.qpos
            mujoco.mj_kinematics(self.cell.model, self._drawn)
            mujoco.mj_camlight(self.cell.model, self._drawn)
            self._images[key] = self._renderer.render(self._drawn, frame.camera)
        return self._images[key]

    def success(self) -> bool:
        return self.task.success(self.cell)

    def failure(self) -> str:
        """Why an episode that ends now failed."""
        return failure(self.cell, self.lifted)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _expose(self, camera: str, stamp: int) -> None:
        frame = Frame(camera, stamp, self.cell.data.qpos.copy())
        self._frames[camera].append(frame)
        if self._on_frame is not None:
            self._on_frame(frame)

    def _report_state(self) -> None:
        if self._on_state is not None:
            self._on_state(self.stamp)


class Actions(gymnasium.spaces.Box):
    """Actions within a box. Its samples can be executed: one in a hundred of a plain box holds no rotation."""

    def __init__(self, contract: Contract, *args: Any) -> None:
        super().__init__(*args)
        self.contract = contract

    def sample(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        while True:
            action: NDArray[Any] = super().sample(*args, **kwargs)
            with contextlib.suppress(ContractError):
                self.contract.check_action(action)
                return action


class PnpMilkEnv(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """``onedp_ros/PnpMilk-v0``: one step is one control step (0.05 s).

    Observation: ``wrist`` and ``front`` (120, 160, 3) uint8 and ``state`` (9,) float32, as in ``contract``. Action (10,):
    target position (m), 6D rotation, opening (m). Reward 1 at success, which ends the episode; truncated after ``max_time`` s.
    ``info`` has ``success`` and, at the end of a failed episode, ``failure``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's attribute)

    def __init__(self, render_mode: str | None = None, max_time: float = 20.0, max_yaw: float = PnpMilk.max_yaw) -> None:
        self.render_mode = render_mode
        self.max_time = max_time
        contract = task_contract("pnp_milk")
        self.stepped = SteppedCell(contract, PnpMilk(max_yaw))
        spaces: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for name, c in contract.cameras.items()
        }
        spaces["state"] = gymnasium.spaces.Box(-2.0, 2.0, (contract.state_dim,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment]
        low = np.concatenate([WORKSPACE_LOW, -np.ones(6), [0.0]]).astype(np.float32)
        high = np.concatenate([WORKSPACE_HIGH, np.ones(6), [MAX_OPENING]]).astype(np.float32)
        self.action_space = Actions(contract, low, high, (contract.action_dim,), np.float32)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self.stepped.reset(self.np_random)
        return self._observation(), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """ContractError for an action with NaN or without a rotation."""
        position, quaternion, opening = self.stepped.contract.arm.decode_action(action)
        if np.shape(action) != (self.stepped.contract.action_dim,):
            raise ContractError(f"action has shape {np.shape(action)}, expected ({self.stepped.contract.action_dim},)")
        self.stepped.step(position, quaternion, float(opening))
        success = self.stepped.success()
        over = self.stepped.cell.time >= self.max_time - 1e-6
        info: dict[str, Any] = {"success": success}
        if over and not success:
            info["failure"] = self.stepped.failure()
        return self._observation(), float(success), success, over and not success, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Both cameras side by side, (120, 320, 3) uint8. Call reset first."""
        images = self.stepped.observe().images
        return np.concatenate([images["wrist"], images["front"]], axis=1) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.stepped.close()

    def _observation(self) -> dict[str, NDArray[Any]]:
        observation = self.stepped.observe()
        return {**observation.images, "state": observation.state}
