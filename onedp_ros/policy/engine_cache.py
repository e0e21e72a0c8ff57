"""Compiled engines cached between starts, in ``$XDG_CACHE_HOME/onedp_ros`` or else ``~/.cache/onedp_ros``.

An entry is one file: a digest of key and content, then the content. A damaged or misnamed file counts as missing. Entries are
written atomically, so concurrent starts do no harm. When the total exceeds :data:`LIMIT`, the least recently used are removed. No
other user may access the folder, since the inference engine loads what is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onedp_ros.files import open_atomically

LIMIT = 1 << 30  # bytes: a number of compact policies, or two or three of the paper's size
ABANDONED = 3600.0  # s; an older partial file was left by a crash
DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """The cache folder, created when missing.

    Raises:
        OSError: it cannot be created, or other users can access it; names the remedy.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "onedp_ros"
    except RuntimeError as error:
        raise OSError(f"{error}; set XDG_CACHE_HOME") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not a folder of this user's own; remove it, or set XDG_CACHE_HOME")
    if found.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users (mode {found.st_mode & 0o777:o}); chmod 700 {folder}")
    return folder


def read(folder: Path, key: Mapping[str, Any]) -> bytes | None:
    """What was written under ``key``; None when there is no intact entry."""
    file = _file(folder, key)
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if data[:DIGEST] != _digest(key, data[DIGEST:]):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # last use
    return data[DIGEST:]


def write(folder: Path, key: Mapping[str, Any], data: bytes) -> None:
    """Keep ``data`` under ``key``, unless it alone exceeds :data:`LIMIT`. OSError when it cannot be written."""
    if len(data) > LIMIT:
        return
    with open_atomically(_file(folder, key), 0o600) as file:
        file.write(_digest(key, data))
        file.write(data)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove partial files of crashed starts, and the least recently used entries beyond :data:`LIMIT`."""
    entries = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another start removed it
            found = file.stat()
            if file.suffix == ".engine":
                entries.append((found.st_mtime, found.st_size, file))
            elif file.suffix == ".partial" and time.time() - found.st_mtime > ABANDONED:
                file.unlink()
    total = 0
    for _, size, file in sorted(entries, reverse=True):
        total += size
        if total > LIMIT:
            with contextlib.suppress(OSError):
                file.unlink()


def _file(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / f"{hashlib.sha256(_text(key)).hexdigest()}.engine"


def _digest(key: Mapping[str, Any], data: bytes) -> bytes:
    digest = hashlib.sha256(_text(key))
    digest.update(data)
    return digest.digest()


def _text(key: Mapping[str, Any]) -> bytes:
    return json.dumps(key, sort_keys=True).encode()
