"""Replay buffers for the tests."""

import numpy as np
import zarr

LENGTHS = [12, 20]  # steps of the episodes of the usual one


def write_replay(path, contract, lengths, **changes):
    """A replay buffer whose images, states and actions tell their row: pixel, state[0] and action[0] are the row number."""
    rows, count = np.arange(sum(lengths)), sum(lengths)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, c in contract.cameras.items():
        arrays[f"data/{name}"] = np.broadcast_to(rows[:, None, None, None], (count, c.height, c.width, 3)).astype(np.uint8)
    for name, size in (("state", contract.state_dim), ("action", contract.action_dim)):
        arrays[f"data/{name}"] = rng.random((count, size), dtype=np.float32)
        arrays[f"data/{name}"][:, 0] = rows
    arrays["meta/episode_ends"] = np.cumsum(lengths).astype(np.int64)
    root = zarr.open_group(str(path), mode="w")
    root.attrs["contract"] = contract.to_dict()
    for name, array in (arrays | changes).items():
        if array is not None:
            root.create_array(name, shape=array.shape, dtype=array.dtype, chunks=array.shape)[:] = array
    return path
