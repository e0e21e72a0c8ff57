"""Data sets of robomimic and Diffusion Policy, in their published layouts, become episodes of the contract."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from scipy.spatial.transform import Rotation

from onedp_ros.cli.convert import main
from onedp_ros.contract import Camera, Contract
from onedp_ros.data.convert import ConvertError, convert
from onedp_ros.data.episodes import SourceError
from onedp_ros.data.formats import robomimic
from onedp_ros.geometry import rotation_angle

ABOVE = np.array([0.0, 0.0, 0.02])  # m, where the commands lie beside the arm
TURN = Rotation.from_rotvec([0, 0, 0.1])
TASK = Path(__file__).with_name("robomimic_lift.yaml")


@pytest.fixture
def lift() -> Contract:
    return Contract.from_yaml(TASK)


def picture(demo: int, step: int, side: int = 84) -> np.ndarray:
    return np.random.default_rng([demo, step]).integers(0, 255, (side, side, 3), dtype=np.uint8)


def poses(demo: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 3) and quaternions (T, 4) of a tool that points down and turns past where q becomes -q."""
    position = np.array([0.0, 0.1 * demo, 1.0]) + 0.01 * np.arange(steps)[:, None]
    turns = (3.0 + 0.02 * np.arange(steps))[:, None] * [0, 0, 1]
    return position, (Rotation.from_rotvec(turns) * Rotation.from_rotvec([np.pi, 0, 0])).as_quat()


def write_demo(group: Any, demo: int, steps: int, delta: bool = False) -> None:
    position, quaternion = poses(demo, steps)
    target = Rotation.from_quat(quaternion) * TURN
    values = {
        "actions": np.concatenate([position + ABOVE, target.as_rotvec(), np.where(np.arange(steps) < 5, -1, 1)[:, None]], 1),
        "obs/robot0_eef_pos": position,
        "obs/robot0_eef_quat": quaternion,
        "obs/robot0_gripper_qpos": np.tile([0.04, -0.03], (steps, 1)),
        "obs/agentview_image": np.stack([picture(demo, i) for i in range(steps)]),
        "obs/robot0_eye_in_hand_image": np.stack([picture(100 + demo, i) for i in range(steps)]),
        "next_obs/robot0_eef_pos": position,
        "rewards": np.zeros(steps),
        "dones": np.zeros(steps, dtype=np.int64),
        "states": np.zeros((steps, 32)),
    }
    if delta:
        values["actions"][:, :6] = np.random.default_rng(demo).uniform(-0.3, 0.3, (steps, 6))
    for name, array in values.items():
        group.create_dataset(name, data=array)
    group.attrs["num_samples"] = steps
    group.attrs["model_file"] = "<mujoco/>"


def write_file(path: Path, lengths: dict[int, int], hz: int = 20, **options: Any) -> Path:
    """A file as robomimic's dataset_states_to_obs.py writes it; its groups are in the order of the alphabet."""
    controller = {"type": "OSC_POSE", "control_delta": True, "input_max": 1, "input_min": -1}
    arguments = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": hz, "controller_configs": controller}}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(arguments)
        data.attrs["total"] = sum(lengths.values())
        for demo, steps in lengths.items():
            write_demo(data.create_group(f"demo_{demo}"), demo, steps, **options)
        file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    return path


