"""What crashed nodes leave in /dev/shm goes, what the living hold stays, and too little of it is told."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from onedp_ros.graph import shm
from onedp_ros.graph.processes import graph_environment, task_graph


def segment(folder: Path, number: int, age: float = 60.0) -> tuple[Path, Path]:
    """A segment of 1 MB with its lock file, as Fast DDS makes them."""
    path = folder / f"fastrtps_{number:016x}"
    path.write_bytes(bytes(2**20))
    lock = path.with_name(path.name + "_el")
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    return path, lock


def test_segments_of_the_dead_go_and_all_else_stays(tmp_path: Path) -> None:
    dead, living, young = (segment(tmp_path, number, age) for number, age in ((1, 60.0), (2, 60.0), (3, 0.0)))
    others = [tmp_path / name for name in ("fastrtps_port7400_el", "fastrtps_port7400", "mine_0000000000000001_el")]
    for other in others:
        other.touch()
        os.utime(other, (0, 0))
    link = tmp_path / f"fastrtps_{9:016x}_el"
    link.symlink_to(tmp_path / "mine_0000000000000001_el")
    with living[1].open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a process that lives does
        assert shm.remove_dead_segments(tmp_path) >= 2**20
        assert not any(path.exists() for path in dead)
        assert all(path.exists() for path in (*living, *young, *others, link))
        assert shm.remove_dead_segments(tmp_path) == 0


def test_another_users_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = segment(tmp_path, 1)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert shm.remove_dead_segments(tmp_path) == 0 and all(path.exists() for path in paths)


def test_a_container_with_too_little_is_told_what_to_do() -> None:
    nodes = [process.executable for process in task_graph("pnp_milk")]
    environment = graph_environment({})
    assert len(nodes) == 4
    needed = shm.needed_bytes(5, environment)
    assert 5 * 2**25 < needed < 1.1 * 5 * 2**25  # the twin has two processes
    assert shm.needed_bytes(5, {}) < 64e6 < shm.needed_bytes(2, environment)
    problem = shm.shortage(64 * 2**20, needed)
    assert all(words in problem for words in ("/dev/shm has 67 MB left", "--shm-size=1g", "--ipc=host"))
    assert shm.shortage(needed, needed) == "" and shm.needed_bytes(5, {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == 0


def test_what_was_done_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment(tmp_path, 1)
    assert "removed 1 MB" in shm.prepare(["action_node"], {}, tmp_path)
    assert shm.prepare(["action_node"], {}, tmp_path) == "" == shm.prepare(["action_node"], {}, tmp_path / "none")
    monkeypatch.setattr(shm, "needed_bytes", lambda *_: 10**18)
    with pytest.raises(RuntimeError, match="shm-size"):
        shm.prepare(["action_node"], {}, tmp_path)
