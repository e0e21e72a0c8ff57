"""Shared memory of Fast DDS: removes what crashed processes left, and checks that enough is free. Standard library only.

Every process of a graph takes a segment of /dev/shm for the images that it publishes (``segment_size`` of the profile in
``config/dds``). A killed process leaves its segment behind; a process that finds no space silently receives nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = Path("/dev/shm")
SETTLED = 10.0  # s: the owner of an older lock file has locked it, if it is alive
DEFAULT_SEGMENT = 524_288  # bytes, Fast DDS's default
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # Jazzy's first
PARTICIPANTS = {"twin_node": 2}  # processes of a node that has more than one
_LOCK = re.compile(r"fastrtps_[0-9a-f]{16}_el")


def remove_dead_segments(folder: Path = FOLDER) -> int:
    """Remove the segments of this user's dead processes. Returns the bytes freed.

    Fast DDS holds an exclusive lock (flock) on ``fastrtps_<id>_el`` while the owner of ``fastrtps_<id>`` lives; the kernel releases
    it with the process, in other containers too. ``fastdds shm clean`` uses the same criterion. Ports are kept: they are small, and
    Fast DDS reuses them.
    """
    freed = 0
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _LOCK.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # its owner is alive and holds the lock; or another process has removed it
                    freed += _remove_if_dead(Path(entry.path))
    return freed


def _remove_if_dead(lock: Path) -> int:
    with open(os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < SETTLED:
            return 0
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        segment = lock.with_name(lock.name.removesuffix("_el"))
        size = 0
        with contextlib.suppress(FileNotFoundError):
            size = 512 * segment.stat().st_blocks
            segment.unlink()
        lock.unlink()
        return size


def needed_bytes(participants: int, environment: Mapping[str, str]) -> int:
    """Bytes of /dev/shm that this many processes take with the environment's DDS profile; 0 for another middleware."""
    if "fastrtps" not in environment.get("RMW_IMPLEMENTATION", "fastrtps"):
        return 0
    segment = DEFAULT_SEGMENT
    if profile := next((environment[name] for name in PROFILES if environment.get(name)), ""):
        with contextlib.suppress(OSError):
            found = re.search(r"<segment_size>\s*(\d+)", Path(profile).read_text(encoding="utf-8", errors="ignore"))
            segment = int(found[1]) if found else segment
    return participants * (segment + segment // 20 + 700_000)  # including Fast DDS's bookkeeping and ports


def shortage(free: int, needed: int) -> str:
    """Why the free bytes of /dev/shm are too few, and the remedy; empty if they suffice."""
    if free >= needed:
        return ""
    size = f"{max(-(-2 * needed // 2**30), 1)}g"
    return (
        f"/dev/shm has {free / 1e6:.0f} MB left, but the nodes need {needed / 1e6:.0f} MB there for images: start the "
        f"container with 'docker run --shm-size={size}' or '--ipc=host', or 'sudo mount -o remount,size={size} /dev/shm'"
    )


def prepare(executables: Iterable[str], environment: Mapping[str, str], folder: Path = FOLDER) -> str:
    """Free space for these nodes. Returns a description of what was removed; empty if nothing was.

    Raises:
        RuntimeError: there is not enough space; with the remedy.
    """
    freed = remove_dead_segments(folder)
    try:
        status = os.statvfs(folder)
    except OSError:  # another system's shared memory
        return ""
    participants = sum(PARTICIPANTS.get(name, 1) for name in executables)
    if problem := shortage(status.f_bavail * status.f_frsize, needed_bytes(participants, environment)):
        raise RuntimeError(problem)
    return f"removed {freed / 1e6:.0f} MB from {folder} that crashed nodes had left there" if freed else ""