def test_robomimic_demonstrations_become_episodes_by_their_numbers(
    lift: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path / "image_abs.hdf5", {0: 12, 10: 8, 2: 9})
    assert main([str(file), "--out", str(tmp_path / "out.zarr"), "--task", str(TASK), "--workers", "2"]) == 2
    assert "degrees of the seam of the state's quaternion" in capsys.readouterr().err  # its hand turns all the way round
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert root["meta/episode_ends"][:].tolist() == [12, 21, 29]
    assert [e["bag"] for e in root.attrs["episodes"]] == [
        "image_abs.hdf5/demo_0",
        "image_abs.hdf5/demo_2",
        "image_abs.hdf5/demo_10",
    ]
    begin = 0
    for demo, steps in ((0, 12), (2, 9), (10, 8)):
        rows = slice(begin, begin + steps)
        position, quaternion = poses(demo, steps)
        state = root["data/state"][rows]
        np.testing.assert_allclose(state[:, :3], position, atol=1e-6)
        assert (state[:, 3] >= 0).all()
        for row, q in zip(state, quaternion, strict=True):
            assert rotation_angle(row[3:7], q) < 1e-3
        np.testing.assert_allclose(state[:, 7:], np.tile([0.04, 0.03], (steps, 1)), atol=1e-6)
        target, orientation, opening = lift.arm.decode_action(root["data/action"][rows])
        np.testing.assert_allclose(target, position + ABOVE, atol=1e-6)
        for found, q in zip(orientation, quaternion, strict=True):
            assert rotation_angle(found, (Rotation.from_quat(q) * TURN).as_quat()) < 1e-3
        np.testing.assert_allclose(opening, np.where(np.arange(steps) < 5, 0.08, 0.0), atol=1e-6)
        np.testing.assert_array_equal(root["data/agentview"][rows], [picture(demo, i) for i in range(steps)])
        np.testing.assert_array_equal(root["data/robot0_eye_in_hand"][rows], [picture(100 + demo, i) for i in range(steps)])
        begin += steps


def test_cameras_may_be_named_as_the_images_are(lift: Contract, tmp_path: Path) -> None:
    file = write_file(tmp_path / "demo.hdf5", {0: 12})
    named = Contract.from_dict({**lift.to_dict(), "cameras": {"agentview_image": vars(lift.cameras["agentview"])}})
    convert([file], tmp_path / "out.zarr", named, workers=1, progress=False)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    np.testing.assert_array_equal(root["data/agentview_image"][:], [picture(0, i) for i in range(12)])


def test_delta_actions_are_refused_unless_the_absolute_ones_are_there(lift: Contract, tmp_path: Path) -> None:
    file = write_file(tmp_path / "image.hdf5", {0: 12, 1: 12}, delta=True)
    with pytest.raises(
        ConvertError, match=r"demo_1: actions lie .* m from the end effector, they are deltas or .* make them absolute"
    ):
        convert([file], tmp_path / "out.zarr", lift, workers=1, progress=False)
    with h5py.File(file, "r+") as data:
        for demo in (0, 1):
            position, quaternion = poses(demo, 12)
            actions = np.concatenate([position, Rotation.from_quat(quaternion).as_rotvec(), np.ones((12, 1))], 1)
            data[f"data/demo_{demo}"].create_dataset("actions_abs", data=actions)
    report = convert([file], tmp_path / "out.zarr", lift, workers=1, progress=False)
    assert report.episodes == 2
    action = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["data/action"][:]
    np.testing.assert_allclose(action[:12, :3], poses(0, 12)[0], atol=1e-6)


def test_robomimic_at_twice_the_rate_is_taken_every_second_step_and_a_slower_one_refused(lift: Contract, tmp_path: Path) -> None:
    report = convert([write_file(tmp_path / "fast.hdf5", {0: 21}, hz=40)], tmp_path / "o.zarr", lift, workers=1, progress=False)
    assert report.steps == 11
    frames = zarr.open_group(str(tmp_path / "o.zarr"), mode="r")["data/agentview"][:]
    np.testing.assert_array_equal(frames, [picture(0, i) for i in range(0, 21, 2)])
    with pytest.raises(ConvertError, match="recorded at 10 Hz, expected 20 Hz or more; set control_hz in the task file"):
        convert([write_file(tmp_path / "slow.hdf5", {0: 21}, hz=10)], tmp_path / "p.zarr", lift, workers=1, progress=False)


