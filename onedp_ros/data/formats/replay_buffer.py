"""Replay buffers: zarr stores in Diffusion Policy's layout, written and read.

    data/<camera>  (N, height, width, 3) uint8     data/state   (N, state_dim) float32
    data/action    (N, action_dim) float32         meta/episode_ends (E,) int64

The root's attributes hold the contract, one entry per episode, and what was dropped. Stores with the fields of Diffusion Policy's
real robot, ``robot_eef_pose`` and ``timestamp``, can be read, too.
Layout: https://github.com/real-stanford/diffusion_policy, diffusion_policy/common/replay_buffer.py (zarr format 2).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from onedp_ros.config import shown
from onedp_ros.contract import NANOSECONDS, Camera, Contract
from onedp_ros.data.episodes import Dropped, Episode, Piece, Run, Source, SourceError, on_grid
from onedp_ros.data.formats.zarr_reader import ZarrArray, ZarrError, ZarrStore
from onedp_ros.data.frames import Images

IMAGE_CHUNK = 32  # images per chunk
MAX_EPISODES = 100_000  # in a store
_BLOCK_BYTES = 2**26  # of images that a process handles at once; at least one chunk
_PACK = numcodecs.Blosc("lz4", clevel=1)  # for the pieces
_FORMAT: dict[str, Any] = {"zarr_format": 2} if zarr.__version__ >= "3" else {}  # the only format of zarr 2


def _create(store: Path, name: str, shape: tuple[int, ...], dtype: str, chunk: int) -> Any:
    return zarr.create(
        shape=shape,
        chunks=(chunk, *shape[1:]),
        dtype=dtype,
        compressor=numcodecs.Blosc("zstd", clevel=1),
        store=str(store),
        path=name,
        **_FORMAT,
    )


def check(contract: Contract) -> None:
    """Every contract can be written."""


def encode(images: Mapping[str, Images], contract: Contract, folder: Path) -> None:
    """Encode an episode's images by camera into ``folder``, for :func:`assemble`."""
    for name, frames in images.items():
        with open(folder / f"{name}.lz4", "wb") as file:
            every = iter(frames)
            while chunk := list(itertools.islice(every, IMAGE_CHUNK)):
                packed = _PACK.encode(np.stack(chunk))
                file.write(len(packed).to_bytes(8, "little") + packed)


def assemble(pieces: Sequence[Piece], contract: Contract, attributes: Mapping[str, Any], out: Path, run: Run) -> None:
    """Write episodes, in order, to the store ``out``."""
    root = zarr.open_group(str(out), mode="w", **_FORMAT)
    for group in ("data", "meta"):
        root.require_group(group)
    ends = np.cumsum([len(piece.state) for piece in pieces], dtype=np.int64)
    steps = int(ends[-1])
    for name, rows in (("state", [p.state for p in pieces]), ("action", [p.action for p in pieces])):
        _create(out, f"data/{name}", (steps, rows[0].shape[1]), "f4", 4096)[:] = np.concatenate(rows)
    _create(out, "meta/episode_ends", ends.shape, "i8", 4096)[:] = ends
    jobs = []
    for name, camera in contract.cameras.items():
        _create(out, f"data/{name}", (steps, camera.height, camera.width, 3), "u1", IMAGE_CHUNK)
        block = max(_BLOCK_BYTES // (IMAGE_CHUNK * camera.height * camera.width * 3), 1) * IMAGE_CHUNK
        for first in range(0, steps, block):
            last = min(first + block, steps)
            held = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left")) + 1)
            jobs.append((out, name, first, last, [(pieces[i].folder, int(ends[i]) - len(pieces[i].state)) for i in held]))
    run(_copy_images, jobs)
    root.attrs.update(attributes)


def _copy_images(out: Path, camera: str, first: int, last: int, pieces: Sequence[tuple[Path, int]]) -> None:
    """Write images ``first`` to ``last`` of the store, from the pieces (folder, index of its first image) that contain them."""
    images = zarr.open_array(str(out / "data" / camera), mode="r+")
    block = np.empty((last - first, *images.shape[1:]), np.uint8)
    for folder, at in pieces:
        with open(folder / f"{camera}.lz4", "rb") as file:
            while at < last and (size := file.read(8)):
                if at + IMAGE_CHUNK > first:
                    packed = file.read(int.from_bytes(size, "little"))
                    frames = np.frombuffer(_PACK.decode(packed), np.uint8).reshape(-1, *images.shape[1:])
                    begin, end = max(at, first), min(at + len(frames), last)
                    block[begin - first : end - first] = frames[begin - at : end - at]
                else:
                    file.seek(int.from_bytes(size, "little"), os.SEEK_CUR)
                at += IMAGE_CHUNK
    images[first:last] = block


def recognises(path: Path) -> bool:
    """Whether ``path`` is a zarr store, in a folder or a zip file."""
    return path.name.endswith(".zarr.zip") or any((path / name).exists() for name in (".zgroup", "zarr.json"))


def sources(path: Path) -> list[Source]:
    """The episodes of a store.

    Raises:
        SourceError: it has neither this package's fields nor those of Diffusion Policy's real robot.
    """
    try:
        store = ZarrStore(path)
        names = store.names("data")
        if "meta/episode_ends" not in store or "action" not in names or not {"state", "robot_eef_pose"} & set(names):
            raise SourceError(
                f"{path} has the arrays {shown(names)} in data/, expected action, and state (as 'onedp convert' writes) or "
                f"robot_eef_pose (as Diffusion Policy's real robot does), and meta/episode_ends"
            )
        ends = episode_ends(store)
    except ZarrError as error:
        raise SourceError(str(error)) from error
    read = _read if "state" in names else _read_real
    noted = store.attributes.get("episodes")
    if not isinstance(noted, list) or len(noted) != len(ends) or not all(isinstance(note, dict) for note in noted):
        noted = [{}] * len(ends)
    contract = {"contract": store.attributes["contract"]} if "contract" in store.attributes else {}
    found = []
    for i, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        name = f"{path}/episode_{i}"
        found.append(Source(path, name, functools.partial(_episode, read, path, name, first, last), {**noted[i], **contract}))
    return found


def episode_ends(store: ZarrStore) -> list[int]:
    """The row after each episode's last. ZarrError if they decrease or are too many."""
    array = store["meta/episode_ends"]
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) > MAX_EPISODES:
        raise ZarrError(
            f"{store.path}: 'meta/episode_ends' is {array.dtype} {array.shape}, expected whole numbers, {MAX_EPISODES} at most"
        )
    ends = array[:].astype(np.int64)
    if np.any(np.diff(ends, prepend=0) < 0):  # an empty episode is skipped by name
        raise ZarrError(f"{store.path}: 'meta/episode_ends' decreases; it is damaged, make it again")
    return [int(end) for end in ends]


