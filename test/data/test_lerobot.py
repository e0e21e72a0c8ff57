"""LeRobot v3.0: what is written, frame by frame, and read back, also what others wrote."""

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from onedp_ros.contract import Camera, Contract, ContractError, task_contract
from onedp_ros.data.convert import ConvertError, convert
from onedp_ros.data.episodes import SourceError
from onedp_ros.data.formats import lerobot
from onedp_ros.geometry import gripper_down

LENGTHS = [33, 20, 47]


@pytest.fixture
def contract(contract: Contract) -> Contract:
    cameras = {"wrist": Camera("wrist/image", 48, 64), "front": Camera("front/image", 36, 48)}
    return Contract.from_dict(
        {**contract.to_dict(), "cameras": {n: vars(c) for n, c in cameras.items()}, "crop": [32, 40], "control_hz": 30.0}
    )


def image(camera: str, index: int, contract: Contract) -> np.ndarray:
    """An image with its number in it, by grey blocks that stand for bits, and the camera's own colour."""
    size = contract.cameras[camera]
    picture = np.full((size.height, size.width, 3), (200, 60, 60) if camera == "wrist" else (60, 60, 200), np.uint8)
    side = size.height // 3
    for bit in range(8):
        row, column = divmod(bit, 4)
        picture[row * side : (row + 1) * side, column * side : (column + 1) * side] = 230 if index >> bit & 1 else 20
    return picture


