"""ffmpeg, from the imageio-ffmpeg wheel."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import imageio_ffmpeg


@contextlib.contextmanager
def ffmpeg(*arguments: str) -> Iterator[Any]:
    """Run ffmpeg; the caller writes to its ``stdin`` and reads from its ``stdout``. OSError if it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    with tempfile.TemporaryFile() as errors:
        # In its own session: Ctrl-C is handled by the main process.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        try:
            with contextlib.suppress(BrokenPipeError):  # its error is reported below
                yield process
            process.communicate()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").split("\n")
    if process.returncode:
        if any("No space left" in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(errno.EIO, f"ffmpeg exited with {process.returncode}: {lines[0]}")
