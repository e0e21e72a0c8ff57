"""Training windows from a replay buffer in Diffusion Policy's layout (zarr).

Group ``data/``: one image array (N, H, W, 3) uint8 for each of the contract's cameras, ``state`` (N, state_dim) and
``action`` (N, action_dim) float32; group ``meta/``: ``episode_ends`` (E,) int64. The root attribute ``contract`` describes the
arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onedp_ros.contract import Contract, Normalizer
from onedp_ros.data.formats.zarr_reader import ZarrArray, ZarrError, ZarrStore
from onedp_ros.files import open_atomically
from onedp_ros.policy.policies import Batch

_BLOCK_BYTES = 2**26  # of images unpacked at a time


class DatasetError(ValueError):
    """A data set that cannot be trained on; the message names the file, the array and the remedy."""


def _unpack(array: ZarrArray, file: Path, stamp: str) -> NDArray:
    """The array, memory-mapped from ``file``, which is written in blocks unless another process or an earlier run did so."""
    done = file.with_suffix(".done")
    if not (done.exists() and done.read_text() == stamp):
        done.unlink(missing_ok=True)
        rows = max(_BLOCK_BYTES // (array.nbytes // max(len(array), 1) + 1), 1)
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        try:
            with open_atomically(file) as out:  # not through a map: on a full disk that kills the process without a message
                np.lib.format.write_array_header_1_0(out, header)
                for first in range(0, len(array), rows):
                    out.write(np.ascontiguousarray(array[first : first + rows]).data)
            done.write_text(stamp)
        except OSError as error:
            raise DatasetError(
                f"{file} cannot be written ({error.strerror}): the images take {array.nbytes / 1e9:.2g} GB there; make room on "
                f"that disk, or copy the data set to another one"
            ) from error
    return np.load(file, mmap_mode="r")


class WindowDataset:
    """All windows of a replay buffer, in memory.

    A window at step t holds the observations t-1 and t and the actions t-1 .. t+14 (for two observations and a horizon of 16),
    so that action index 1 belongs to step t. As in Diffusion Policy, windows extend past both ends of an episode, by the contract's
    ``padding``: ``n_obs_steps - 1`` steps before the start and ``n_action_steps - 1`` after the end, where the first and the last
    values are repeated.

    Args:
        path: the zarr directory.
        contract: when given, the data must have been made with it.
        unpack: keep the images unpacked in ``<path without .zarr>.cache`` and memory-map them, so that processes and later runs
            share one copy. Otherwise they are read into memory.

    Raises:
        DatasetError: not such a replay buffer, or a damaged one.
        ContractError: the data has another contract; names the field.
    """

    def __init__(self, path: str | Path, contract: Contract | None = None, unpack: bool = False) -> None:
        if not Path(path).exists():
            raise DatasetError(f"{path} does not exist; make it with 'onedp convert BAGS --out {path}'")
        try:
            store = ZarrStore(path)
        except ZarrError as error:
            raise DatasetError(f"{path} is not a zarr replay buffer ({error}); convert the bags again") from error
        if "contract" not in store.attributes:
            raise DatasetError(f"{path} has no 'contract' attribute; convert the bags again with 'onedp convert'")
        self.contract = Contract.from_dict(store.attributes["contract"])
        if contract is not None:
            contract.require_same(self.contract, "the task", str(path))

        def read(name: str, shape: tuple[int, ...], dtype: str) -> NDArray:
            if name not in store:
                raise DatasetError(f"{path} has no array '{name}'; convert the bags again")
            array = store[name]
            if array.shape[1:] != shape or array.dtype != np.dtype(dtype):
                raise DatasetError(
                    f"{path}: '{name}' is {array.dtype} {array.shape}, expected {dtype} (N, {', '.join(map(str, shape))})"
                )
            if not unpack or len(shape) < 3:
                return array[:]
            sample = array[:: max(1, array.shape[0] // 32)]  # enough to tell apart data that differs in its images alone
            images = hashlib.sha256(self.stamp.encode() + np.asarray(sample).tobytes()).hexdigest()
            return _unpack(array, Path(path).with_suffix(".cache") / f"{Path(name).name}.npy", images)

        c = self.contract
        try:
            self.state = read("data/state", (c.state_dim,), "float32")
            self.action = read("data/action", (c.action_dim,), "float32")
            self.episode_ends = read("meta/episode_ends", (), "int64")
            self.stamp = hashlib.sha256(b"".join(a.tobytes() for a in (self.state, self.action, self.episode_ends))).hexdigest()
            self.images = {n: read(f"data/{n}", (camera.height, camera.width, 3), "uint8") for n, camera in c.cameras.items()}
        except ZarrError as error:
            raise DatasetError(str(error)) from error
        lengths = {"state": len(self.state), "action": len(self.action), **{n: len(i) for n, i in self.images.items()}}
        ends = self.episode_ends
        if len(ends) == 0 or np.any(np.diff(ends, prepend=0) <= 0) or any(n != ends[-1] for n in lengths.values()):
            raise DatasetError(
                f"{path} is cut short: arrays of lengths {lengths}, episodes ending at {ends[-3:].tolist()}; convert again"
            )
        if not (np.isfinite(self.state).all() and np.isfinite(self.action).all()):
            raise DatasetError(f"{path} holds NaN or infinity in its states or actions; convert the bags again")

        # For each window, its rows in the arrays; the first and last of an episode are repeated.
        observations, actions = [], []
        offset_o, offset_a = np.arange(c.n_obs_steps), np.arange(c.horizon)
        before, after = c.padding
        for first, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            starts = np.arange(first - before, max(end - c.horizon + after, first - before) + 1)[:, None]
            observations.append(np.clip(starts + offset_o, first, end - 1))
            actions.append(np.clip(starts + offset_a, first, end - 1))
        self.observation_rows = np.concatenate(observations)
        self.action_rows = np.concatenate(actions)

    def __len__(self) -> int:
        return len(self.observation_rows)

    def normalizer(self) -> Normalizer:
        """A normaliser fitted to this data."""
        return Normalizer.fit(self.contract, self.state, self.action)

    def batch(self, windows: NDArray[np.integer], rng: np.random.Generator | None = None) -> Batch:
        """The windows with these indices (B,); uint8 images, cropped at random or, without ``rng``, at the centre.

        Each window and camera has one crop, shared by its observations.
        """
        rows = self.observation_rows[windows]
        images = {}
        for name, frames in self.images.items():
            height, width = self.contract.crop
            spare = np.array([frames.shape[1] - height, frames.shape[2] - width])
            corners = np.tile(spare // 2, (len(rows), 1)) if rng is None else rng.integers(0, spare + 1, (len(rows), 2))
            out = np.empty((*rows.shape, height, width, 3), np.uint8)
            for i, (top, left) in enumerate(corners.tolist()):
                for j, row in enumerate(rows[i].tolist()):
                    out[i, j] = frames[row, top : top + height, left : left + width]
            images[name] = torch.from_numpy(out)
        state, action = self.state[rows], self.action[self.action_rows[windows]]
        return Batch(images, torch.from_numpy(state), torch.from_numpy(action))

    def batches(self, size: int, first: int, seed: int, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """Endless random batches of ``size``, starting with number ``first``; the ``world`` ranks get disjoint ones.

        Batch number i depends on the seed, the rank and i alone, so that a resumed run sees what an uninterrupted one would.
        Every epoch reshuffles all windows. A thread prepares the next batches while the current one is used.

        Raises:
            DatasetError: there are too few windows for one batch on every rank.
        """
        per_epoch = len(self) // (size * world)
        if per_epoch == 0:
            raise DatasetError(f"{len(self)} windows are fewer than a batch of {size * world}; reduce batch_size or record more")

        def make(number: int) -> Batch:
            epoch, position = divmod(number, per_epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            start = (position * world + rank) * size
            return self.batch(order[start : start + size], np.random.default_rng([seed, number, rank]))

        with ThreadPoolExecutor(1, "batches") as thread:
            ahead = [thread.submit(make, first + i) for i in range(3)]
            while True:
                yield ahead.pop(0).result()
                first += 1
                ahead.append(thread.submit(make, first + 2))
