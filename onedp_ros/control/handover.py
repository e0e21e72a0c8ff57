"""From one chunk to the next: which plan follows from the chunks of the last moments. Pure functions of them.

Neighbouring chunks of a stochastic policy are draws of their own and differ by millimetres; following each as it comes shakes the
target at the rate of the predictions. Since every action has its time, what several chunks plan for the same instant can be
averaged without a lag (temporal ensembling, https://arxiv.org/abs/2304.13705), as far as they mean the same motion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS
from onedp_ros.control.chunk import ActionChunk

WINDOW = 0.15  # s: older chunks than the newest by more have no say
AGE = 0.05  # s in which a chunk's weight falls to 1/e
FEW = 0.1  # s: the chunks that the others have to agree with are no older
COMPARED = 0.4  # s after the newest observation over which chunks are compared
AGREE = 0.04  # m: chunks as near as this to the newest few are averaged, from twice as far on they are left out
FADE = 0.05  # s, of the critically damped way to a new plan
FIRST_FADE, FIRST_TIME = 0.15, 0.3  # s, the same while following begins: the first chunks are too few to tell a velocity


@dataclasses.dataclass(frozen=True)
class Handover:
    """A way from chunk to chunk.

    Args:
        plan: chunks of the last :data:`WINDOW` s, of equal horizons, oldest first -> the plan, with the stamps of the newest.
        fade: time constant (s) of the critically damped way from the plan before to a new one; 0: the target jumps.
        help: for lists of choices, in a few words.
    """

    plan: Callable[[Sequence[ActionChunk]], ActionChunk]
    fade: float
    help: str


def newest(chunks: Sequence[ActionChunk]) -> ActionChunk:
    """The newest chunk as it is."""
    return chunks[-1]


def ensemble(chunks: Sequence[ActionChunk]) -> ActionChunk:
    """The mean of what the chunks plan for each of the newest one's instants, with weights exp(-age / :data:`AGE`).

    Chunks that are farther than :data:`AGREE` from the median of the newest few are left out, so that two ways around an obstacle
    are never averaged, and a plan that has changed does not wait for the old ones to leave. The opening is the newest chunk's: a
    grasp comes at an instant.
    """
    last = chunks[-1]
    ages = np.array([last.stamp - c.stamp for c in chunks]) / NANOSECONDS
    shape, rows = (len(chunks), len(last.stamps), -1), np.arange(len(chunks))[:, None]
    stamps = np.concatenate([c.stamps for c in chunks]).reshape(shape[:2])
    index = np.stack([c.stamps.searchsorted(last.stamps, side="right") for c in chunks])
    index = np.minimum(np.maximum(index - 1, 0), shape[1] - 2)  # (chunks, horizon)
    before = stamps[rows, index]
    part = (last.stamps - before) / (stamps[rows, index + 1] - before)
    planned = part <= 1.0  # older chunks end sooner
    part = np.minimum(np.maximum(part, 0.0), 1.0)[..., None]
    positions = np.concatenate([c.positions for c in chunks]).reshape(shape)
    quaternions = np.concatenate([c.quaternions for c in chunks]).reshape(shape)
    positions = (1 - part) * positions[rows, index] + part * positions[rows, index + 1]
    start, end = quaternions[rows, index], quaternions[rows, index + 1]
    quaternions = _aligned((1 - part) * start + part * _aligned(end, start), last.quaternions)

    compared = (last.stamps >= last.stamp) & (last.stamps <= last.stamp + COMPARED * NANOSECONDS)
    nearby, some = positions[:, compared], planned[:, compared]
    few = np.sort(nearby[ages <= FEW], axis=0)
    with np.errstate(over="ignore"):  # far away, however far
        squares = np.where(some, ((nearby - few[len(few) // 2]) ** 2).sum(axis=-1), 0.0)
    apart = np.sqrt(squares.sum(axis=1) / np.maximum(some.sum(axis=1), 1))
    weights = np.exp(-ages / AGE) * np.clip(2.0 - apart / AGREE, 0.0, 1.0)
    weights[-1] = max(weights[-1], 1e-6)  # alone where the others have ended
    weights = weights[:, None] * planned
    weights /= weights.sum(axis=0)
    quaternions = np.einsum("ch,chv->hv", weights, quaternions)
    quaternions /= np.sqrt((quaternions**2).sum(axis=-1, keepdims=True))
    return ActionChunk(last.stamp, last.stamps, np.einsum("ch,chv->hv", weights, positions), quaternions, last.openings)


def _aligned(quaternions: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same rotations (..., 4), of their two quaternions the one that is nearer to the others', so that they can be averaged."""
    return np.where((quaternions * others).sum(axis=-1, keepdims=True) < 0.0, -quaternions, quaternions)


HANDOVERS = {
    "ensemble": Handover(ensemble, FADE, "the mean of the last chunks that agree"),
    "newest": Handover(newest, 0.0, "the newest chunk as it is"),
}
DEFAULT = "ensemble"


def describe_handovers() -> str:
    """The choices, for help texts."""
    return ", ".join(f"{name} ({handover.help})" for name, handover in HANDOVERS.items())
