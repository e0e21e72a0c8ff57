"""Reads robomimic's HDF5 data sets: robosuite demonstrations by a Panda with absolute actions.

    data/demo_N/obs/<camera>_image (T, H, W, 3) uint8, robot0_eef_pos (T, 3), robot0_eef_quat (T, 4) xyzw,
    robot0_gripper_qpos (T, 2); data/demo_N/actions (T, 7): position, rotation vector, gripper (-1 open, 1 closed)

``actions_abs``, if present, is read instead of ``actions``. The contract's cameras are named like the images, with or without
``_image``. Poses keep the data set's frame.
Layout: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from onedp_ros.config import parse_json, shown
from onedp_ros.contract import MAX_HZ, NANOSECONDS, Camera, Contract
from onedp_ros.data.episodes import Dropped, Episode, Source, SourceError, on_grid
from onedp_ros.data.formats.zarr_reader import FREE, MAX_RATIO, MAX_RATIO_IMAGES
from onedp_ros.data.frames import Images

_BLOCK, _BLOCK_BYTES = 32, 2**26  # images read at once
_MAX_CHUNK = 2**26  # bytes of a chunk, which is read as a whole
NEAR = 0.2  # m: absolute actions lie within this distance of the end effector


def recognises(path: Path) -> bool:
    """Whether ``path`` is an HDF5 file."""
    return path.suffix in (".hdf5", ".h5") and path.is_file()


def sources(path: Path) -> list[Source]:
    """The demonstrations in a file, by number.

    Raises:
        SourceError: it is not a robomimic data set.
    """
    with _open(path) as file:
        try:
            demos = sorted(_own(file, "the file", "data", h5py.Group), key=lambda name: int(name.removeprefix("demo_")))
            options = parse_json(str(file["data"].attrs["env_args"]), "its env_args", finite=False)
            hz = options["env_kwargs"].get("control_freq") if isinstance(options.get("env_kwargs"), dict) else None
            if hz is not None and not (isinstance(hz, (int, float)) and 0 < hz <= MAX_HZ):
                raise ValueError(f"control_freq is {shown(hz)}")
        except (KeyError, ValueError, TypeError, AttributeError, SourceError) as error:
            raise SourceError(
                f"{path} is not robomimic's ({error}), expected the groups data/demo_0, data/demo_1, … and the attribute env_args"
            ) from error
    return [Source(path, f"{path}/{demo}", functools.partial(_read, path, demo, hz), {}) for demo in demos]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise SourceError(f"{path} is truncated or not an HDF5 file ({error}); copy or download it again") from error


def _own(place: h5py.Group, name: str, key: str, kind: type) -> Any:
    """The object at ``key`` below a group, stored in the file itself. SourceError for another kind of object or a link."""
    for part in key.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) and part in place else None
        if not isinstance(link, h5py.HardLink):
            why = "is missing" if link is None else "is a link; copy into its place what it leads to, with h5copy or h5repack"
            raise SourceError(f"{name}: {key} {why}")
        place = place[part]
    if not isinstance(place, kind):
        raise SourceError(f"{name}: {key} is not a {kind.__name__.lower()}; leave it out")
    return place


def _dataset(group: h5py.Group, name: str, key: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Numbers (T, *shape) stored in the file itself; -1: any. SourceError if they are in another file, have too large chunks, or
    are implausibly larger than their stored bytes."""
    place = _own(group, name, key, h5py.Dataset)
    if place.dtype.kind not in "biuf":
        raise SourceError(f"{name}: {key} does not hold numbers; leave it out")
    if place.external or place.is_virtual:
        raise SourceError(f"{name}: {key} is stored in another file; copy it into this one, with h5copy or h5repack")
    if place.ndim != 1 + len(shape) or any(w not in (-1, h) or h < 1 for w, h in zip(shape, place.shape[1:], strict=True)):
        expected = ", ".join("any" if width < 0 else str(width) for width in shape)
        raise SourceError(f"{name}: {key} has the shape {place.shape}, expected (T, {expected}), of one arm")
    if place.chunks and math.prod(place.chunks) * place.dtype.itemsize > _MAX_CHUNK:
        raise SourceError(f"{name}: {key} has chunks of the shape {place.chunks}, too large to be read; rewrite it with h5repack")
    ratio = MAX_RATIO if place.ndim < 3 else MAX_RATIO_IMAGES
    if place.nbytes > FREE + ratio * place.id.get_storage_size():
        raise SourceError(
            f"{name}: {key} {place.shape} has {place.nbytes} bytes, but only {place.id.get_storage_size()} are on the disk, too "
            f"few for a recording; copy it again if it is truncated, and check whether its values are constant"
        )
    return place


