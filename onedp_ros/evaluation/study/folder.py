"""A study's folder: its settings, and a file for each finished round.

``study.json`` holds the settings; ``rounds/<mode>/<task>/<method>/<number>.json`` is a round, with a video beside it if it failed.
Each file is written atomically when its round is over, so a study can be killed at any moment and continue with what is missing.
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
PARTS = (  # of the package that affect a round
    *("contract", "control", "geometry.py", "messages", "nodes", "policy", "tasks", "twin"),
    *(
        "evaluation/live_episode.py",
        "evaluation/rollout.py",
        *(f"evaluation/study/{name}.py" for name in ("live", "starts", "stepped")),
    ),
)
GROWING = ("policies", "tasks")  # settings to which later runs may add entries


def program() -> dict[str, Any]:
    """The versions that affect a round: of packages, and a digest of :data:`PARTS` and the twin's robot file."""
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
    """The folder of the study that this process runs, locked against other writers.

    Args:
        path: the folder; created when missing.
        settings: of the study. Those in :data:`GROWING` are dictionaries, and may have other entries than before.

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
            message = f"{self.path}: another onedp study is running in it; wait for its end, or give another --out"
            raise ConfigError(message) from None
        ours = json.loads(json.dumps({"format": FORMAT, **settings}))  # as it is read again
        file = self.path / SETTINGS
        if file.exists():
            earlier = read_json(file)
            if differing := _differences(earlier, ours, GROWING):
                raise ConfigError(
                    f"the rounds in {self.path} were run with other settings, and must not be mixed with new ones: "
                    f"{'; '.join(differing)}; start again with another --out"
                )
            for name in GROWING:
                ours[name] = {**earlier.get(name, {}), **ours[name]}
        elif any(not p.name.startswith(".") for p in self.path.iterdir()):
            raise ConfigError(f"{self.path} is neither empty nor a study's folder: it has no {SETTINGS}; give another --out")
        write_atomically(file, (json.dumps(ours, indent=1) + "\n").encode())

    def file(self, mode: str, task: str, method: str, number: int) -> Path:
        """Path of a round's file, whether it exists or not."""
        return self.path / "rounds" / mode / task / method / f"{number:03}.json"

    def done(self, mode: str, task: str, method: str) -> dict[int, dict[str, Any]]:
        """The finished rounds, by number."""
        return {r["round"]: r for r in read_rounds(self.path, f"{mode}/{task}/{method}")}

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a finished round. OSError when the disk is full."""
        file = self.file(record["mode"], record["task"], record["method"], record["round"])
        write_atomically(file, (json.dumps(record, indent=1) + "\n").encode())

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a study. ConfigError when ``path`` is not a study's folder, or has another format."""
    if not (path / SETTINGS).is_file():
        raise ConfigError(f"{path} is not a study's folder: it has no {SETTINGS}; give a study's --out")
    settings = read_json(path / SETTINGS)
    if settings.get("format") != FORMAT:
        raise ConfigError(
            f"{path / SETTINGS} has the format {shown(settings.get('format'))}, expected {FORMAT}; run the study again"
        )
    return settings


def read_rounds(path: Path, below: str = "") -> list[dict[str, Any]]:
    """The rounds in a study's folder, in order; ``below``: only those of ``<mode>/<task>/<method>``. ConfigError names a file that
    is not a round."""
    rounds = []
    for file in sorted((path / "rounds" / below).rglob("[0-9]*.json")):
        record = read_json(file)
        names = ("mode", "task", "method", "round", "success", "time_s")
        if missing := [name for name in names if name not in record]:
            raise ConfigError(f"{file} has no {missing[0]}, so it is not a round of a study; remove it, and the round is run again")
        rounds.append(record)
    return rounds


def _differences(earlier: Any, now: Any, growing: tuple[str, ...] = (), name: str = "") -> list[str]:
    """Describe how two settings differ; of those named ``growing``, compare only the entries that both have."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [f"{name} was {shown(earlier)}, is {shown(now)}"]
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        both = key in earlier and key in now
        if name in growing and not both:
            continue
        found += _differences(earlier.get(key), now.get(key), growing, f"{name}.{key}" if name else key)
    return found