def number(picture: np.ndarray) -> int:
    """Inverse of :func:`image`."""
    side = picture.shape[0] // 3
    middle = [(divmod(bit, 4)[0] * side + side // 2, divmod(bit, 4)[1] * side + side // 2) for bit in range(8)]
    return sum(int(picture[row, column].mean() > 128) << bit for bit, (row, column) in enumerate(middle))


def vectors(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States (N, 9) and actions (N, 10) of an arm that turns and rises."""
    turns = [gripper_down(0.01 * i) for i in range(steps)]
    arm = task_contract("pnp_milk").arm
    state = np.stack([arm.encode_state(np.array([0.4, 0.001 * i, 0.2]), q, (0.04, 0.03)) for i, q in enumerate(turns)])
    return state, np.stack([arm.encode_action(np.array([0.4, 0.001 * i, 0.1]), q, 0.08) for i, q in enumerate(turns)])


@pytest.fixture
def buffer(tmp_path: Path, contract: Contract) -> Path:
    """A replay buffer whose images hold their index."""
    path = tmp_path / "buffer.zarr"
    root = zarr.open_group(str(path), mode="w")
    state, action = vectors(sum(LENGTHS))
    data, meta = root.require_group("data"), root.require_group("meta")
    arrays: dict[str, Any] = {"state": state, "action": action}
    arrays |= {camera: np.stack([image(camera, i, contract) for i in range(sum(LENGTHS))]) for camera in contract.cameras}
    for group, name, values in [(data, n, a) for n, a in arrays.items()] + [(meta, "episode_ends", np.cumsum(LENGTHS))]:
        array = group.zeros(name=name, shape=values.shape, dtype=values.dtype)
        array[:] = values
    root.attrs.update({"contract": contract.to_dict(), "episodes": [{"bag": "x", "steps": n, "seed": n} for n in LENGTHS]})
    return path


def video_frames(file: Path, height: int, width: int) -> tuple[np.ndarray, list[float]]:
    """All images of a video and their times, s."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(file)]
    raw = subprocess.run([*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], stdout=subprocess.PIPE, check=True).stdout
    text = subprocess.run([*ffmpeg, "-c", "copy", "-f", "framecrc", "-"], stdout=subprocess.PIPE, check=True, text=True).stdout
    lines = text.splitlines()
    (base,) = [line.split(":")[1].split("/") for line in lines if line.startswith("#tb")]
    times = [int(line.split(",")[2]) * int(base[0]) / int(base[1]) for line in lines if not line.startswith("#")]
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3), times


def test_layout_is_lerobots(buffer: Path, contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = convert([buffer], out, format="lerobot", workers=2, progress=False)
    assert (report.episodes, report.steps) == (3, 100)
    cameras = [f"observation.images.{camera}" for camera in contract.cameras]
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {
        *(
            f"meta/{name}"
            for name in ("info.json", "stats.json", "tasks.parquet", "episodes/chunk-000/file-000.parquet", "onedp.json")
        ),
        "data/chunk-000/file-000.parquet",
        *(f"videos/{key}/chunk-000/file-000.mp4" for key in cameras),
    }
    info = json.loads((out / "meta/info.json").read_text())
    assert {k: info[k] for k in ("codebase_version", "fps", "total_episodes", "total_frames", "total_tasks", "splits")} == {
        "codebase_version": "v3.0",
        "fps": 30,
        "total_episodes": 3,
        "total_frames": 100,
        "total_tasks": 1,
        "splits": {"train": "0:3"},
    }
    counters = ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert set(info["features"]) == {"observation.state", "action", *cameras, *counters}
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [9], "names": list(contract.state_names)}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [10], "names": list(contract.action_names)}
    wrist = info["features"]["observation.images.wrist"]
    assert (wrist["dtype"], wrist["shape"], wrist["names"]) == ("video", [48, 64, 3], ["height", "width", "channels"])
    assert Contract.from_dict(json.loads((out / "meta/onedp.json").read_text())["contract"]) == contract

    table = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert table.schema.field("action").type == pa.list_(pa.float32(), 10)
    state, action = vectors(100)
    np.testing.assert_array_equal(np.array(table["observation.state"].to_pylist(), np.float32), state)
    np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), action)
    assert table["index"].to_pylist() == list(range(100))
    assert table["episode_index"].to_pylist() == [0] * 33 + [1] * 20 + [2] * 47
    frames = [*range(33), *range(20), *range(47)]
    assert table["frame_index"].to_pylist() == frames
    np.testing.assert_array_equal(table["timestamp"].to_numpy(), (np.array(frames) / 30).astype(np.float32))

    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["episode_index"], r["length"], r["tasks"]) for r in rows] == [(i, n, ["pnp_milk"]) for i, n in enumerate(LENGTHS)]
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 33), (33, 53), (53, 100)]
    tasks = pq.read_table(out / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["pnp_milk"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_the_data(buffer: Path, contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert([buffer], out, format="lerobot", workers=1, progress=False)
    state, action = vectors(100)
    pictures = np.stack([image("wrist", i, contract) for i in range(100)]) / 255.0
    stats = json.loads((out / "meta/stats.json").read_text())
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    of_second = {k.removeprefix("stats/"): v for k, v in rows[1].items() if k.startswith("stats/")}
    second = {name: {k.split("/")[1]: v for k, v in of_second.items() if k.split("/")[0] == name} for name in stats}
    for found, part in ((stats, slice(0, 100)), (second, slice(33, 53))):
        for name, values in (("observation.state", state[part]), ("action", action[part])):
            assert found[name]["count"] == [len(values)]
            for key, expected in (("min", values.min(0)), ("max", values.max(0)), ("mean", values.mean(0)), ("std", values.std(0))):
                np.testing.assert_allclose(found[name][key], expected, atol=1e-6)
            np.testing.assert_allclose(found[name]["q90"], np.quantile(values, 0.9, axis=0), atol=1e-6)
        colours = found["observation.images.wrist"]
        values = pictures[part]
        assert np.shape(colours["mean"]) == (3, 1, 1)
        for key, expected in (("min", values.min((0, 1, 2))), ("max", values.max((0, 1, 2))), ("mean", values.mean((0, 1, 2)))):
            np.testing.assert_allclose(np.ravel(colours[key]), expected, atol=1e-9)
        np.testing.assert_allclose(np.ravel(colours["std"]), values.std((0, 1, 2)), atol=1e-9)
        np.testing.assert_allclose(np.ravel(colours["q50"]), np.median(values, (0, 1, 2)), atol=1e-9)


@pytest.mark.parametrize("seconds", [500.0, 2.0])
def test_each_step_finds_its_frame_at_its_time(
    buffer: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(lerobot, "VIDEO_TIME", seconds)
    out = tmp_path / "out"
    convert([buffer], out, format="lerobot", workers=1, progress=False)
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for camera, size in contract.cameras.items():
        place = f"videos/observation.images.{camera}"
        assert [row[f"{place}/file_index"] for row in rows] == ([0, 0, 0] if seconds > 2 else [0, 0, 1])
        for row in rows:
            file = out / place / "chunk-000" / f"file-{row[f'{place}/file_index']:03d}.mp4"
            frames, times = video_frames(file, size.height, size.width)
            np.testing.assert_allclose(times, np.arange(len(frames)) / 30, atol=1e-6)
            first, last = row[f"{place}/from_timestamp"], row[f"{place}/to_timestamp"]
            assert last - first == pytest.approx(row["length"] / 30)
            for step in range(row["length"]):
                index = row["dataset_from_index"] + step
                at = int(np.argmin(np.abs(np.array(times) - (first + step / 30))))
                assert number(frames[at]) == index
                assert np.abs(frames[at].astype(int) - image(camera, index, contract)).mean() < 6


def test_what_is_written_is_read_back(buffer: Path, contract: Contract, tmp_path: Path) -> None:
    convert([buffer], tmp_path / "there", format="lerobot", workers=1, progress=False)
    convert([tmp_path / "there"], tmp_path / "back.zarr", workers=1, progress=False)
    root, original = (zarr.open_group(str(p), mode="r") for p in (tmp_path / "back.zarr", buffer))
    for name in ("state", "action"):
        np.testing.assert_array_equal(root[f"data/{name}"][:], original[f"data/{name}"][:])
    assert root["meta/episode_ends"][:].tolist() == [33, 53, 100]
    for camera in contract.cameras:
        frames = root[f"data/{camera}"][:]
        assert [number(frame) for frame in frames] == list(range(100))
        assert np.abs(frames.astype(int) - original[f"data/{camera}"][:]).mean() < 3
    assert [e["seed"] for e in root.attrs["episodes"]] == LENGTHS
    assert Contract.from_dict(dict(root.attrs["contract"])) == contract


@pytest.fixture
def foreign(tmp_path: Path, contract: Contract) -> Path:
    """A data set as LeRobot records it: AV1 videos, larger images, one camera as images in the rows, no contract of ours."""
    path = tmp_path / "foreign"
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", "videos/observation.images.wrist/chunk-000"):
        (path / folder).mkdir(parents=True)
    steps = sum(LENGTHS)
    frames = np.stack([cv2.resize(image("wrist", i, contract), (128, 96), interpolation=cv2.INTER_NEAREST) for i in range(steps)])
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "30"]
    coding = ["-c:v", "libsvtav1", "-g", "2", "-crf", "20", "-preset", "12", "-pix_fmt", "yuv420p"]
    video = path / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    subprocess.run([*ffmpeg, "-i", "-", *coding, str(video)], input=frames.tobytes(), check=True, stderr=subprocess.PIPE)
    state, action = vectors(steps)
    pictures = [
        {"bytes": cv2.imencode(".png", image("front", i, contract)[..., ::-1])[1].tobytes(), "path": None} for i in range(steps)
    ]
    columns = {
        "observation.state": state.tolist(),
        "action": action.tolist(),
        "observation.images.front": pictures,
        "frame_index": [i for n in LENGTHS for i in range(n)],
        "episode_index": [e for e, n in enumerate(LENGTHS) for _ in range(n)],
    }
    pq.write_table(pa.table(columns), path / "data/chunk-000/file-000.parquet")
    begins = np.cumsum([0, *LENGTHS[:-1]]).tolist()
    rows = [
        {"episode_index": e, "length": n, "data/chunk_index": 0, "data/file_index": 0}
        | {f"videos/observation.images.wrist/{k}": 0 for k in ("chunk_index", "file_index")}
        | {f"videos/observation.images.wrist/{k}": t / 30 for k, t in (("from_timestamp", b), ("to_timestamp", b + n))}
        for e, (n, b) in enumerate(zip(LENGTHS, begins, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    features = {
        "observation.state": {"dtype": "float32", "shape": [9], "names": list(contract.state_names)},
        "action": {"dtype": "float32", "shape": [10], "names": list(contract.action_names)},
        "observation.images.wrist": {"dtype": "video", "shape": [3, 96, 128], "names": ["channels", "height", "width"]},
        "observation.images.front": {"dtype": "image", "shape": [36, 48, 3], "names": ["height", "width", "channels"]},
    }
    info = {"codebase_version": "v3.0", "fps": 30, "features": features, "data_path": lerobot._DATA, "video_path": lerobot._VIDEO}
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def test_data_set_of_another_recorder_is_read(foreign: Path, contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="give the task file with --task"):
        convert([foreign], tmp_path / "out.zarr", progress=False)
    convert([foreign], tmp_path / "out.zarr", contract, workers=1, progress=False)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert root["meta/episode_ends"][:].tolist() == [33, 53, 100]
    np.testing.assert_array_equal(root["data/state"][:], vectors(100)[0])
    assert [number(frame) for frame in root["data/wrist"][:]] == list(range(100))
    assert root["data/wrist"].shape == (100, 48, 64, 3)
    np.testing.assert_array_equal(root["data/front"][:], [image("front", i, contract) for i in range(100)])


def change(path: Path, **changes: Any) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({**info, **changes, "features": {**info["features"], **changes.get("features", {})}}))


def test_what_cannot_be_mapped_is_named(foreign: Path, contract: Contract, tmp_path: Path) -> None:
    def reading(**changes: Any) -> None:
        change(foreign, **changes)
        convert([foreign], tmp_path / "out.zarr", contract, workers=1, progress=False)

    joints = {"dtype": "float32", "shape": [7], "names": [f"joint{i}" for i in range(7)]}
    with pytest.raises(ConvertError, match=r"the feature observation.state is \['joint0', .*, expected \['position.x'"):
        reading(features={"observation.state": joints})
    with pytest.raises(SourceError, match=r"is of LeRobot's version v2.1, expected v3.0; convert it"):
        reading(codebase_version="v2.1")
    state = {"dtype": "float32", "shape": [9], "names": list(contract.state_names)}
    change(foreign, codebase_version="v3.0", features={"observation.state": state})
    more = Contract.from_dict({**contract.to_dict(), "cameras": {"top": {"topic": "top", "height": 36, "width": 48}}})
    with pytest.raises(ConvertError, match=r"lacks the feature observation.images.top, it has \['observation.images.front'"):
        convert([foreign], tmp_path / "out.zarr", more, workers=1, progress=False)
    with pytest.raises(ConvertError, match="was recorded at 10 Hz, expected 30 Hz or more; set control_hz"):
        reading(fps=10)
    info = json.loads((foreign / "meta/info.json").read_text())
    del info["features"]["action"]
    (foreign / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(SourceError, match="the feature action is missing"):
        convert([foreign], tmp_path / "out.zarr", contract, progress=False)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_path": "../../etc/{chunk_index}"}, "leads out of the data set"),
        ({"data_path": "/etc/passwd"}, "leads out of the data set"),
        ({"data_path": "{chunk_index:>999999999}"}, "is not LeRobot's"),
        ({"data_path": "{chunk_index.__class__}"}, "is not LeRobot's"),
        ({"video_path": "../{video_key}.mp4"}, "leads out of the data set"),
        ({"fps": "30"}, "fps is '30', expected a number"),
    ],
)
def test_paths_in_a_data_set_stay_in_it(foreign: Path, contract: Contract, changes: dict[str, Any], named: str) -> None:
    change(foreign, **changes)
    with pytest.raises(SourceError, match=named):
        read_whole(foreign, contract)


def read_whole(path: Path, contract: Contract) -> None:
    for source in lerobot.sources(path):
        episodes, _ = source.read(contract)
        for images in episodes[0].images.values():
            assert len(list(images))


def test_what_a_data_set_says_of_a_video_is_no_command_of_ffmpeg(foreign: Path, contract: Contract, tmp_path: Path) -> None:
    wrist = {"dtype": "video", "names": ["channels", "height", "width"]}
    change(foreign, features={"observation.images.wrist": {**wrist, "shape": [3, "96,movie=/etc/hosts", 128]}})
    with pytest.raises(SourceError, match=r"wrist is 128x'96,movie=/etc/hosts', expected numbers of pixels"):
        read_whole(foreign, contract)
    change(foreign, features={"observation.images.wrist": {**wrist, "shape": [3, 96, 128]}})
    read_whole(foreign, contract)
    video = foreign / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    video.rename(tmp_path / "elsewhere.mp4")
    video.write_text(f"#EXTM3U\n#EXTINF:9,\n{tmp_path / 'elsewhere.mp4'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError, match="ffmpeg exited with"):
        read_whole(foreign, contract)


def test_truncated_video_and_rows_skip_their_episodes(foreign: Path, contract: Contract, tmp_path: Path) -> None:
    video = foreign / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(video)]
    subprocess.run([*ffmpeg, "-c", "copy", "-frames:v", "60", str(tmp_path / "short.mp4")], check=True)
    video.write_bytes((tmp_path / "short.mp4").read_bytes())
    report = convert([foreign], tmp_path / "out.zarr", contract, workers=1, progress=False)
    assert report.episodes == 2
    assert "has 7 frames after 1.750 s, expected 47" in report.skipped[f"{foreign}/episode_2"]
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvertError, match="episode_0 cannot be read"):
        convert([foreign], tmp_path / "none.zarr", contract, workers=1, progress=False)


@pytest.mark.parametrize(
    ("limit", "named"), [("_MAX_EPISODES", "episodes, expected 1 at most"), ("_MAX_ROWS", "rows, expected 1 at most")]
)
def test_rows_are_counted_before_they_are_read(
    foreign: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch, limit: str, named: str
) -> None:
    monkeypatch.setattr(lerobot, limit, 1)
    with pytest.raises(SourceError, match=named):
        read_whole(foreign, contract)


def test_contracts_that_lerobot_cannot_express_are_refused(buffer: Path, contract: Contract, tmp_path: Path) -> None:
    odd = Contract.from_dict({**contract.to_dict(), "cameras": {"wrist": {"topic": "w", "height": 45, "width": 60}}})
    with pytest.raises(ContractError, match="the wrist camera's image is 60x45, a video needs even numbers; write zarr"):
        lerobot.check(odd)
    with pytest.raises(ContractError, match=r"control_hz is 12.5, LeRobot expects a whole number; write zarr"):
        lerobot.check(Contract.from_dict({**contract.to_dict(), "control_hz": 12.5}))
