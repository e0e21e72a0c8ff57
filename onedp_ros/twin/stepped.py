"""The cell in simulated time: the same scene, cameras and stamps as the live twin, as fast as the policy runs."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.contract import (
    MAX_OPENING,
    Contract,
    ContractError,
    Observation,
    ObservationAssembler,
)
from onedp_ros.control.joints import ARM_JOINTS
from onedp_ros.geometry import rotation_angle
from onedp_ros.twin.cameras import CAMERA_HZ, ExposureSchedule
from onedp_ros.twin.cell import FINGER_JOINTS, Array, Cell, CellRenderer, Scene, Target, check_cameras
from onedp_ros.twin.settings import TwinSettings
from onedp_ros.twin.variation import NONE

JOINTS = (*ARM_JOINTS, *FINGER_JOINTS)
STATE_STEP_MS = 5  # joint states and pose at 200 Hz
KEPT = 4  # frames kept per camera: more than the next observation can refer to
NUDGE = np.array([7.0, 7.0, 7.0, 2.0])  # N, and Nm about z: standard deviation of the disturbance
NUDGE_CORRELATION = 0.85  # between the disturbances of consecutive control steps
RESUME_DISTANCE, RESUME_ANGLE = 0.10, 0.5  # m, rad: a holding arm resumes only with a target this close to it
SETTLING = 0.3  # s that a braking arm takes to settle

DRAWN = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A camera's exposure: its stamp (ns), the positions of joints and mocap bodies then, and the seed of the cell's variation. It
    is rendered only on demand."""

    camera: str
    stamp: int
    places: Array
    variation: int | None

    def show(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Restore the scene at the exposure in ``data``."""
        mujoco.mj_setState(model, data, self.places, DRAWN)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)


@dataclasses.dataclass(frozen=True)
class State:
    """A measurement of the robot: stamp (ns), joints (9,) of arm (rad) and fingers (m), tool position (3,) m and quaternion (4,)
    xyzw in the base frame."""

    stamp: int
    joints: Array
    position: Array
    quaternion: Array


class TimedCell:
    """The cell, advanced in milliseconds on the schedule of the real sensors. Poses here are in the arm's base frame.

    Args:
        contract: of one arm, with cameras that the cell has.
        scene: the task.
        settings: the arm's; default: config/robot/twin.yaml.
        on_state: called with the stamp (ns) at 200 Hz while the cell advances, and on reset.
        on_frame: called at every exposure.
        variation: see :class:`~onedp_ros.twin.cell.Cell`.

    Raises:
        ContractError: the cell has no such arm or cameras, or its cameras expose too far apart or too slowly for the contract.
    """

    def __init__(
        self,
        contract: Contract,
        scene: Scene,
        settings: TwinSettings | None,
        on_state: Callable[[int], None],
        on_frame: Callable[[Frame], None],
        variation: str = NONE,
    ) -> None:
        self.contract, self.scene = contract, scene
        if contract.arm.opening_range != (0.0, MAX_OPENING):
            raise ContractError(f"opening has the range {contract.arm.opening_range}, expected the twin's, (0.0, {MAX_OPENING}) m")
        self._schedule = ExposureSchedule(contract.cameras)
        count = len(self._schedule.cameras)
        times = [self._schedule.time(i) for i in range(4 * count)]
        apart = max((last - first for first, last in zip(times, times[count - 1 :], strict=False)), default=0) / 1000.0
        if apart > contract.slop:
            raise ContractError(f"slop is {contract.slop} s, but the twin's {count} cameras expose up to {apart} s apart; raise it")
        if count and contract.control_hz > CAMERA_HZ:
            raise ContractError(f"control_hz is {contract.control_hz:g}, but the twin's cameras run at {CAMERA_HZ:g} Hz; lower it")
        self.cell = Cell(scene, settings, contract.cameras.values(), variation)
        check_cameras(self.cell.model, contract.cameras)
        self._on_state, self._on_frame = on_state, on_frame
        self._elapsed = 0  # ms
        self._frame = 1  # the next frame's number

    @property
    def stamp(self) -> int:
        """Simulated time since the start, ns."""
        return self._elapsed * 1_000_000

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """Start an episode at home, or with ``recovery`` off the expert's path."""
        self.cell.reset(rng)
        if recovery:
            self.scene.off_path(self.cell, rng)
        self._elapsed, self._frame = 0, 1
        for index in range(1 - len(self._schedule.cameras), 1):  # each camera has exposed once
            self._expose(index)
        self._on_state(0)

    def command(self, position: Array, quaternion: Array, opening: float) -> None:
        """Command a target: position (3,) m, clamped to the workspace, quaternion (4,) xyzw and opening (m)."""
        safety = self.cell.settings.safety
        position = np.clip(position, safety.workspace_min, safety.workspace_max)
        self.cell.set_target(position + self.cell.base, quaternion, opening)

    @property
    def position(self) -> Array:
        """Tool center point, (3,) m."""
        return self.cell.position - self.cell.base

    @property
    def set_point(self) -> Array:
        """The servo's current set point for the tool center point, (3,) m."""
        return self.cell.filter.position - self.cell.base

    def expert(self) -> Target:
        """The scripted expert's target in the current state."""
        position, quaternion, opening = self.scene.expert(self.cell)
        return position - self.cell.base, quaternion, opening

    def may_follow(self, position: Array, quaternion: Array) -> bool:
        """Whether a holding arm may start following a target, (3,) m and (4,) xyzw: whether it is close enough."""
        reference = self.cell.filter
        near = math.dist(position, self.set_point) <= RESUME_DISTANCE
        return near and rotation_angle(quaternion, reference.quaternion) <= RESUME_ANGLE

    def advance(self, until: int | None = None) -> None:
        """Advance to the next state sample, the next exposure or ``until`` (ms), whichever comes first."""
        sample = (self._elapsed // STATE_STEP_MS + 1) * STATE_STEP_MS
        due = self._schedule.time(self._frame) if self._schedule.cameras else None
        end = min(t for t in (sample, due, until) if t is not None)
        self.cell.step(end - self._elapsed)
        self._elapsed = end
        if end == sample:
            self._on_state(self.stamp)
        if end == due:
            self._expose(self._frame)
            self._frame += 1
        self.scene.watch(self.cell)

    def success(self) -> bool:
        """Whether the task is accomplished in the current state."""
        return bool(self.scene.success(self.cell))

    def failure(self) -> str:
        """Why the episode failed, if it ended now."""
        return self.scene.failure(self.cell)

    def _expose(self, index: int) -> None:
        stamp, model = self._schedule.time(index) * 1_000_000, self.cell.model
        places = np.empty(mujoco.mj_stateSize(model, DRAWN))
        mujoco.mj_getState(model, self.cell.data, places, DRAWN)
        self._on_frame(Frame(self._schedule.camera(index), stamp, places, self.cell.variation.seed))


class SteppedCell(TimedCell):
    """The cell in lockstep with a policy: an :class:`onedp_ros.tasks.base.Environment`.

    Its observations go through the same :class:`~onedp_ros.contract.ObservationAssembler` as live and recorded messages do.
    """

    def __init__(self, contract: Contract, scene: Scene, settings: TwinSettings | None = None, variation: str = NONE) -> None:
        super().__init__(contract, scene, settings, self._take_state, self._take_frame, variation)
        self._renderer: CellRenderer | None = None
        self._drawn = mujoco.MjData(self.cell.model)
        self._writer: Any = None
        # The assembler pairs frames that are not rendered yet: placeholders of their sizes, which take no memory.
        self._blank = {n: np.broadcast_to(np.uint8(0), (c.height, c.width, 3)) for n, c in contract.cameras.items()}

    @property
    def time(self) -> float:
        """Simulated time since the start, s."""
        return self.cell.time

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """Start an episode at home, or with ``recovery`` off the expert's path. Recording ends."""
        self._writer = None
        self._assembler = ObservationAssembler(self.contract)
        self._frames: dict[str, deque[Frame]] = {name: deque(maxlen=KEPT) for name in self.contract.cameras}
        self._images: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._observation: Observation | None = None
        # Measurements since the last observation, as far back as the next one can need them: two camera periods.
        self._sensed: deque[Frame | State] = deque(maxlen=2 * (len(self._frames) + round(1000 / CAMERA_HZ / STATE_STEP_MS)) + 2)
        self._steps = 0
        self._push = np.zeros(len(NUDGE))
        super().reset(rng, recovery)

    def step(self, action: ArrayLike) -> None:
        """Execute an action (action_dim,) for one control step. ContractError if it holds NaN or an invalid rotation."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.contract.action_dim,):
            raise ContractError(f"action has shape {action.shape}, expected ({self.contract.action_dim},)")
        position, quaternion, opening = self.contract.arm.decode_action(action)
        self.command(position, quaternion, float(opening))
        self._steps += 1
        end = round(1000 * self._steps * self.contract.dt)
        while self._elapsed < end:
            self.advance(end)

    def observe(self) -> Observation:
        """The newest observation; its images are rendered now."""
        self.new_set()
        assert self._observation is not None, "reset comes first"
        images = {name: self._draw(name, stamp) for name, stamp in self._observation.image_stamps.items()}
        return dataclasses.replace(self._observation, images=images)

    def new_set(self) -> bool:
        """Whether a new observation is complete since the last call of this or :meth:`observe`, which then returns it."""
        arm, before = self.contract.arm, self._observation
        while self._sensed:
            sensed = self._sensed.popleft()
            if isinstance(sensed, Frame):
                self._assembler.add_image(sensed.camera, sensed.stamp, self._blank[sensed.camera])
            else:
                self._assembler.add_joints(arm.joint_states_topic, sensed.stamp, JOINTS, sensed.joints.tolist())
                self._assembler.add_pose(arm.pose_topic, sensed.stamp, sensed.position, sensed.quaternion)
        for observation in self._assembler.pop():
            self._observation = observation
        return self._observation is not before

    def score(self) -> float:
        """Progress on the task, 0 to 1."""
        return self.scene.score(self.cell)

    def start(self) -> tuple[float, ...]:
        """The episode's initial conditions; valid right after :meth:`reset`."""
        return self.scene.start(self.cell)

    def expert_action(self) -> NDArray[np.floating[Any]]:
        """The scripted expert's action (action_dim,) in the current state."""
        return self.contract.arm.encode_action(*self.expert())

    def disturb(self, rng: np.random.Generator) -> None:
        """Push the robot's hand during the next control step; successive pushes are an Ornstein-Uhlenbeck process."""
        fresh = np.sqrt(1 - NUDGE_CORRELATION**2) * rng.normal(size=len(NUDGE))
        self._push = NUDGE_CORRELATION * self._push + fresh
        x, y, z, turn = NUDGE * self._push
        self.cell.push(np.array([x, y, z]), np.array([0.0, 0.0, turn]))

    def action_bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of an action, (action_dim,) each."""
        safety = self.cell.settings.safety
        of_kind = {"position": (safety.workspace_min, safety.workspace_max), "opening": ([0.0], [MAX_OPENING])}
        bounds = [of_kind.get(f.kind, ([-1.0] * f.dim, [1.0] * f.dim)) for f in self.contract.action]
        return np.concatenate([low for low, _ in bounds]), np.concatenate([high for _, high in bounds])

    def record(self, writer: Any) -> None:
        """Record the sensors to an :class:`~onedp_ros.data.bags.writer.EpisodeWriter`, from now until a reset."""
        self._writer = writer
        self._write_state(self.stamp)
        for frames in self._frames.values():
            if frames[-1].stamp == self.stamp:
                self._write_frame(frames[-1])

    def close(self) -> None:
        """Release the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _take_state(self, stamp: int) -> None:
        self._sensed.append(State(stamp, self.cell.data.qpos[:9].copy(), self.position, self.cell.quaternion))
        self._write_state(stamp)

    def _take_frame(self, frame: Frame) -> None:
        self._frames[frame.camera].append(frame)
        self._sensed.append(frame)
        if frame.stamp >= 0:
            self._write_frame(frame)

    def _draw(self, camera: str, stamp: int) -> NDArray[np.uint8]:
        """The image of an exposure, (height, width, 3) uint8; rendered once."""
        if (camera, stamp) not in self._images:
            if len(self._images) > KEPT * len(self._frames):
                del self._images[next(iter(self._images))]
            if self._renderer is None:
                self._renderer = CellRenderer(self.cell.model, self.contract.cameras, self.cell.variation)
            frame = next(f for f in self._frames[camera] if f.stamp == stamp)
            frame.show(self.cell.model, self._drawn)
            self._images[camera, stamp] = self._renderer.render(self._drawn, camera, stamp)
        return self._images[camera, stamp]

    def _write_state(self, stamp: int) -> None:
        if self._writer is not None:
            data = self.cell.data
            self._writer.add_joint_state(stamp, JOINTS, data.qpos[:9], data.qvel[:9])
            self._writer.add_pose(stamp, self.position, self.cell.quaternion)

    def _write_frame(self, frame: Frame) -> None:
        if self._writer is not None:
            self._writer.add_image(frame.camera, frame.stamp, self._draw(frame.camera, frame.stamp))
