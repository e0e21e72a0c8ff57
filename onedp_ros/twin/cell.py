"""The simulated cell in MuJoCo: a Franka FR3 with its hand on a table, cameras, and the task's objects.

The arm tracks Cartesian targets through the jerk-limited filter and the impedance controller of ``control.servo``, with the limits
and gains of a robot file; the hand opens and closes at the real one's speed. Physics steps are 1 ms. Nothing here depends on ROS or
the wall clock.

All poses are in the world frame, with z = 0 at the table top. The arm's base is at :attr:`Cell.base`: the origin, unless the
table's height varies.
"""

from __future__ import annotations

import importlib.util
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import MAX_OPENING, Camera, ContractError
from onedp_ros.control.servo import TargetFilter, impedance_torque
from onedp_ros.geometry import quaternion_multiply
from onedp_ros.twin.settings import TwinSettings
from onedp_ros.twin.variation import NONE, Variation, add_room

Array = NDArray[np.float64]
Target = tuple[Array, Array, float]
"""Tool position (3,) m and quaternion (4,) xyzw in the world frame, and gripper opening (m)."""

TIMESTEP = 0.001  # s
HOME = np.array([0.0, -0.2, 0.0, -2.25, 0.0, 2.05, 0.7853])  # joint angles (rad) with the hand pointing down
FINGER_JOINTS = ("fr3_finger_joint1", "fr3_finger_joint2")
HAND_SPEED = 0.1  # m/s of opening, both fingers together
TOOL_OFFSET = 0.1034  # m from the hand's flange to the tool center point, between the fingertips
FOVY = 42.5  # degrees: colour sensor of RealSense D415 and D435 in 4:3 modes