class _Rows:
    """The rows of an episode in a store."""

    def __init__(self, path: Path, first: int, last: int) -> None:
        self.path = path
        self._store, self._first, self._last = ZarrStore(path), first, last

    def _array(self, name: str, *shape: int | None) -> ZarrArray:
        if f"data/{name}" not in self._store:
            names = shown(self._store.names("data"))
            raise SourceError(f"{self.path} lacks data/{name}, it has {names}; use these names for the cameras in the task file")
        try:
            array = self._store[f"data/{name}"]
        except ZarrError as error:
            raise SourceError(str(error)) from error
        if len(shape) != array.ndim - 1 or any(n not in (None, m) for n, m in zip(shape, array.shape[1:], strict=True)):
            expected = "".join(f", {'any' if n is None else n}" for n in shape)
            raise SourceError(f"{self.path}: data/{name} has the shape {array.shape}, expected (N{expected})")
        if array.shape[0] < self._last:
            raise SourceError(f"{self.path}: data/{name} ends at {array.shape[0]}, before step {self._last}; make it again")
        return array

    def _rows(self, array: ZarrArray, first: int, last: int) -> NDArray:
        try:
            return array[first:last]
        except ZarrError as error:
            raise SourceError(str(error)) from error

    def __call__(self, name: str, *shape: int | None) -> NDArray:
        """``data/<name>``, with this shape after the first dimension (None: any).

        Raises:
            SourceError: it is missing, too short, of another shape, or cannot be decoded.
        """
        return self._rows(self._array(name, *shape), self._first, self._last)

    def images(self, name: str, camera: Camera) -> Images:
        """``data/<name>``, resized for the contract's camera. Errors as above; those of decoding and resizing arise on
        iteration."""
        array = self._array(name, None, None, 3)

        def stream() -> Iterator[NDArray[np.uint8]]:
            for first in range(self._first, self._last, IMAGE_CHUNK):
                yield from map(camera.fit, self._rows(array, first, min(first + IMAGE_CHUNK, self._last)))

        return Images(stream, np.arange(self._last - self._first))


def _episode(
    read: Any, path: Path, name: str, first: int, last: int, contract: Contract, folder: Path | None = None
) -> tuple[list[Episode], Dropped]:
    if last <= first:
        raise SourceError(f"{name} has no step (rows {first} to {last}); leave it out")
    rows = _Rows(path, first, last)
    stamps, state, action = read(rows, contract, last - first)
    images = {camera: rows.images(camera, settings) for camera, settings in contract.cameras.items()}
    return on_grid(name, Episode(stamps, images, state, action), contract)


def _read(rows: _Rows, contract: Contract, steps: int) -> tuple[NDArray, NDArray, NDArray]:
    stamps = np.arange(steps, dtype=np.int64) * contract.dt_ns
    state, action = rows("state", contract.state_dim), rows("action", contract.action_dim)
    return stamps, state.astype(np.float32), action.astype(np.float32)


def _read_real(rows: _Rows, contract: Contract, steps: int) -> tuple[NDArray, NDArray, NDArray]:
    """Poses are a position (m) and a rotation vector; the action's seventh value, if any, is the opening (m).

    Diffusion Policy's real robot has no gripper; then opening and fingers are 0.
    """
    stamps = np.round(rows("timestamp").astype(np.float64) * NANOSECONDS).astype(np.int64)
    pose, action = rows("robot_eef_pose", 6), rows("action", None)
    opening = width = np.zeros(steps)
    if action.shape[1] == 7:
        opening, width = action[:, 6], rows("robot_gripper_width", 1)[:, 0]
        if opening.min() < -0.01 or opening.max() > 0.2:
            raise SourceError(
                f"{rows.path}: the seventh value of data/action spans {opening.min():g} to {opening.max():g}, expected the gripper "
                f"opening in m"
            )
    elif action.shape[1] != 6:
        raise SourceError(
            f"{rows.path}: data/action has {action.shape[1]} values, expected position and rotation vector (6), and the opening (7)"
        )
    quaternion, target = (Rotation.from_rotvec(p[:, 3:6]).as_quat() for p in (pose, action))
    arm = contract.arm
    state = np.stack([arm.encode_state(p[:3], q, (w / 2, w / 2)) for p, q, w in zip(pose, quaternion, width, strict=True)])
    return stamps, state, np.stack([arm.encode_action(a[:3], q, o) for a, q, o in zip(action, target, opening, strict=True)])
