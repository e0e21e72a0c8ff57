import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import zarr
from replays import write_replay

from onedp_ros.contract import ContractError
from onedp_ros.learning.dataset import DatasetError, WindowDataset


def rows_of(batch):
    return batch.state[:, :, 0].numpy().astype(int), batch.action[:, :, 0].numpy().astype(int)


def test_windows_repeat_the_ends_of_an_episode_and_never_leave_it(replay):
    dataset = WindowDataset(replay)
    observations, actions = rows_of(dataset.batch(np.arange(len(dataset))))
    # 12 steps: windows start at -1 .. 12 - 16 + 7 = 3; 20 steps: at -1 .. 11
    assert len(dataset) == 5 + 13
    assert observations[0].tolist() == [0, 0]
    assert actions[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 11, 11][:16]
    assert observations[1].tolist() == [0, 1]
    assert actions[4].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 11, 11, 11, 11, 11, 11]
    assert observations[5].tolist() == [12, 12]
    assert actions[-1].tolist() == [23, 24, 25, 26, 27, 28, 29, 30, 31, 31, 31, 31, 31, 31, 31, 31]


def test_action_index_one_belongs_to_the_newest_observation(replay):
    dataset = WindowDataset(replay)
    observations, actions = rows_of(dataset.batch(np.arange(len(dataset))))
    np.testing.assert_array_equal(actions[:, 1], observations[:, 1])


def test_images_belong_to_their_states(replay):
    dataset = WindowDataset(replay)
    batch = dataset.batch(np.arange(len(dataset)), np.random.default_rng(0))
    assert batch.images.keys() == {"wrist", "front"}
    for image in batch.images.values():
        assert image.shape[2:] == (36, 40, 3)
        np.testing.assert_array_equal(image[:, :, 5, 5, 0], batch.state[:, :, 0])


def test_a_window_has_one_crop_for_each_camera(tmp_path, small_contract):
    camera = small_contract.cameras["wrist"]
    rows, columns = np.indices((camera.height, camera.width), dtype=np.uint8)
    image = np.broadcast_to(np.stack([rows, columns, rows], -1), (20, camera.height, camera.width, 3)).copy()
    path = write_replay(tmp_path / "d.zarr", small_contract, [20], **{"data/wrist": image, "data/front": image})
    dataset = WindowDataset(path)
    batch = dataset.batch(np.arange(13), np.random.default_rng(0))
    corners = {n: i[:, :, 0, 0, :2].numpy() for n, i in batch.images.items()}
    for corner in corners.values():
        np.testing.assert_array_equal(corner[:, 0], corner[:, 1])
        assert len(np.unique(corner[:, 0], axis=0)) > 3
        assert corner[..., 0].max() <= 4 and corner[..., 1].max() <= 8
    assert not np.array_equal(corners["wrist"], corners["front"])
    centre = dataset.batch(np.arange(13)).images["wrist"][:, :, 0, 0, :2].numpy()
    assert np.unique(centre.reshape(-1, 2), axis=0).tolist() == [[2, 4]]


def test_batches_are_an_epochs_permutation_and_can_start_anywhere(replay):
    dataset = WindowDataset(replay)
    stream = dataset.batches(3, 0, seed=1)
    epoch = [next(stream) for _ in range(12)]
    stream.close()
    actions = np.concatenate([rows_of(b)[1][:, :2] for b in epoch[:6]])
    assert len(np.unique(actions, axis=0)) == 18
    late = dataset.batches(3, 7, seed=1)
    again = next(late)
    late.close()
    np.testing.assert_array_equal(again.state, epoch[7].state)
    np.testing.assert_array_equal(again.images["wrist"], epoch[7].images["wrist"])
    assert not np.array_equal(epoch[0].state, epoch[6].state)


def test_ranks_share_an_epoch_without_overlap(replay):
    dataset, seen = WindowDataset(replay), []
    for rank in range(2):
        stream = dataset.batches(3, 0, seed=1, rank=rank, world=2)
        seen += [rows_of(next(stream))[1][:, :2] for _ in range(3)]
        stream.close()
    assert len(np.unique(np.concatenate(seen), axis=0)) == 18


def test_unpacked_images_are_the_same_and_follow_the_data(tmp_path, replay, small_contract):
    one, mapped = WindowDataset(replay), WindowDataset(replay, unpack=True)
    np.testing.assert_array_equal(one.images["front"], mapped.images["front"])
    assert isinstance(mapped.images["front"], np.memmap)
    write_replay(replay, small_contract, [30])
    assert len(WindowDataset(replay, unpack=True).images["front"]) == 30


def test_a_full_disk_is_named_and_does_not_end_the_process(tmp_path, replay):
    cache = replay.with_suffix(".cache")
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", cache], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        program = f"from onedp_ros.learning.dataset import WindowDataset; WindowDataset({str(replay)!r}, unpack=True)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 1  # and not -7, a bus error
        assert re.search(r"DatasetError: .*data\.cache/wrist\.npy cannot be written \(No space left.*make room", done.stderr)
        assert not list(cache.iterdir())
    finally:
        subprocess.run(["umount", "-l", cache], check=True)
    assert len(WindowDataset(replay, unpack=True).images["wrist"]) == 32


def test_another_contract_is_refused_and_the_field_named(replay, small_contract):
    WindowDataset(replay, small_contract)
    with pytest.raises(ContractError, match="'control_hz'"):
        WindowDataset(replay, dataclasses.replace(small_contract, control_hz=10.0))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data/state": None}, "data/state"),
        ({"data/front": None}, "data/front"),
        ({"data/state": np.zeros((32, 9), np.float64)}, "float64"),
        ({"data/action": np.zeros((32, 7), np.float32)}, "(32, 7)"),
        ({"data/front": np.zeros((32, 20, 20, 3), np.uint8)}, "(32, 20, 20, 3)"),
        ({"data/action": np.zeros((30, 10), np.float32)}, "cut short"),
        ({"meta/episode_ends": np.array([12, 40])}, "cut short"),
        ({"meta/episode_ends": np.array([], np.int64)}, "cut short"),
        ({"meta/episode_ends": np.array([32, 12])}, "cut short"),
        ({"data/action": np.full((32, 10), np.nan, np.float32)}, "NaN"),
    ],
)
def test_damaged_data_is_named(tmp_path, small_contract, changes, named):
    path = write_replay(tmp_path / "bad.zarr", small_contract, [12, 20], **changes)
    with pytest.raises(DatasetError, match=named.replace("(", r"\(").replace(")", r"\)")):
        WindowDataset(path)


def test_a_missing_or_foreign_directory_is_named(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        WindowDataset(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DatasetError, match="not a zarr"):
        WindowDataset(tmp_path / "empty.zarr")
    zarr.open_group(str(tmp_path / "foreign.zarr"), mode="w")
    with pytest.raises(DatasetError, match="contract"):
        WindowDataset(tmp_path / "foreign.zarr")


def test_too_few_windows_for_a_batch(replay):
    with pytest.raises(DatasetError, match="18 windows"):
        next(WindowDataset(replay).batches(19, 0, seed=0))
