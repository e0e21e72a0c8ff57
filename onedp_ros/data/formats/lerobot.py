"""LeRobot data sets of codebase version v3.0, written and read.

    meta/info.json, stats.json, tasks.parquet, episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet                       one row per step, all episodes
    videos/observation.images.<camera>/chunk-000/file-000.mp4 …   several episodes per file

``meta/onedp.json``, which LeRobot ignores, holds the contract and what was dropped, as the attributes of a replay buffer do.
Layout: https://github.com/huggingface/lerobot, src/lerobot/datasets.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onedp_ros.config import parse_json, read_bytes, read_json, shown
from onedp_ros.contract import MAX_HZ, MAX_PIXELS, NANOSECONDS, Contract, ContractError
from onedp_ros.data.episodes import Dropped, Episode, Piece, Run, Source, SourceError, on_grid
from onedp_ros.data.formats.video import ffmpeg
from onedp_ros.data.formats.zarr_reader import MAX_METADATA
from onedp_ros.data.frames import Images

VERSION = "v3.0"
CRF = 12  # of x264: the only visible loss is chroma subsampling
VIDEO_TIME = 500.0  # s per file; LeRobot locates frames by a float32 time, which is too coarse beyond 1024 s
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_CHUNK = 1000  # files per folder
_MAX_EPISODES, _MAX_ROWS = 100_000, 10_000_000  # per data set, per file: a few kilobytes can encode any number of equal rows
_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_VECTORS = ("observation.state", "action")
_COUNTERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def check(contract: Contract) -> None:
    """Raise ContractError for a contract that the format cannot express."""
    if contract.control_hz != round(contract.control_hz):
        raise ContractError(f"control_hz is {contract.control_hz}, LeRobot expects a whole number; write zarr instead")
    for name, camera in contract.cameras.items():
        if camera.height % 2 or camera.width % 2:
            raise ContractError(
                f"the {name} camera's image is {camera.width}x{camera.height}, a video needs even numbers; write zarr instead"
            )


def encode(images: Mapping[str, Images], contract: Contract, folder: Path) -> None:
    """Encode an episode's images by camera into ``folder``, for :func:`assemble`."""
    for name, frames in images.items():
        camera = contract.cameras[name]
        counts = np.zeros((3, 256), dtype=np.int64)
        with ffmpeg(
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{camera.width}x{camera.height}", "-r", f"{contract.control_hz:g}"),
            *("-i", "-", "-vf", f"scale={_SCALE},format=yuv420p", "-c:v", "libx264", "-preset", "veryfast", "-crf", str(CRF)),
            # A key frame every second frame, like LeRobot: random access decodes at most two. No B-frames.
            *("-threads", "1", "-g", "2", "-bf", "0", str(folder / f"{name}.mp4")),
        ) as process:
            for frame in frames:
                process.stdin.write(np.ascontiguousarray(frame).data)
                counts += [np.bincount(frame[..., c].ravel(), minlength=256) for c in range(3)]
        np.save(folder / f"{name}.npy", counts)