def _images(path: Path, dataset: str, camera: Camera) -> Iterator[NDArray[np.uint8]]:
    with _open(path) as file:
        images = file[dataset]
        block = max(1, min(_BLOCK, _BLOCK_BYTES // images[:0].dtype.itemsize // math.prod(images.shape[1:])))
        for first in range(0, len(images), block):
            yield from map(camera.fit, images[first : first + block])


def _read(path: Path, demo: str, hz: float | None, contract: Contract, folder: Path | None = None) -> tuple[list[Episode], Dropped]:
    name = f"{path}/{demo}"

    def rows(key: str, width: int) -> NDArray[np.float64]:
        if key not in group:
            raise SourceError(f"{name} lacks {key}; make the observations with robomimic's dataset_states_to_obs.py")
        values = np.asarray(_dataset(group, name, key, (width,))[()], dtype=np.float64)
        if not np.isfinite(values).all():
            raise SourceError(f"{name}: {key} holds values that are not finite; it is damaged, leave it out")
        return values

    with _open(path) as file:
        group = _own(file, name, f"data/{demo}", h5py.Group)
        actions = rows("actions_abs" if "actions_abs" in group else "actions", 7)
        position, quaternion = rows("obs/robot0_eef_pos", 3), rows("obs/robot0_eef_quat", 4)
        fingers = np.abs(rows("obs/robot0_gripper_qpos", 2))  # robosuite's second finger counts downwards
        if len({len(actions), len(position), len(quaternion), len(fingers)}) > 1:
            raise SourceError(f"{name} has {len(actions)} actions and {len(position)} observations; it is damaged, leave it out")
        # Files converted to absolute actions for Diffusion Policy still have control_delta in env_args, so check the values.
        distance = float(np.median(np.linalg.norm(actions[:, :3] - position, axis=1)))
        if not distance <= NEAR:
            raise SourceError(
                f"{name}: actions lie {distance:.2f} m from the end effector, they are deltas or in another frame; make them "
                f"absolute with robomimic's robosuite_add_absolute_actions.py or Diffusion Policy's robomimic_dataset_conversion.py"
            )
        images = {}
        for camera, settings in contract.cameras.items():
            key = f"{camera.removesuffix('_image')}_image"
            if key not in group["obs"]:
                cameras = sorted(k for k in group["obs"] if k.endswith("_image"))
                raise SourceError(f"{name} lacks obs/{key}, it has {cameras}; use these names for the cameras in the task file")
            stream = functools.partial(_images, path, f"data/{demo}/obs/{key}", settings)
            pictures = _dataset(group, name, f"obs/{key}", (-1, -1, 3))
            if len(pictures) != len(actions):
                raise SourceError(f"{name} has {len(actions)} actions and {len(pictures)} images of {key}; leave it out")
            images[camera] = Images(stream, np.arange(len(pictures)))
    stamps = np.round(np.arange(len(actions)) * (NANOSECONDS / (hz or contract.control_hz))).astype(np.int64)
    arm = contract.arm
    state = np.stack([arm.encode_state(*step) for step in zip(position, quaternion, fingers, strict=True)])
    target = Rotation.from_rotvec(actions[:, 3:6]).as_quat()
    opening = np.where(actions[:, 6] < 0, arm.opening_range[1], arm.opening_range[0])
    action = np.stack([arm.encode_action(*step) for step in zip(actions[:, :3], target, opening, strict=True)])
    return on_grid(name, Episode(stamps, images, state, action), contract)
