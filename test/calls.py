"""What the tests of parallel runs have workers do. Imports little, for processes to start quickly."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onedp_ros.parallel import kept


def square(number: int) -> int:
    return number**2


def end_once(number: int, fatal: int, folder: Path) -> int:
    """The square; the first time, and for one of the numbers, its process dies as when memory runs out."""
    with open(folder / str(number), "a") as calls:
        calls.write("x")
    if number == fatal and (folder / str(number)).stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def end(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def refuse(number: int) -> int:
    raise ValueError(f"{number} cannot be used; take another")


@contextmanager
def heavy(folder: Path, size: int) -> Iterator[int]:
    (folder / f"made_{size}_{os.getpid()}").touch(exist_ok=False)
    yield size
    (folder / f"left_{size}_{os.getpid()}").touch(exist_ok=False)


def use(folder: Path, size: int) -> tuple[int, int]:
    return kept(heavy, folder, size), os.getpid()


def either(which: int, folder: Path) -> int:
    """1 ends only when 2 has begun, so that there are two workers."""
    if which == 2:
        (folder / "second").touch()
    while not (folder / "second").exists():
        os.sched_yield()
    return which


def stay(folder: Path) -> None:
    (folder / f"stays_{os.getpid()}").touch()
    threading.Event().wait()