def test_what_robomimic_lacks_is_named(lift: Contract, tmp_path: Path) -> None:
    file = write_file(tmp_path / "demo.hdf5", {0: 12})

    def reason(contract: Contract = lift) -> str:
        with pytest.raises(ConvertError) as error:
            convert([file], tmp_path / "out.zarr", contract, workers=1, progress=False)
        return str(error.value)

    large = Camera("agentview", 128, 128)
    assert "agentview: image is 84x84, expected 128x128" in reason(
        Contract.from_dict({**lift.to_dict(), "cameras": {"agentview": vars(large)}})
    )
    side = Contract.from_dict({**lift.to_dict(), "cameras": {"sideview": vars(lift.cameras["agentview"])}})
    assert "lacks obs/sideview_image, it has ['agentview_image', 'robot0_eye_in_hand_image']" in reason(side)
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/obs/robot0_eef_quat"]
    assert "lacks obs/robot0_eef_quat; make the observations with robomimic's dataset_states_to_obs.py" in reason()
    with h5py.File(tmp_path / "other.hdf5", "w") as data:
        data.create_group("episodes")
    with pytest.raises(SourceError, match="is not robomimic's"):
        convert([tmp_path / "other.hdf5"], tmp_path / "out.zarr", lift, progress=False)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SourceError, match="truncated or not an HDF5 file"):
        convert([file], tmp_path / "out.zarr", lift, progress=False)