class Scene(ABC):
    """A task in the cell: its objects, its success criterion and its scripted expert. A scene belongs to one cell, and may keep
    state since its last :meth:`reset`."""

    @abstractmethod
    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the task's bodies to the world, and any cameras it needs besides the cell's ``front`` and ``wrist``."""

    @abstractmethod
    def reset(self, cell: Cell, rng: np.random.Generator) -> None:
        """Place the objects at random and clear the state of the last episode. The arm is at home with its hand open."""

    def off_path(self, cell: Cell, rng: np.random.Generator) -> None:
        """After :meth:`reset`, put arm, hand and objects in a state that a policy's mistakes lead to, for recovery demonstrations;
        call :meth:`Cell.hold` at the end. Default: change nothing."""
        return

    def watch(self, cell: Cell) -> None:
        """Called every few milliseconds of an episode, to record what its final state does not show. Default: do nothing."""
        return

    @abstractmethod
    def success(self, cell: Cell) -> bool:
        """Whether the task is accomplished in the current state."""

    def score(self, cell: Cell) -> float:
        """Progress on the task, 0 to 1. Default: 1 on success, else 0."""
        return float(self.success(cell))

    @abstractmethod
    def failure(self, cell: Cell) -> str:
        """Why the episode failed, if it ended now, in a few words."""

    @abstractmethod
    def expert(self, cell: Cell) -> Target:
        """The target that the scripted expert commands in the current state."""

    def start(self, cell: Cell) -> tuple[float, ...]:
        """The episode's initial conditions, right after :meth:`reset`; the task's ``start_labels`` name them."""
        return ()


class Cell:
    """The state of the cell and its 1 kHz servo. ``time`` is simulated seconds since :meth:`reset`. While ``stopping`` (set by
    :meth:`brake`) the arm decelerates and holds, whatever its target."""

    def __init__(
        self, scene: Scene, settings: TwinSettings | None = None, cameras: Iterable[Camera] = (), variation: str = NONE
    ) -> None:
        """``settings``: the arm's (default: config/robot/twin.yaml); ``cameras``: those to be rendered; ``variation``: how episodes
        differ, a kind of :mod:`onedp_ros.twin.variation`."""
        self.scene = scene
        self.settings = settings or TwinSettings.from_robot("twin")
        self.model = build_model(scene, cameras)
        self.variation = Variation(self.model, variation)
        self.data = mujoco.MjData(self.model)
        self._tool = self.model.site("tool").id
        self._hand, self._base = self.model.body("hand").id, self.model.body("base").id
        self._fingers = {self.model.body("left_finger").id, self.model.body("right_finger").id}
        self._jacobian, self._mass = np.zeros((6, self.model.nv)), np.zeros((self.model.nv, self.model.nv))
        self.filter = TargetFilter(self.settings.servo)
        self._gains = self.settings.impedance
        self.stopping = False
        self._scratch = mujoco.MjData(self.model)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a variation, place the arm at :data:`HOME` with its hand open, and the objects; targets equal the measured pose."""
        self.variation.draw(rng)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = HOME
        self.data.qpos[7:9] = MAX_OPENING / 2
        self.scene.reset(self, rng)
        self.hold(MAX_OPENING)

    def hold(self, opening: float) -> None:
        """Hold the measured pose, at rest, with the hand at ``opening`` (m)."""
        mujoco.mj_forward(self.model, self.data)
        self.target_position, self.target_quaternion = self.position, self.quaternion
        self.filter.reset(self.target_position, self.target_quaternion)
        self.target_opening = self._opening = opening
        self.stopping = False

    @property
    def time(self) -> float:
        return float(self.data.time)

    @property
    def base(self) -> Array:
        """Position of the arm's base, (3,) m; its axes are the world's."""
        return self.model.body_pos[self._base]

    @property
    def position(self) -> Array:
        """Tool center point in the world frame, (3,) m."""
        return self.data.site_xpos[self._tool].copy()

    @property
    def quaternion(self) -> Array:
        """Tool orientation in the world frame, (4,) xyzw."""
        wxyz = np.empty(4)
        mujoco.mju_mat2Quat(wxyz, self.data.site_xmat[self._tool])
        return np.array([wxyz[1], wxyz[2], wxyz[3], wxyz[0]])

    @property
    def fingers(self) -> Array:
        """Positions of the two fingers, (2,) m."""
        return self.data.qpos[7:9].copy()

    def set_target(self, position: Array, quaternion: Array, opening: float) -> None:
        """Command a tool pose, (3,) m and (4,) xyzw in the world frame, and a gripper opening, m."""
        self.target_position, self.target_quaternion = np.asarray(position, np.float64), np.asarray(quaternion, np.float64)
        self.target_opening = min(max(float(opening), 0.0), MAX_OPENING)

    def brake(self) -> None:
        """Decelerate from the measured state as fast as the servo's limits allow, and hold."""
        self.stopping = True
        self.filter.take_over(self.position, self.quaternion, self._tool_jacobian() @ self.data.qvel[:7])

    def _tool_jacobian(self) -> Array:
        """The tool's Jacobian (6, 7), linear rows first, world frame."""
        mujoco.mj_jacSite(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._tool)
        return self._jacobian[:, :7]

    def push(self, force: Array, torque: Array) -> None:
        """Disturb the hand with a force (3,) N and torque (3,) Nm in the world frame until the next call."""
        self.data.xfrc_applied[self._hand] = np.concatenate([force, torque])

    def step(self, milliseconds: int) -> None:
        """Advance servo and physics."""
        data, model = self.data, self.model
        for _ in range(milliseconds):
            if self.stopping:
                self.filter.brake(TIMESTEP)
                mujoco.mj_fullM(model, self._mass, data.qM)
            else:
                self.filter.step(self.target_position, self.target_quaternion, TIMESTEP)
            step = HAND_SPEED * TIMESTEP
            self._opening += min(max(self.target_opening - self._opening, -step), step)
            data.qfrc_applied[:7] = impedance_torque(
                self._gains,
                self.filter,
                self.position,
                self.quaternion,
                self._tool_jacobian(),
                data.qvel[:7],
                HOME - data.qpos[:7],
                self._mass[:7, :7] if self.stopping else None,
            )
            data.ctrl[0] = 255.0 * self._opening / MAX_OPENING
            mujoco.mj_step(model, data)
        mujoco.mj_kinematics(model, data)  # poses of the new state: mj_step leaves the previous one's

    def touching(self, body: str) -> int:
        """How many of the two fingers touch the named body."""
        other = self.model.body(body).id
        bodies = self.model.geom_bodyid[self.data.contact.geom]
        pairs = bodies[np.any(bodies == other, axis=1)] if len(bodies) else bodies
        return len(self._fingers.intersection(pairs.flatten().tolist()))

    def inverse_kinematics(self, position: Array, quaternion: Array) -> Array:
        """Joint angles (7,) rad that reach a tool pose, by damped least squares from the home pose.

        Raises:
            ValueError: the pose is out of reach (error above 2 mm after 200 iterations).
        """
        model, data = self.model, self._scratch
        q, wxyz, rotation = HOME.copy(), np.empty(4), np.empty(3)
        jacobian, error = np.zeros((6, model.nv)), np.zeros(6)
        low, high = model.jnt_range[:7].T
        for _ in range(200):
            data.qpos[:7] = q
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mju_mat2Quat(wxyz, data.site_xmat[self._tool])
            error[:3] = position - data.site_xpos[self._tool]
            mujoco.mju_subQuat(rotation, np.roll(quaternion, 1), wxyz)
            error[3:] = data.site_xmat[self._tool].reshape(3, 3) @ rotation
            if np.abs(error).max() < 2e-4:
                break
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._tool)
            j = jacobian[:, :7]
            q = np.clip(q + j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(6), error), low, high)
        if np.linalg.norm(error[:3]) > 2e-3:
            raise ValueError(f"tool position {np.round(position, 3).tolist()} is out of the arm's reach")
        return q


