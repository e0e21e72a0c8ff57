"""Files that appear whole or not at all. Standard library only."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomically(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when the context is left; after a crash either the old or the new file is
    there, whole. What is left of it then is called ``.<name>.<random>.partial``.

    Args:
        mode: permissions of the new file, less the process's umask.

    Raises:
        OSError: the disk is full or fails. As after any other error, the old file is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by a file with ``data``, as :func:`open_atomically` does. OSError names the file and the remedy."""
    try:
        with open_atomically(path, mode) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; make room on the disk for {len(data) / 1e6:.0f} MB", str(path)) from error
