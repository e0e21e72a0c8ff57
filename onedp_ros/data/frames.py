"""The images of an episode while it is converted: streamed one by one, never all in memory, however long the episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numcodecs
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_PACK = numcodecs.Blosc("lz4", clevel=1)


@dataclasses.dataclass(frozen=True)
class Images:
    """Selected images of a stream, each (height, width, 3) uint8; can be iterated any number of times.

    ``stream`` yields all images from the start; ``chosen`` (T,) are the indices of the selected ones, increasing.
    """

    stream: Callable[[], Iterator[Image]]
    chosen: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Image]:
        wanted = iter(self.chosen.tolist())
        following = next(wanted, None)
        for index, image in enumerate(self.stream()):
            if following is None:
                return
            if index == following:
                yield image
                following = next(wanted, None)
        if following is not None:
            raise ValueError(f"the stream of images ended before image {following}; it is truncated")

    def pick(self, rows: NDArray[np.int64]) -> Images:
        """The images at ``rows``, increasing."""
        return Images(self.stream, self.chosen[rows])


class FrameStore:
    """Stores images by camera and number, compressed in files in ``folder`` (None: in memory). ``keep`` False: only counts them."""

    def __init__(self, folder: Path | None, keep: bool = True) -> None:
        self._folder, self._keep = folder, keep
        self._held: dict[str, list[Image]] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, camera: str, image: Image) -> int:
        """Store an image and return its number; all images of a camera have one shape. OSError if the disk is full."""
        if self._folder is None:
            held = self._held.setdefault(camera, [])
            held.append(image if self._keep else np.empty((0, 0, 3), np.uint8))
            return len(held) - 1
        if camera not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files[camera] = (self._folder / f"{camera}.frames").open("w+b")
            self._places[camera], self._shapes[camera] = [], image.shape
        file, places = self._files[camera], self._places[camera]
        packed = _PACK.encode(np.ascontiguousarray(image))
        places.append((file.tell(), len(packed)))
        file.write(packed)
        return len(places) - 1

    def images(self, camera: str, numbers: NDArray[np.int64]) -> Images:
        """The images with these numbers, in this order. Call it after all have been added."""
        return Images(lambda: self._read(camera, numbers), np.arange(len(numbers)))

    def _read(self, camera: str, numbers: NDArray[np.int64]) -> Iterator[Image]:
        for number in numbers.tolist():
            if self._folder is None:
                yield self._held[camera][number]
                continue
            place, size = self._places[camera][number]
            file = self._files[camera]
            file.seek(place)
            yield np.frombuffer(_PACK.decode(file.read(size)), np.uint8).reshape(self._shapes[camera])