class CellRenderer:
    """Renders the cell's cameras, rgb8, each at its contract's size, under the model's current ``variation``. Owns an OpenGL
    context, so use one per process or thread.

    Raises:
        RuntimeError: OpenGL is not available.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Mapping[str, Camera], variation: Variation | None = None) -> None:
        self._model, self._variation = model, variation or Variation(model)
        self._sizes = {name: (camera.height, camera.width) for name, camera in cameras.items()}
        height, width = (max(sides) for sides in zip((1, 1), *self._sizes.values(), strict=True))
        try:
            # Not a mujoco.Renderer for each size: closing one of several frees its resources in another's context (MuJoCo 3.9).
            self._gl = mujoco.GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except (mujoco.FatalError, AttributeError, ImportError, RuntimeError) as error:
            raise RuntimeError(
                f"cannot render without OpenGL ({error}); install libegl1 and libegl-mesa0 (make venv does), import onedp_ros "
                "before mujoco, or set MUJOCO_GL=egl"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene, self._options = mujoco.MjvScene(model, maxgeom=10_000), mujoco.MjvOption()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self.close = weakref.finalize(self, _free, self._gl, self._context)
        self.close.atexit = False

    def render(self, data: mujoco.MjData, camera: str, stamp: int = 0) -> NDArray[np.uint8]:
        """The camera's image, (height, width, 3) uint8; ``stamp`` (ns) of the exposure seeds its noise."""
        height, width = self._sizes[camera]
        view, shape = mujoco.MjvCamera(), mujoco.MjrRect(0, 0, width, height)
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        mujoco.mjv_updateScene(self._model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        picture = self._variation.picture
        if picture.background is not None:
            add_room(self._scene, picture.background)
        image = np.empty((height, width, 3), np.uint8)
        self._gl.make_current()
        mujoco.mjr_render(shape, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, shape, self._context)
        return picture.take(image[::-1].copy(), camera, stamp)  # OpenGL's first row is the bottom one


def _free(gl: Any, context: mujoco.MjrContext) -> None:
    gl.make_current()
    context.free()
    gl.free()


def check_cameras(model: mujoco.MjModel, cameras: Iterable[str]) -> None:
    """Raise ContractError for a camera that the cell does not have; the message lists those that it has."""
    mounted = sorted(model.camera(i).name for i in range(model.ncam))
    for name in cameras:
        if name not in mounted:
            raise ContractError(
                f"the twin has no camera '{name}', only {', '.join(mounted)}; use one of these in the task file, or add the camera "
                f"in the scene's add_to()"
            )


def assets() -> Path:
    """Folder of MuJoCo Menagerie's FR3 in the franky-sim wheel. FileNotFoundError if that is not installed."""
    spec = importlib.util.find_spec("franky_sim")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the FR3 model is missing: pip install --no-deps franky-sim==1.0.4 (make venv does it)")
    return Path(spec.origin).parent / "assets"


def looking(position: Any, at: Any, up: Any = (0.0, 0.0, 1.0)) -> Array:
    """Orientation (wxyz) of a MuJoCo camera at ``position`` that looks ``at`` a point."""
    z = np.subtract(position, at).astype(float)
    z /= np.linalg.norm(z)
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.array([x, np.cross(z, x), z]).T.flatten())
    return quaternion


