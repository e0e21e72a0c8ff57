"""Rotations and rigid transforms.

Conventions (REP 103): right-handed frames, metres, radians. Quaternions are ``(x, y, z, w)`` as in
``geometry_msgs/Quaternion``. The 6D rotation is the first two *rows* of the rotation matrix (Zhou et al. 2019,
https://arxiv.org/abs/1812.07035; rows as in Diffusion Policy's pytorch3d transforms).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# The next two equal SciPy's Rotation bit for bit, without its import, which would be a third of a node's start.


def quaternion_to_matrix(quaternion: Array) -> Array:
    """(..., 4) quaternions of any non-zero length -> (..., 3, 3) rotation matrices. ValueError for a zero quaternion."""
    parts = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    if not np.all(np.any(parts, axis=0)):
        raise ValueError("a quaternion is zero, expected a rotation")
    x, y, z, w = _normalize(parts)
    xx, yy, zz, ww = x * x, y * y, z * z, w * w
    xy, xz, yz, xw, yw, zw = x * y, x * z, y * z, x * w, y * w, z * w
    rows = [
        [xx - yy - zz + ww, 2 * (xy - zw), 2 * (xz + yw)],
        [2 * (xy + zw), -xx + yy - zz + ww, 2 * (yz - xw)],
        [2 * (xz - yw), 2 * (yz + xw), -xx - yy + zz + ww],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def matrix_to_quaternion(matrix: Array) -> Array:
    """(..., 3, 3) rotation matrices, orthonormal to rounding -> (..., 4) unit quaternions."""
    m = np.moveaxis(np.asarray(matrix, dtype=np.float64), (-2, -1), (0, 1))
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    x, y, z = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] + m[1, 2]
    # Four times x, y, z or w times the quaternion: by the greatest of them, which never is near zero.
    multiples = [
        [1 - trace + 2 * m[0, 0], xy, xz, x],
        [xy, 1 - trace + 2 * m[1, 1], yz, y],
        [xz, yz, 1 - trace + 2 * m[2, 2], z],
        [x, y, z, 1 + trace],
    ]
    greatest = np.argmax([m[0, 0], m[1, 1], m[2, 2], trace], axis=0)
    return np.moveaxis(_normalize(np.take_along_axis(np.array(multiples), greatest[None, None], axis=0)[0]), 0, -1)


def _normalize(quaternion: Array) -> Array:
    """(4, ...) -> (4, ...) of length one."""
    x, y, z, w = quaternion
    return quaternion / np.sqrt(x * x + y * y + z * z + w * w)


def matrix_to_rotation_6d(matrix: Array) -> Array:
    """(..., 3, 3) rotation matrices -> (..., 6): the first two rows, one after the other."""
    matrix = np.asarray(matrix)
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6).copy()


def rotation_6d_to_matrix(rotation: Array) -> Array:
    """(..., 6) -> (..., 3, 3) by Gram-Schmidt.

    Raises:
        ValueError: the rows are not finite, shorter than 0.1, or parallel within 6 degrees: not a rotation.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    a, b = rotation[..., :3], rotation[..., 3:]
    with np.errstate(all="ignore"):
        length = np.linalg.norm(a, axis=-1, keepdims=True)
        first = a / length
        rest = b - np.sum(first * b, axis=-1, keepdims=True) * first
        rest_length = np.linalg.norm(rest, axis=-1, keepdims=True)
        second = rest / rest_length
        b_length = np.linalg.norm(b, axis=-1, keepdims=True)
        good = (length > 0.1) & (b_length > 0.1) & (rest_length > 0.1 * b_length)
    if not (np.all(good) and np.all(np.isfinite(rotation))):
        raise ValueError(f"not a rotation: 6D value {rotation[~np.squeeze(good, -1)][:1] if rotation.ndim > 1 else rotation}")
    return np.stack([first, second, np.cross(first, second)], axis=-2)


# The next eight are plain floats inside: several times faster than NumPy on three or four numbers, at 1 kHz.


def quaternion_multiply(a: Array, b: Array) -> Array:
    """Hamilton product ``a * b``: the rotation b, then a. (4,), (4,) -> (4,)."""
    return np.array(multiply_xyzw(np.asarray(a).tolist(), np.asarray(b).tolist()))


