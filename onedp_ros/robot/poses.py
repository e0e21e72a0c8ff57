"""libfranka's poses: 4 x 4 homogeneous matrices as 16 numbers, column after column. Plain floats, for the 1 kHz loop."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pose_from_columns(m: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """16 numbers -> position (3,) m and unit quaternion xyzw (4,), the greatest of its parts positive."""
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
    """Position (3,) m and unit quaternion xyzw (4,) -> 16 numbers."""
    x, y, z, w = quaternion
    px, py, pz = position
    return [
        *(1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w), 0.0),
        *(2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w), 0.0),
        *(2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y), 0.0),
        *(px, py, pz, 1.0),
    ]