def camera_frames(model: mujoco.MjModel) -> dict[str, tuple[str, Array, Array]]:
    """Camera mounts: name -> body, and position (3,) m and orientation (4,) xyzw of the optical frame in that body's frame.

    Optical frames follow REP 103: z forward, x right, y down. MuJoCo's cameras look along -z with y up.
    """
    frames = {}
    for camera in map(model.camera, range(model.ncam)):
        w, x, y, z = camera.quat
        orientation = quaternion_multiply(np.array([x, y, z, w]), np.array([1.0, 0.0, 0.0, 0.0]))
        frames[camera.name] = (model.body(int(camera.bodyid[0])).name, camera.pos.copy(), orientation)
    return frames


def build_model(scene: Scene, cameras: Iterable[Camera] = ()) -> mujoco.MjModel:
    """Compile the model: arm, table, lights, cameras and the task's objects. The framebuffer fits the images of ``cameras``."""
    geom = mujoco.mjtGeom
    spec = mujoco.MjSpec.from_file(str(assets() / "fr3.xml"))
    spec.meshdir = str(assets() / "meshes")
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.impratio = 10
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MULTICCD)  # it makes contacts differ between MuJoCo versions
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1
    for joint in spec.joints:
        joint.frictionloss = 0  # the real controller compensates friction
    for actuator in list(spec.actuators):
        if actuator.name != "hand":
            spec.delete(actuator)  # torques are applied directly
    for shape in list(spec.geoms):
        if shape.classname.name.startswith("fingertip_pad"):
            shape.friction, shape.condim, shape.solref = [1.2, 0.02, 0.001], 4, [0.004, 1]
        if shape.classname.name == "visual":  # rendering the collision hulls instead takes 85 times fewer faces
            spec.delete(shape)
        else:
            shape.group, shape.rgba = 2, [0.92, 0.93, 0.94, 1]
    used = {shape.meshname for shape in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            spec.delete(mesh)
    for key in list(spec.keys):
        spec.delete(key)
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=geom.mjGEOM_BOX,
        size=[0.6, 0.6, 0.05],
        pos=[0.4, 0, -0.05],
        rgba=[0.55, 0.45, 0.35, 1],
        friction=[1, 0.005, 1e-4],
    )
    world.add_light(pos=[0.4, -0.6, 1.5], dir=[0, 0.4, -1], castshadow=False, diffuse=[0.6, 0.6, 0.6])
    front, aim = [1.00, -0.04, 0.55], [0.47, -0.04, 0.06]
    world.add_camera(name="front", pos=front, quat=looking(front, aim), fovy=FOVY)
    hand = spec.body("hand")
    wrist, aim = [0.085, 0.0, 0.0], [0.0, 0.0, 0.17]
    hand.add_camera(name="wrist", pos=wrist, quat=looking(wrist, aim, up=(1, 0, 0)), fovy=FOVY)
    hand.add_site(name="tool", pos=[0, 0, TOOL_OFFSET])
    scene.add_to(spec)
    for camera in cameras:
        spec.visual.global_.offwidth = max(spec.visual.global_.offwidth, camera.width)
        spec.visual.global_.offheight = max(spec.visual.global_.offheight, camera.height)
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 4
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.4] * 3
    return spec.compile()
