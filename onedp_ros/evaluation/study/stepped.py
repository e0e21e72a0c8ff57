"""Rounds of a study in simulated time: the simulation continues for a given latency while the policy predicts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onedp_ros.evaluation.figures import write_video
from onedp_ros.evaluation.rollout import loaded, rollout
from onedp_ros.evaluation.study.series import Series
from onedp_ros.parallel import Workers, kept
from onedp_ros.tasks.timed_drive import Timing

KEPT_FRAMES, VIDEO_FPS = 3, 10  # as in the live rounds


class Frames:
    """A writer for :meth:`~onedp_ros.twin.stepped.SteppedCell.record` that keeps some frames of each camera, (stamp ns, image)."""

    def __init__(self, cameras: Sequence[str]) -> None:
        self._seen = dict.fromkeys(cameras, 0)
        self.images: dict[str, list[tuple[int, NDArray[np.uint8]]]] = {camera: [] for camera in cameras}

    def add_image(self, camera: str, stamp: int, image: NDArray[np.uint8]) -> None:
        """Keep one of :data:`KEPT_FRAMES` images."""
        if self._seen[camera] % KEPT_FRAMES == 0:
            self.images[camera].append((stamp, image))
        self._seen[camera] += 1

    def add_joint_state(self, *_: Any) -> None:
        """Not kept."""

    def add_pose(self, *_: Any) -> None:
        """Not kept."""


def stepped_rounds(
    series: Series, numbers: Sequence[int], *, engine: str, workers: Workers, videos: Path
) -> Iterator[dict[str, Any]]:
    """Run the rounds on the workers, and yield the record of each, in order.

    Args:
        numbers, engine, videos: see :func:`~onedp_ros.evaluation.study.live.live_rounds`.
        workers: processes on this machine.

    Raises:
        WorkerError: see :class:`~onedp_ros.parallel.Workers`.
    """
    calls = [(series, number, engine, videos / f"{number:03}.mp4") for number in numbers]
    return workers.run(_round, calls, [f"{series.name}, round {number + 1}" for number in numbers])


def _round(series: Series, number: int, engine: str, video: Path) -> dict[str, Any]:
    predictor, environment = kept(loaded, series.model, series.digests, series.method, engine, {}, series.contract)
    record, begin = series.begin_record(number), time.monotonic()
    predictor.reset(0)  # the seed of the noise, as live
    frames, timing = Frames(list(series.contract.cameras)), Timing(series.latency)
    episode = rollout(predictor, environment, record["seed"], 1, series.max_time, timing=timing, writer=frames)
    if not episode.success and frames.images and all(len(images) > 1 for images in frames.images.values()):
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(frames.images, video, fps=VIDEO_FPS)
    return {
        **record,
        "success": episode.success,
        "time_s": round(episode.time, 3),
        "failure": episode.failure,
        **{key: getattr(predictor, key) for key in ("engine", "network", "nfe")},
        "inference_ms_p50": round(episode.inference_ms, 2),
        "latency_s": round(timing.seconds(predictor.nfe, 1e-3 * episode.inference_ms), 4),
        "wall_s": round(time.monotonic() - begin, 1),
    }