def test_robomimic_data_in_other_files_or_of_nothing_are_refused(lift: Contract, tmp_path: Path) -> None:
    def refused(named: str) -> None:
        with pytest.raises(SourceError, match=named):
            robomimic.sources(file)[0].read(lift)

    file = write_file(tmp_path / "demo.hdf5", {0: 12})
    (tmp_path / "raw").write_bytes(bytes(12 * 7 * 8))
    with h5py.File(file, "r+") as data:
        demo = data["data/demo_0"]
        demo.move("actions", "kept")
        demo["actions"] = h5py.ExternalLink(str(tmp_path / "demo.hdf5"), "data/demo_0/kept")
    refused("actions is a link; copy into its place what it leads to")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"].create_dataset("actions", (12, 7), "f8", external=[(str(tmp_path / "raw"), 0, 12 * 7 * 8)])
    refused("actions is stored in another file")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"].create_dataset("actions", (10**9, 7), "f8", chunks=(1000, 7))
    refused(r"actions \(1000000000, 7\) has 56000000000 bytes, but only 0 are on the disk")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"]["actions"] = ["text"] * 12
    refused("actions does not hold numbers")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"].create_dataset("actions", (12, 7), "f8", chunks=(2**21, 7), maxshape=(None, 7), compression="gzip")
    refused(r"actions has chunks of the shape \(2097152, 7\), too large")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"]["actions"] = np.full((12, 7), np.nan)
    refused("actions holds values that are not finite")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0/actions"]
        data["data/demo_0"].move("kept", "actions")
        data["data/demo_0/obs"].move("agentview_image", "kept")
        data["data/demo_0/obs"].create_dataset("agentview_image", (2**40, 0, 0, 3), "u1", maxshape=(None, None, None, 3))
    refused(r"obs/agentview_image has the shape")
    with h5py.File(file, "r+") as data:
        data.move("data/demo_0/obs", "elsewhere")
        data["data/demo_0/obs"] = h5py.SoftLink("/elsewhere")
    refused("obs/robot0_eef_pos is a link")
    with h5py.File(file, "r+") as data:
        del data["data/demo_0"]
        data["data/demo_0"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/data/demo_0")
    refused("data/demo_0 is a link")
    with h5py.File(file, "r+") as data:
        attributes = dict(data["data"].attrs)
        del data["data"]
        data.create_dataset("data", (2**40,), "u1", chunks=(2**20,)).attrs.update(attributes)
    refused("data is not a group")


# Diffusion Policy


def replay_buffer(path: Path, ends: list[int], zipped: bool = False, **arrays: np.ndarray) -> Path:
    """A store as Diffusion Policy's ReplayBuffer writes it: zarr format 2, chunks of one image."""
    store: Any = zarr.storage.ZipStore(str(path), mode="w") if zipped else str(path)
    version: dict[str, Any] = {"zarr_format": 2} if zarr.__version__ >= "3" else {}
    zarr.open_group(store, mode="w", **version)
    for group in ("data", "meta"):
        zarr.open_group(store, path=group, mode="a" if zipped else "w", **version)
    values = {f"data/{name}": array for name, array in arrays.items()} | {"meta/episode_ends": np.array(ends, dtype=np.int64)}
    for name, array in values.items():
        chunks = (1, *array.shape[1:]) if array.ndim > 2 else array.shape
        zarr.create(shape=array.shape, dtype=array.dtype, chunks=chunks, store=store, path=name, **version)[:] = array
    if zipped:
        store.close()
    return path


def real(steps: int, hz: float = 20.0) -> dict[str, np.ndarray]:
    """What Diffusion Policy's real robot records."""
    position, quaternion = poses(0, steps)
    pose = np.concatenate([position, Rotation.from_quat(quaternion).as_rotvec()], 1)
    return {
        "robot_eef_pose": pose,
        "action": np.concatenate([position + ABOVE, pose[:, 3:]], 1),
        "robot_joint": np.zeros((steps, 6)),
        "stage": np.zeros(steps, dtype=np.int64),
        "timestamp": 1.7e9 + np.arange(steps) / hz,
        "camera_0": np.stack([picture(0, i, 96) for i in range(steps)]),
        "camera_1": np.stack([picture(1, i, 96) for i in range(steps)]),
    }


@pytest.fixture
def real_contract(lift: Contract) -> Contract:
    cameras = {name: {"topic": name, "height": 96, "width": 96} for name in ("camera_1", "camera_0")}
    return Contract.from_dict({**lift.to_dict(), "cameras": cameras})


@pytest.mark.parametrize("zipped", [False, True])
def test_diffusion_policys_real_robot_is_read(real_contract: Contract, tmp_path: Path, zipped: bool) -> None:
    buffer = replay_buffer(tmp_path / ("replay_buffer.zarr" + ".zip" * zipped), [10, 24], zipped, **real(24))
    report = convert([buffer], tmp_path / "out.zarr", real_contract, workers=1, progress=False)
    assert (report.episodes, report.steps, report.gaps, report.dropped) == (2, 24, 0, {})
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    position, quaternion = poses(0, 24)
    state = root["data/state"][:]
    np.testing.assert_allclose(state[:, :3], position, atol=1e-6)
    assert all(rotation_angle(row[3:7], q) < 1e-3 for row, q in zip(state, quaternion, strict=True))
    assert not state[:, 7:].any()
    target, _, opening = real_contract.arm.decode_action(root["data/action"][:])
    np.testing.assert_allclose(target, position + ABOVE, atol=1e-6)
    assert not opening.any()
    for camera in (0, 1):
        np.testing.assert_array_equal(root[f"data/camera_{camera}"][:], [picture(camera, i, 96) for i in range(24)])


def test_a_gripper_of_diffusion_policys_real_robot_is_read_in_metres(real_contract: Contract, tmp_path: Path) -> None:
    fields = real(12)
    fields["action"] = np.concatenate([fields["action"], np.full((12, 1), 0.05)], 1)
    buffer = replay_buffer(tmp_path / "a.zarr", [12], **fields)
    with pytest.raises(ConvertError, match="lacks data/robot_gripper_width"):
        convert([buffer], tmp_path / "out.zarr", real_contract, workers=1, progress=False)
    buffer = replay_buffer(tmp_path / "b.zarr", [12], **fields, robot_gripper_width=np.full((12, 1), 0.06))
    convert([buffer], tmp_path / "out.zarr", real_contract, workers=1, progress=False)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    np.testing.assert_allclose(root["data/state"][:, 7:], 0.03, atol=1e-6)
    np.testing.assert_allclose(root["data/action"][:, 9], 0.05, atol=1e-6)
    fields["action"][:, 6] = np.where(np.arange(12) < 6, -1, 1)
    buffer = replay_buffer(tmp_path / "c.zarr", [12], **fields, robot_gripper_width=np.full((12, 1), 0.06))
    with pytest.raises(ConvertError, match="the seventh value of data/action spans -1 to 1, expected the gripper opening"):
        convert([buffer], tmp_path / "none.zarr", real_contract, workers=1, progress=False)


def test_steps_are_chosen_by_their_timestamps_and_a_gap_ends_an_episode(real_contract: Contract, tmp_path: Path) -> None:
    fields = real(40, hz=40.0)
    fields["timestamp"][21:] += 1.0
    report = convert(
        [replay_buffer(tmp_path / "a.zarr", [40], **fields)], tmp_path / "o.zarr", real_contract, workers=1, progress=False
    )
    (line,) = report.recordings
    assert (line["steps"], line["gaps"]) == ([11, 10], [pytest.approx(1.025)])
    frames = zarr.open_group(str(tmp_path / "o.zarr"), mode="r")["data/camera_0"][:]
    np.testing.assert_array_equal(frames, [picture(0, i, 96) for i in [*range(0, 21, 2), *range(21, 40, 2)]])


def test_stores_are_joined_and_damaged_episodes_named(contract: Contract, tmp_path: Path) -> None:
    """Replay buffers of this package, whole episodes and their notes, one after the other."""
    fields = {"state": np.tile(np.float32([0.4, 0, 0.3, -1, 0, 0, 0, 0.04, 0.04]), (30, 1))}
    fields["action"] = np.tile(np.float32([0.4, 0, 0.3, 1, 0, 0, 0, -1, 0, 0.08]), (30, 1))
    fields |= {name: np.zeros((30, c.height, c.width, 3), np.uint8) for name, c in contract.cameras.items()}
    first = replay_buffer(tmp_path / "first.zarr", [10, 30], **fields)
    zarr.open_group(str(first), mode="r+").attrs.update({"contract": contract.to_dict(), "episodes": [{"seed": 1}, {"seed": 2}]})
    fields["action"][4] = np.nan
    fields["state"][12, 3:7] = 0
    second = replay_buffer(tmp_path / "second.zarr", [10, 20, 30], **fields)
    report = convert([second, first], tmp_path / "out.zarr", workers=2, progress=False)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert root["meta/episode_ends"][:].tolist() == [10, 20, 40]
    assert [e.get("seed") for e in root.attrs["episodes"]] == [None, 1, 2]
    assert (root["data/state"][:, 3] == 1).all()
    assert "episode_0: action holds NaN" in report.skipped[f"{second}/episode_0"]
    assert "not a unit quaternion, its length is" in report.skipped[f"{second}/episode_1"]


def test_stores_of_other_layouts_are_refused_with_what_they_hold(real_contract: Contract, tmp_path: Path) -> None:
    pusht = replay_buffer(tmp_path / "pusht.zarr", [10], state=np.zeros((10, 5), np.float32), action=np.zeros((10, 2), np.float32))
    with pytest.raises(ConvertError, match=r"data/state has the shape \(10, 5\), expected \(N, 9\)"):
        convert([pusht], tmp_path / "out.zarr", real_contract, workers=1, progress=False)
    umi = replay_buffer(tmp_path / "umi.zarr", [10], action=np.zeros((10, 7)), robot0_eef_pos=np.zeros((10, 3)))
    with pytest.raises(SourceError, match=r"has the arrays \['action', 'robot0_eef_pos'\] in data/, expected action, and state"):
        convert([umi], tmp_path / "out.zarr", real_contract, progress=False)
    fields = real(10)
    del fields["camera_1"]
    with pytest.raises(ConvertError, match=r"lacks data/camera_1, it has \['action', 'camera_0'"):
        convert(
            [replay_buffer(tmp_path / "r.zarr", [10], **fields)], tmp_path / "out.zarr", real_contract, workers=1, progress=False
        )
    short = replay_buffer(tmp_path / "short.zarr", [10, 14], **real(12))
    report = convert([short], tmp_path / "out.zarr", real_contract, workers=1, progress=False)
    assert "timestamp ends at 12, before step 14" in report.skipped[f"{short}/episode_1"]