def multiply_xyzw(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """:func:`quaternion_multiply` of plain floats."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def quaternion_from_rotation_vector(vector: Array) -> Array:
    """Rotation vector (axis times angle, rad) -> unit quaternion. (3,) -> (4,)."""
    return np.array(xyzw_from_rotation_vector(*np.asarray(vector).tolist()))


def xyzw_from_rotation_vector(x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """:func:`quaternion_from_rotation_vector` of plain floats."""
    angle = math.sqrt(x * x + y * y + z * z)
    scale = 0.5 if angle < 1e-9 else math.sin(0.5 * angle) / angle
    return x * scale, y * scale, z * scale, math.cos(0.5 * angle)


def rotation_difference(to: Array, start: Array) -> Array:
    """Rotation vector, in the fixed frame, of the shortest rotation that takes ``start`` to ``to``. (4,), (4,) -> (3,)."""
    return np.array(rotation_between(np.asarray(to).tolist(), np.asarray(start).tolist()))


def rotation_between(to: Sequence[float], start: Sequence[float]) -> tuple[float, float, float]:
    """:func:`rotation_difference` of plain floats."""
    x, y, z, w = multiply_xyzw(to, (-start[0], -start[1], -start[2], start[3]))
    if w < 0:
        x, y, z, w = -x, -y, -z, -w
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2.0 if sine < 1e-9 else 2.0 * math.atan2(sine, w) / sine
    return x * scale, y * scale, z * scale


def pose_from_columns(m: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """libfranka's pose, a 4 x 4 matrix as 16 numbers, column after column -> position (3,) m and unit quaternion xyzw (4,), the
    greatest of its parts positive."""
    xx, yx, zx, _, xy, yy, zy, _, xz, yz, zz = m[:11]
    trace = xx + yy + zz
    greatest = max(trace, xx, yy, zz)
    if greatest == trace:
        q = (zy - yz, xz - zx, yx - xy, 1.0 + trace)
    elif greatest == xx:
        q = (1.0 + xx - yy - zz, yx + xy, xz + zx, zy - yz)
    elif greatest == yy:
        q = (yx + xy, 1.0 - xx + yy - zz, zy + yz, xz - zx)
    else:
        q = (xz + zx, zy + yz, 1.0 - xx - yy + zz, yx - xy)
    scale = 1.0 / math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return m[12:15], (scale * q[0], scale * q[1], scale * q[2], scale * q[3])


def columns_from_pose(position: Sequence[float], quaternion: Sequence[float]) -> list[float]:
    """Inverse of :func:`pose_from_columns`."""
    x, y, z, w = quaternion
    px, py, pz = position
    return [
        *(1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w), 0.0),
        *(2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w), 0.0),
        *(2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y), 0.0),
        *(px, py, pz, 1.0),
    ]


def slerp(first: Array, second: Array, fraction: float) -> Array:
    """Unit quaternion on the shortest arc from ``first`` (fraction 0) to ``second`` (fraction 1). (4,), (4,) -> (4,)."""
    start, end = first / np.linalg.norm(first), second / np.linalg.norm(second)
    turn = min(max(float(fraction), 0.0), 1.0) * rotation_difference(end, start)
    return quaternion_multiply(quaternion_from_rotation_vector(turn), start)


def interpolate(first: Any, second: Any, fraction: float) -> Any:
    """Between two values of the same shape, linear; of two poses (position (3,), quaternion (4,)) the rotation by :func:`slerp`."""
    if isinstance(first, tuple):
        return first[0] + fraction * (second[0] - first[0]), slerp(first[1], second[1], fraction)
    return first + fraction * (second - first)


def rotation_angle(a: Array, b: Array) -> float:
    """Angle between two orientations, rad in [0, pi]. (4,), (4,) -> float."""
    return float(np.linalg.norm(rotation_difference(a, b)))


def gripper_down(yaw: float) -> Array:
    """Orientation of a tool that points along -z of the base, turned by ``yaw`` (rad) about the base's z. -> (4,)."""
    return quaternion_multiply(quaternion_from_rotation_vector(np.array([0.0, 0.0, yaw])), np.array([1.0, 0.0, 0.0, 0.0]))


def tool_yaw(quaternion: Array) -> float:
    """Yaw (rad) of a downward tool: the heading of its x axis in the base frame; inverse of :func:`gripper_down`."""
    matrix = quaternion_to_matrix(quaternion)
    return math.atan2(matrix[1, 0], matrix[0, 0])