def assemble(pieces: Sequence[Piece], contract: Contract, attributes: Mapping[str, Any], out: Path, run: Run) -> None:
    """Write episodes, in order, to the data set ``out``."""
    fps = round(contract.control_hz)
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (out / folder).mkdir(parents=True)
    videos = _video_files([len(piece.state) for piece in pieces], round(VIDEO_TIME * fps))
    jobs = []
    for camera in contract.cameras:
        for number in range(videos[-1][0] + 1):
            file = out / _VIDEO.format(video_key=_key(camera), chunk_index=number // _CHUNK, file_index=number % _CHUNK)
            file.parent.mkdir(parents=True, exist_ok=True)
            jobs.append(
                (file, [piece.folder / f"{camera}.mp4" for piece, (n, _) in zip(pieces, videos, strict=True) if n == number])
            )
    run(_join, jobs)

    rows: list[dict[str, Any]] = []
    every: dict[str, list[NDArray]] = {}
    colours = {camera: np.zeros((3, 256), dtype=np.int64) for camera in contract.cameras}
    begin = 0
    schema = pa.schema(_fields(contract))
    with pq.ParquetWriter(out / _DATA.format(chunk_index=0, file_index=0), schema) as writer:
        for index, (piece, (number, first)) in enumerate(zip(pieces, videos, strict=True)):
            steps = len(piece.state)
            columns = _columns(piece, index, begin, fps)
            writer.write_table(pa.table([_arrow(columns[field.name], field.type) for field in schema], schema=schema))
            row: dict[str, Any] = {"episode_index": index, "tasks": [contract.task], "length": steps}
            row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": begin, "dataset_to_index": begin + steps}
            statistics = {name: _statistics(values) for name, values in columns.items()}
            for camera in contract.cameras:
                counts = np.load(piece.folder / f"{camera}.npy")
                colours[camera] += counts
                statistics[_key(camera)] = _colour_statistics(counts, steps)
                place = f"videos/{_key(camera)}"
                row |= {f"{place}/chunk_index": number // _CHUNK, f"{place}/file_index": number % _CHUNK}
                row |= {f"{place}/from_timestamp": first / fps, f"{place}/to_timestamp": (first + steps) / fps}
            row |= {f"stats/{name}/{key}": value for name, found in statistics.items() for key, value in found.items()}
            rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
            for name, values in columns.items():
                every.setdefault(name, []).append(values)
            begin += steps
    pq.write_table(pa.Table.from_pylist(rows), out / _EPISODES)
    pq.write_table(_tasks([contract.task]), out / "meta/tasks.parquet")
    statistics = {name: _statistics(np.concatenate(values)) for name, values in every.items()}
    statistics |= {_key(camera): _colour_statistics(counts, begin) for camera, counts in colours.items()}
    _write_json(out / "meta/stats.json", statistics)
    _write_json(out / "meta/info.json", _info(contract, len(pieces), begin))
    _write_json(out / "meta/onedp.json", attributes)


def _names(contract: Contract) -> dict[str, list[str]]:
    """The names of each vector's values."""
    return dict(zip(_VECTORS, (list(contract.state_names), list(contract.action_names)), strict=True))


def _key(camera: str) -> str:
    return f"observation.images.{camera}"


def _video_files(lengths: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """For each episode of these lengths (frames): its video file's number and its first frame in it; a file holds ``capacity``."""
    places = []
    number = first = 0
    for length in lengths:
        if first and first + length > capacity:
            number, first = number + 1, 0
        places.append((number, first))
        first += length
    return places


def _join(out: Path, videos: Sequence[Path]) -> None:
    """Concatenate videos without re-encoding."""
    listing = out.with_suffix(".txt")
    listing.write_text("".join("file '" + str(video.resolve()).replace("'", r"'\''") + "'\n" for video in videos))
    with ffmpeg("-f", "concat", "-safe", "0", "-i", str(listing), "-c", "copy", "-movflags", "+faststart", str(out)):
        pass
    listing.unlink()


def _columns(piece: Piece, index: int, begin: int, fps: int) -> dict[str, NDArray]:
    """The columns of an episode: state, action, and LeRobot's counters (T, 1); ``begin``: number of steps before it."""
    frames = np.arange(len(piece.state), dtype=np.int64)[:, None]
    return {
        "observation.state": piece.state,
        "action": piece.action,
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full_like(frames, index),
        "index": begin + frames,
        "task_index": np.zeros_like(frames),
    }


def _fields(contract: Contract) -> list[tuple[str, pa.DataType]]:
    vectors = [(name, pa.list_(pa.float32(), len(names))) for name, names in _names(contract).items()]
    return [*vectors, *((name, pa.type_for_alias(kind)) for name, kind in _COUNTERS.items())]


def _arrow(values: NDArray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat


def _statistics(values: NDArray) -> dict[str, Any]:
    """LeRobot's normalisation statistics of rows (N, D), each (D,)."""
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0, np.float64), "std": values.std(0, np.float64)}
    quantiles = np.quantile(values, _QUANTILES, axis=0)
    found |= {f"q{round(100 * q):02d}": value for q, value in zip(_QUANTILES, quantiles, strict=True)}
    return {"count": [len(values)], **{name: value.tolist() for name, value in found.items()}}


def _colour_statistics(counts: NDArray[np.int64], frames: int) -> dict[str, Any]:
    """The same for images, as values 0..1, each (3, 1, 1), from histograms of the values 0..255 of each channel, (3, 256)."""
    values, total = np.arange(256) / 255.0, counts.sum(1)
    fraction = counts / total[:, None]
    mean = fraction @ values
    found = {
        "min": values[np.argmax(counts > 0, axis=1)],
        "max": values[255 - np.argmax(counts[:, ::-1] > 0, axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(fraction @ values**2 - mean**2, 0.0)),
    }
    rising = np.cumsum(counts, axis=1)
    for q in _QUANTILES:
        found[f"q{round(100 * q):02d}"] = values[np.argmax(rising >= q * total[:, None], axis=1)]
    return {"count": [frames], **{name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}}


def _tasks(tasks: Sequence[str]) -> pa.Table:
    """The table that pandas would write for a frame indexed by task, as LeRobot expects."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks)})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _info(contract: Contract, episodes: int, steps: int) -> dict[str, Any]:
    fps = round(contract.control_hz)
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [len(names)], "names": list(names)} for name, names in _names(contract).items()
    }
    for name, camera in contract.cameras.items():
        size = {"height": camera.height, "width": camera.width}
        video = {"codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False, "fps": fps, "channels": 3}
        features[_key(name)] = {
            "dtype": "video",
            "shape": [*size.values(), 3],
            "names": [*size, "channels"],
            "info": {**{f"video.{key}": value for key, value in (size | video).items()}, "has_audio": False},
        }
    features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _COUNTERS.items()}
    return {
        "codebase_version": VERSION,
        "robot_type": "franka",
        "total_episodes": episodes,
        "total_frames": steps,
        "total_tasks": 1,
        "chunks_size": _CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
    }


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def recognises(path: Path) -> bool:
    """Whether ``path`` is a LeRobot data set."""
    return (path / "meta" / "info.json").exists()


def sources(path: Path) -> list[Source]:
    """The episodes of a data set.

    Raises:
        SourceError: it is damaged, or of another version.
    """
    try:
        info = read_json(path / "meta/info.json", finite=False)
        version, features = info["codebase_version"], info["features"]
        if isinstance(info["fps"], bool) or not isinstance(info["fps"], (int, float)) or not 0 < info["fps"] <= MAX_HZ:
            raise SourceError(f"{path}: fps is {shown(info['fps'])}, expected a number up to {MAX_HZ:g}; correct meta/info.json")
        if not version.startswith("v3."):
            raise SourceError(f"{path} is of LeRobot's version {version}, expected {VERSION}; convert it with LeRobot's own script")
        if missing := [name for name in _VECTORS if not isinstance(features.get(name), dict)]:
            raise SourceError(f"{path}: the feature {missing[0]} is missing; rename or compute it with LeRobot")
        notes = path / "meta/onedp.json"
        ours = parse_json(read_bytes(notes, MAX_METADATA).decode(), str(notes), finite=False) if notes.exists() else {}
        files = sorted((path / "meta/episodes").glob("*/*.parquet"))
        columns = [name for name in pq.read_schema(files[0]).names if not name.startswith(("stats/", "tasks"))]
        if (rows := sum(pq.read_metadata(file).num_rows for file in files)) > _MAX_EPISODES:
            raise SourceError(f"{path} has {rows} episodes, expected {_MAX_EPISODES} at most; split it with LeRobot")
        episodes = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, pa.ArrowException) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} is damaged ({type(error).__name__}: {error}); copy or download it again") from error
    noted = ours.get("episodes")
    if not isinstance(noted, list) or len(noted) != len(episodes) or not all(isinstance(note, dict) for note in noted):
        noted = [{}] * len(episodes)
    contract = {"contract": ours["contract"]} if "contract" in ours else {}
    return [
        Source(path, f"{path}/episode_{row['episode_index']}", functools.partial(_read, path, info, row), {**note, **contract})
        for row, note in zip(episodes, noted, strict=True)
    ]


def _read(
    path: Path, info: dict[str, Any], row: dict[str, Any], contract: Contract, folder: Path | None = None
) -> tuple[list[Episode], Dropped]:
    index, steps = row["episode_index"], row["length"]
    name = f"{path}/episode_{index}"
    with _named(name):
        for vector, names in _names(contract).items():
            if (has := info["features"][vector].get("names")) != names:
                raise SourceError(
                    f"{path}: the feature {vector} is {has}, expected {names}; rename or compute it with LeRobot, poses in the "
                    f"base frame in m, or list the features it has in the task file"
                )
        file = _file(path, info["data_path"], chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        features = {camera: _camera(path, info, camera) for camera in contract.cameras}
        if (rows := pq.read_metadata(file).num_rows) > _MAX_ROWS:
            raise SourceError(f"{name}: {file} has {rows} rows, expected {_MAX_ROWS} at most; split the data set with LeRobot")
        table = pq.read_table(file, columns=[*_VECTORS, "frame_index"], filters=[("episode_index", "=", index)])
        frames = table["frame_index"].to_numpy()
        if len(frames) != steps or not np.array_equal(frames, np.arange(steps)):
            raise SourceError(f"{name}: {file} holds {len(frames)} steps of it, expected {steps}; copy or download it again")
        state, action = (np.array(table[key].to_pylist(), dtype=np.float32) for key in _VECTORS)

    def stream(camera: str) -> Iterator[NDArray[np.uint8]]:
        key, fit = _key(camera), contract.cameras[camera].fit
        with _named(name):
            if features[camera]["dtype"] == "video":
                yield from map(fit, _read_video(path, info, row, key))
                return
            for batch in pq.ParquetFile(file).iter_batches(32, columns=["episode_index", key]):
                pictures = batch.filter(pc.equal(batch["episode_index"], index))[key]
                yield from (fit(_decode(picture.as_py())) for picture in pictures)

    images = {camera: Images(functools.partial(stream, camera), np.arange(steps)) for camera in contract.cameras}
    stamps = np.round(frames * (NANOSECONDS / info["fps"])).astype(np.int64)
    return on_grid(name, Episode(stamps, images, state, action), contract)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn read errors into SourceError."""
    try:
        yield
    except SourceError:
        raise
    except (OSError, KeyError, ValueError, TypeError, cv2.error, pa.ArrowException) as error:
        raise SourceError(f"{name} cannot be read ({type(error).__name__}: {error}); copy or download it again") from error


def _file(path: Path, template: Any, **values: Any) -> Path:
    """A file of a data set, by the template in its info.json. SourceError if it is outside the data set."""
    if not isinstance(template, str) or not re.fullmatch(r"(?:[\w./-]|\{\w+(?::0?\d{1,2}d)?\})+", template, re.ASCII):
        raise SourceError(f"{path}: the path {shown(template)} in meta/info.json is not LeRobot's, expected one like {_DATA}")
    name = template.format(**values)
    if name.startswith("/") or ".." in Path(name).parts:
        raise SourceError(f"{path}: the path {shown(template)} in meta/info.json leads out of the data set; move its files into it")
    return path / name


def _camera(path: Path, info: dict[str, Any], camera: str) -> dict[str, Any]:
    if _key(camera) not in info["features"]:
        cameras = sorted(key for key in info["features"] if key.startswith(_key("")))
        raise SourceError(
            f"{path} lacks the feature {_key(camera)}, it has {cameras}; use these names for the cameras in the task file"
        )
    return info["features"][_key(camera)]


def _decode(picture: Mapping[str, bytes]) -> NDArray[np.uint8]:
    """Decode an image stored in a row, as an encoded file."""
    image = cv2.imdecode(np.frombuffer(picture["bytes"], np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _read_video(path: Path, info: dict[str, Any], row: dict[str, Any], key: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the images (H, W, 3) of an episode."""
    feature, place = info["features"][key], f"videos/{key}"
    size = dict(zip(feature["names"] or (), feature["shape"], strict=False))
    height, width = size["height"], size["width"]
    if not all(isinstance(side, int) and 0 < side <= MAX_PIXELS for side in (height, width)):  # they are also passed to ffmpeg
        raise SourceError(f"{path}: {key} is {shown(width)}x{shown(height)}, expected numbers of pixels; correct meta/info.json")
    chunk_index, file_index = row[f"{place}/chunk_index"], row[f"{place}/file_index"]
    file = _file(path, info["video_path"], video_key=key, chunk_index=chunk_index, file_index=file_index)
    begin = max(row[f"{place}/from_timestamp"] - 0.5 / info["fps"], 0.0)  # half a frame early, so that rounding does not matter
    count = 0
    with ffmpeg(
        # Only as MP4 and only from this file: ffmpeg would follow a playlist with this name to any address.
        *("-threads", "1", "-max_pixels", str(MAX_PIXELS**2), "-protocol_whitelist", "file", "-f", "mov"),
        *("-ss", f"{begin:.6f}", "-i", f"file:{file}", "-frames:v", str(row["length"]), "-fps_mode", "passthrough"),
        *("-vf", f"scale={width}:{height}:{_SCALE},format=rgb24", "-f", "rawvideo", "-"),
    ) as process:
        while len(data := process.stdout.read(height * width * 3)) == height * width * 3:
            count += 1
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if count != row["length"]:
        raise SourceError(f"{file} has {count} frames after {begin:.3f} s, expected {row['length']}; copy or download it again")
