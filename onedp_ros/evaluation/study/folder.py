"""A study's folder: what it was made with, and a file for each round that is done.

``study.json`` tells what the rounds were made with; ``rounds/<mode>/<task>/<method>/<number>.json`` is a round, and beside it lies
the video of one that failed. A file appears when its round is over, whole, so that a study that was killed at any moment goes on
with what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onedp_ros.config import ConfigError, read_json, shown
from onedp_ros.files import write_atomically
from onedp_ros.resources import resource

FORMAT = 1
SETTINGS = "study.json"
PACKAGES = ("mujoco", "numpy", "torch", "openvino")
PARTS = (  # of the package, which decide how a round goes
    *("contract", "control", "geometry.py", "messages", "nodes", "policy", "tasks", "twin"),
    *(
        "evaluation/live_episode.py",
        "evaluation/rollout.py",
        *(f"evaluation/study/{name}.py" for name in ("live", "starts", "stepped")),
    ),
)
GROWING = ("policies", "tasks")  # settings that further runs add to


def program() -> dict[str, Any]:
    """The versions that decide how a round goes: of packages, and a digest of this package's own parts and of the twin's arm."""
    root = Path(__file__).resolve().parents[2]
    files = [file for part in PARTS for file in ([root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py")))]
    digest = hashlib.sha256()
    for file in [*files, resource("config", "robot", "twin.yaml")]:
        digest.update(file.read_bytes())
    return {"program": digest.hexdigest()[:16], "packages": {name: _version(name) for name in ("onedp_ros", *PACKAGES)}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class StudyFolder:
    """The folder of a study that this process runs; nobody else may write to it meanwhile.

    Args:
        path: the folder; made when it is not there.
        settings: what the study is made with. Those in :data:`GROWING` are by name, and may be others than before.

    Raises:
        ConfigError: another process is writing to it, its files are damaged, or it was made with other settings; says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDONLY)
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        except BlockingIOError:
            told = f"{self.path}: another onedp study is running in it; wait for its end, or give another --out"
            raise ConfigError(told) from None
        ours = json.loads(json.dumps({"format": FORMAT, **settings}))  # as it is read again
        file = self.path / SETTINGS
        if file.exists():
            earlier = read_json(file)
            if differing := _differences(earlier, ours, GROWING):
                raise ConfigError(
                    f"the rounds in {self.path} were made with something else, and must not be mixed with new ones: "
                    f"{'; '.join(differing)}; begin anew with another --out"
                )
            for name in GROWING:
                ours[name] = {**earlier.get(name, {}), **ours[name]}
        elif any(not p.name.startswith(".") for p in self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty, and no study's folder: it has no {SETTINGS}; give another --out")
        write_atomically(file, (json.dumps(ours, indent=1) + "\n").encode())

    def file(self, mode: str, task: str, method: str, number: int) -> Path:
        """Of a round, whether it is done or not."""
        return self.path / "rounds" / mode / task / method / f"{number:03}.json"

    def done(self, mode: str, task: str, method: str) -> dict[int, dict[str, Any]]:
        """The rounds that are done, by number."""
        return {r["round"]: r for r in read_rounds(self.path, f"{mode}/{task}/{method}")}

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep a round. OSError when the disk is full."""
        file = self.file(record["mode"], record["task"], record["method"], record["round"])
        write_atomically(file, (json.dumps(record, indent=1) + "\n").encode())

    def close(self) -> None:
        """Let others write to it."""
        os.close(self._lock)


def read_settings(path: Path) -> dict[str, Any]:
    """What a study was made with. ConfigError when ``path`` is no study's folder, or of another version."""
    if not (path / SETTINGS).is_file():
        raise ConfigError(f"{path} is no study's folder: it has no {SETTINGS}; give that of --out")
    settings = read_json(path / SETTINGS)
    if settings.get("format") != FORMAT:
        raise ConfigError(
            f"{path / SETTINGS} has the format {shown(settings.get('format'))}, expected {FORMAT}; run the study anew"
        )
    return settings


def read_rounds(path: Path, below: str = "") -> list[dict[str, Any]]:
    """The rounds in a study's folder, in order; ``below``: those of ``<mode>/<task>/<method>``. ConfigError names a file that is
    none."""
    rounds = []
    for file in sorted((path / "rounds" / below).rglob("[0-9]*.json")):
        record = read_json(file)
        names = ("mode", "task", "method", "round", "success", "time_s")
        if missing := [name for name in names if name not in record]:
            raise ConfigError(f"{file} has no {missing[0]}, so it is no round of a study; remove it to have the round run again")
        rounds.append(record)
    return rounds


def _differences(earlier: Any, now: Any, growing: tuple[str, ...] = (), name: str = "") -> list[str]:
    """What two settings differ in, in words; of those called ``growing`` what both have."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [f"{name} was {shown(earlier)}, is {shown(now)}"]
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        both = key in earlier and key in now
        if name in growing and not both:
            continue
        found += _differences(earlier.get(key), now.get(key), growing, f"{name}.{key}" if name else key)
    return found
