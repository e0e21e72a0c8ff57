"""Where the rounds of a study start: the cells of a grid over the area where the objects may lie, in a fixed order.

A start is a seed, as for every episode in the twin, so that the graph and the stepped cell begin a round alike. From many seeds
that neither demonstrations nor ``onedp evaluate`` use by default, each cell gets those whose starts are nearest to its centre.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np

from onedp_ros.tasks.base import Task
from onedp_ros.twin.cell import Cell

FIRST_SEED = 1_000_000
CANDIDATES = 2000  # seeds
ROWS, COLUMNS = 4, 5  # 20 cells, as in the paper (section 4.2)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a round starts: the ``cell`` of the grid, counted along its rows, the seed, and the scene's ``place``."""

    cell: int
    seed: int
    place: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The starts of a task's rounds: one in each cell, then a second one in each, and so on.

    Attributes:
        rows, columns: of cells.
        bounds: range of a place's first value, along the columns, and of its second, along the rows; empty when the cells are not
            places.
        labels: of the columns, and of the rows if there are several.
        start_labels: of the task.
    """

    rows: int
    columns: int
    bounds: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]
    start_labels: tuple[str, ...]
    starts: tuple[Start, ...]

    @property
    def cells(self) -> int:
        """Number of cells; that many rounds visit each of them once."""
        return self.rows * self.columns

    def to_dict(self) -> dict[str, Any]:
        """All but the starts, for a file."""
        return {"rows": self.rows, "columns": self.columns, "bounds": [list(b) for b in self.bounds], "labels": list(self.labels)}


def find_starts(task: Task) -> Grid:
    """The grid of a task. ValueError when it has no scene in the cell."""
    if task.scene is None:
        raise ValueError("the task has no scene in the twin's cell; measure it with onedp evaluate")
    cell = Cell(task.scene(task.choose({})))
    first = max(FIRST_SEED, task.evaluation_seeds)
    seeds = range(first, first + CANDIDATES)
    places = []
    for seed in seeds:
        cell.reset(np.random.default_rng(seed))
        places.append(cell.scene.start(cell))
    values = np.array(places, dtype=np.float64).reshape(CANDIDATES, -1)
    rows, columns = 1, ROWS * COLUMNS
    bounds: tuple[tuple[float, float], ...] = ()
    labels: tuple[str, ...] = ("start",)
    distances = np.zeros(CANDIDATES)
    if task.study_by:
        numbers = values[:, task.start_labels.index(task.study_by)]
        different, cells = np.unique(numbers, return_inverse=True)
        columns, labels = len(different), (task.study_by,)
    elif values.shape[1] >= 2:
        rows, columns, labels = ROWS, COLUMNS, task.start_labels[:2]
        low, high = values[:, :2].min(axis=0), values[:, :2].max(axis=0)
        scaled = (values[:, :2] - low) / np.maximum(high - low, 1e-9) * [columns, rows]
        place = np.minimum(scaled.astype(int), [columns - 1, rows - 1])
        distances = np.abs(scaled - place - 0.5).max(axis=1)
        cells = place[:, 1] * columns + place[:, 0]
        bounds = tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))
    else:
        cells = np.arange(CANDIDATES) % columns
    ranked: dict[int, int] = defaultdict(int)
    order = []
    for i in np.argsort(distances, kind="stable"):
        order.append((ranked[int(cells[i])], int(cells[i]), int(i)))
        ranked[int(cells[i])] += 1
    starts = tuple(Start(at, seeds[i], tuple(map(float, places[i]))) for _, at, i in sorted(order))
    return Grid(rows, columns, bounds, labels, task.start_labels, starts)
