"""Domain randomization of the cell: lights, colours, cameras, table height, friction and masses are drawn for each episode.

A draw is a function of the model, the kind of variation and a seed (image noise also of the frame's stamp), so the stepped twin,
the live twin and the process that renders the live twin's images all get the same one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator

NONE = "none"
CENTRE = np.array([0.45, 0.0, 0.0])  # m, the point the lights are rotated about
ROOM = (  # half sizes and positions (m) of the floor and walls rendered behind the cell
    ((3.0, 3.0, 0.05), (0.5, 0.0, -0.85)),
    ((0.05, 3.0, 2.0), (-2.5, 0.0, 1.2)),
    ((0.05, 3.0, 2.0), (3.5, 0.0, 1.2)),
    ((3.0, 0.05, 2.0), (0.5, -3.0, 1.2)),
    ((3.0, 0.05, 2.0), (0.5, 3.0, 1.2)),
)


@dataclasses.dataclass(frozen=True)
class Strength:
    """Ranges of a draw. Factors are log-uniform between 1/x and x, everything else is uniform."""

    light: tuple[float, float]  # range of the factor on all lights
    balance: float  # factor on each of lamp, diffuse light and ambient light
    light_colour: float  # factor on the light's red, green and blue
    light_turn: float  # largest rotation, rad
    table: float  # largest blend from its own colour to a random one, 0 to 1
    background: float  # largest blend from black to a random colour, 0 to 1
    objects: float  # largest blend from their own colours to random ones, 0 to 1
    camera_shift: float  # largest, m
    camera_turn: float  # largest, rad
    gain: float  # exposure factor
    white: float  # white balance: factor on the image's red, green and blue
    gamma: float  # exponent
    noise: float  # largest standard deviation, of 255
    height: float  # m that the table is higher or lower at most
    friction: float  # factor on the friction of all surfaces
    mass: float  # factor on the mass of a free object


STRENGTHS = {
    "mild": Strength(
        light=(0.6, 1.1),
        balance=1.2,
        light_colour=1.06,
        light_turn=math.radians(15.0),
        table=0.5,
        background=0.3,
        objects=0.15,
        camera_shift=0.01,
        camera_turn=math.radians(1.0),
        gain=1.15,
        white=1.05,
        gamma=1.15,
        noise=3.0,
        height=0.003,
        friction=1.1,
        mass=1.2,
    ),
    "strong": Strength(
        light=(0.4, 1.0),
        balance=1.4,
        light_colour=1.15,
        light_turn=math.radians(40.0),
        table=1.0,
        background=1.0,
        objects=0.35,
        camera_shift=0.03,
        camera_turn=math.radians(3.0),
        gain=1.25,
        white=1.12,
        gamma=1.3,
        noise=8.0,
        height=0.01,
        friction=1.3,
        mass=1.6,
    ),
}
# For demonstrations: noise compresses badly, and training adds its own.
STRENGTHS |= {f"{name}_noiseless": dataclasses.replace(strength, noise=0.0) for name, strength in STRENGTHS.items()}
CASES: Mapping[str, Callable[[mujoco.MjModel, Rng], None]] = {
    "half_light": lambda model, rng: _scale_light(model, 0.5),
    "grey_table": lambda model, rng: _paint_table(model, 0.5),
    "white_table": lambda model, rng: _paint_table(model, 0.8),
    "front_camera_moved": lambda model, rng: _move_camera(model, model.camera("front").id, rng, 0.03, math.radians(3.0)),
    "wrist_camera_moved": lambda model, rng: _move_camera(model, model.camera("wrist").id, rng, 0.03, math.radians(3.0)),
}
KINDS = (NONE, *STRENGTHS, *CASES)


@dataclasses.dataclass(frozen=True)
class Picture:
    """Image model of an episode: per camera a (256, 3) lookup table for red, green and blue; ``noise``: standard deviation, of 255;
    ``background``: colour of the room (3,), 0 to 1, or None for no room."""

    curves: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    noise: float = 0.0
    background: Array | None = None
    seed: int = 0

    def take(self, image: NDArray[np.uint8], camera: str, stamp: int) -> NDArray[np.uint8]:
        """Turn a rendered image (height, width, 3) into what the camera outputs at a stamp (ns)."""
        if camera not in self.curves:
            return image
        exposed = self.curves[camera][image, np.arange(3)]
        if self.noise > 0:
            rng = np.random.default_rng([self.seed, zlib.crc32(camera.encode()), stamp % 2**63])
            exposed += np.float32(self.noise) * rng.standard_normal(image.shape, np.float32)
        return np.clip(np.rint(exposed), 0, 255).astype(np.uint8)


class Variation:
    """Draws variations of one model, each starting from its nominal values, of which it keeps a copy.

    Attributes:
        picture: the current draw's image model.
        seed: the current draw's; None: the model is nominal.

    Args:
        model: changed by :meth:`draw` and :meth:`apply`.
        kind: one of :data:`KINDS`.
    """

    def __init__(self, model: mujoco.MjModel, kind: str = NONE) -> None:
        self._model, self._kind = model, kind
        self._nominal = None if kind == NONE else copy.copy(model)
        self.picture = Picture()
        self.seed: int | None = None

    def draw(self, rng: Rng) -> None:
        """Make a new draw. The later output of ``rng`` is the same as without variation."""
        if self._nominal is not None:
            self.apply(int(rng.spawn(1)[0].integers(2**63)))

    def apply(self, seed: int | None) -> None:
        """Apply the draw of a seed, unless it is the current one."""
        if self._nominal is None or seed is None or seed == self.seed:
            return
        _restore(self._model, self._nominal)
        rng, self.seed = np.random.default_rng(seed), seed
        if self._kind in CASES:
            CASES[self._kind](self._model, rng)
        else:
            self.picture = _vary(self._model, STRENGTHS[self._kind], rng, seed)


def add_room(scene: mujoco.MjvScene, colour: Array) -> None:
    """Add floor and walls to a rendered scene."""
    for size, place in ROOM:
        geom = scene.geoms[scene.ngeom]
        rgba = np.array([*colour, 1.0], np.float32)
        mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_BOX, np.array(size), np.array(place), np.eye(3).flatten(), rgba)
        geom.emission = 0.5  # the lamp does not reach it
        scene.ngeom += 1


def _restore(model: mujoco.MjModel, nominal: mujoco.MjModel) -> None:
    for name in ("light_pos", "light_dir", "light_diffuse", "light_ambient", "light_specular", "cam_pos", "cam_quat", "geom_rgba"):
        getattr(model, name)[:] = getattr(nominal, name)
    for name in ("body_mass", "body_inertia", "geom_friction"):
        getattr(model, name)[:] = getattr(nominal, name)
    model.body("base").pos[:] = nominal.body("base").pos
    for name in ("ambient", "diffuse", "specular"):
        getattr(model.vis.headlight, name)[:] = getattr(nominal.vis.headlight, name)


def _vary(model: mujoco.MjModel, strength: Strength, rng: Rng, seed: int) -> Picture:
    colour = rng.uniform(*np.log(strength.light)) + _log_factors(rng, strength.light_colour, 3)
    _scale_light(model, np.exp(colour), np.exp(_log_factors(rng, strength.balance, 3)))
    turn = _random_rotation(rng, strength.light_turn)
    for i in range(model.nlight):
        model.light_pos[i] = CENTRE + turn @ (model.light_pos[i] - CENTRE)
        model.light_dir[i] = turn @ model.light_dir[i]
    _paint_table(model, _random_colour(rng), rng.uniform(0.0, strength.table))
    background = rng.uniform(0.0, strength.background) * _random_colour(rng)
    curves = {}
    for i in range(model.ncam):
        _move_camera(model, i, rng, rng.uniform(0.0, strength.camera_shift), rng.uniform(0.0, strength.camera_turn))
        gain = np.exp(_log_factors(rng, strength.gain, 1) + _log_factors(rng, strength.white, 3))
        levels = np.linspace(0.0, 1.0, 256)[:, None] * gain
        curve = 255.0 * np.clip(levels, 0.0, 1.0) ** np.exp(_log_factors(rng, strength.gamma, 1))
        curves[model.camera(i).name] = curve.astype(np.float32)
    noise = rng.uniform(0.0, strength.noise)
    model.body("base").pos[2] -= rng.uniform(-strength.height, strength.height)
    model.geom_friction *= np.exp(_log_factors(rng, strength.friction, 1))
    for body in model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]:
        factor = np.exp(_log_factors(rng, strength.mass, 1))
        model.body_mass[model.body_rootid == body] *= factor
        model.body_inertia[model.body_rootid == body] *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))  # recompute what depends on masses
    robot = model.body_rootid[model.body("hand").id]
    others = model.body_rootid[model.geom_bodyid] != robot
    others[model.geom("table").id] = False
    for own in np.unique(model.geom_rgba[others, :3], axis=0):  # equal colours stay equal
        same = others & np.all(model.geom_rgba[:, :3] == own, axis=1)
        weight = rng.uniform(0.0, strength.objects)
        model.geom_rgba[same, :3] = (1 - weight) * own + weight * rng.uniform(0.0, 1.0, 3)
    return Picture(curves, noise, background, seed)


def _log_factors(rng: Rng, largest: float, count: int) -> Array:
    return rng.uniform(-1.0, 1.0, count) * math.log(largest)


def _random_colour(rng: Rng) -> Array:
    """A plausible colour of a table or wall, (3,) in 0 to 1: dark to bright, grey to moderately saturated."""
    return rng.uniform(0.15, 0.8) * (1.0 - rng.uniform(0.0, 0.6) * rng.uniform(0.0, 1.0, 3))


def _random_rotation(rng: Rng, max_angle: float) -> Array:
    """A rotation matrix (3, 3): up to ``max_angle`` (rad) about a random axis."""
    quaternion, matrix = _rotation_by(rng, rng.uniform(0.0, max_angle)), np.empty(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _rotation_by(rng: Rng, angle: float) -> Array:
    """A rotation (wxyz) by ``angle`` (rad) about a random axis."""
    quaternion = np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, _direction(rng), angle)
    return quaternion


def _direction(rng: Rng) -> Array:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _scale_light(model: mujoco.MjModel, factor: float | Array, balance: Array | tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """Scale all lights by a factor, or by one per colour; ``balance``: additional factors on lamps, diffuse and ambient light."""
    lamps, diffuse, ambient = (factor * b for b in balance)
    for name in ("light_diffuse", "light_ambient", "light_specular"):
        getattr(model, name)[:] *= lamps
    model.vis.headlight.diffuse *= diffuse
    model.vis.headlight.specular *= diffuse
    model.vis.headlight.ambient *= ambient


def _paint_table(model: mujoco.MjModel, colour: float | Array, weight: float = 1.0) -> None:
    rgb = model.geom("table").rgba[:3]
    rgb[:] = (1 - weight) * rgb + weight * colour


def _move_camera(model: mujoco.MjModel, camera: int, rng: Rng, shift: float, angle: float) -> None:
    """Move a camera by ``shift`` (m) and rotate it by ``angle`` (rad), both in random directions."""
    turned = np.empty(4)
    mujoco.mju_mulQuat(turned, model.cam_quat[camera], _rotation_by(rng, angle))
    model.cam_pos[camera] += shift * _direction(rng)
    model.cam_quat[camera] = turned
