"""Hand-over from one chunk to the next: pure functions from the most recent chunks to a plan.

Consecutive chunks of a stochastic policy are independent samples and differ by millimetres; following each as it arrives makes the
target jitter at the prediction rate. Since every action has a time, the actions of several chunks for the same time can be averaged
without lag (temporal ensembling, https://arxiv.org/abs/2304.13705), as long as they belong to the same motion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onedp_ros.contract import NANOSECONDS
from onedp_ros.control.chunk import ActionChunk

WINDOW = 0.15  # s: chunks older than the newest by more are ignored
AGE = 0.05  # s in which a chunk's weight decays to 1/e
FEW = 0.1  # s: largest age of the newest few chunks, with which the others must agree
COMPARED = 0.4  # s after the newest observation over which chunks are compared
AGREE = 0.04  # m: chunks within this distance of the newest few are averaged; beyond twice the distance they are left out
FADE = 0.05  # s, time constant of the critically damped transition to a new plan
FIRST_FADE, FIRST_TIME = 0.15, 0.3  # s, the same for the first chunks, too few to estimate a velocity, and for how long


@dataclasses.dataclass(frozen=True)
class Handover:
    """A way to go from chunk to chunk.

    Args:
        plan: chunks of the last :data:`WINDOW` s, of equal horizons, oldest first -> the plan, with the stamps of the newest.
        fade: time constant (s) of the critically damped transition from the previous plan to a new one; 0: the target jumps.
        help: short description for lists of choices.
    """

    plan: Callable[[Sequence[ActionChunk]], ActionChunk]
    fade: float
    help: str


def newest(chunks: Sequence[ActionChunk]) -> ActionChunk:
    """The newest chunk as it is."""
    return chunks[-1]


def ensemble(chunks: Sequence[ActionChunk]) -> ActionChunk:
    """The mean of the chunks' plans at the times of the newest one, with weights exp(-age / :data:`AGE`).

    Chunks farther than :data:`AGREE` from the median of the newest few lose weight and are left out beyond twice that, so that two
    ways around an obstacle are never averaged, and a changed plan takes effect at once. The opening is the newest chunk's: a grasp
    is a discrete event.
    """
    last = chunks[-1]
    ages = np.array([last.stamp - c.stamp for c in chunks]) / NANOSECONDS
    shape, rows = (len(chunks), len(last.stamps), -1), np.arange(len(chunks))[:, None]
    stamps = np.concatenate([c.stamps for c in chunks]).reshape(shape[:2])
    index = np.stack([c.stamps.searchsorted(last.stamps, side="right") for c in chunks])
    index = np.minimum(np.maximum(index - 1, 0), shape[1] - 2)  # (chunks, horizon)
    before = stamps[rows, index]
    part = (last.stamps - before) / (stamps[rows, index + 1] - before)
    planned = part <= 1.0  # older chunks end earlier
    part = np.minimum(np.maximum(part, 0.0), 1.0)[..., None]
    positions = np.concatenate([c.positions for c in chunks]).reshape(shape)
    quaternions = np.concatenate([c.quaternions for c in chunks]).reshape(shape)
    positions = (1 - part) * positions[rows, index] + part * positions[rows, index + 1]
    start, end = quaternions[rows, index], quaternions[rows, index + 1]
    quaternions = _aligned((1 - part) * start + part * _aligned(end, start), last.quaternions)

    compared = (last.stamps >= last.stamp) & (last.stamps <= last.stamp + COMPARED * NANOSECONDS)
    nearby, some = positions[:, compared], planned[:, compared]
    few = np.sort(nearby[ages <= FEW], axis=0)
    with np.errstate(over="ignore"):  # an overflow is far away, too
        squares = np.where(some, ((nearby - few[len(few) // 2]) ** 2).sum(axis=-1), 0.0)
    apart = np.sqrt(squares.sum(axis=1) / np.maximum(some.sum(axis=1), 1))
    weights = np.exp(-ages / AGE) * np.clip(2.0 - apart / AGREE, 0.0, 1.0)
    weights[-1] = max(weights[-1], 1e-6)  # it is alone where the others have ended
    weights = weights[:, None] * planned
    weights /= weights.sum(axis=0)
    quaternions = np.einsum("ch,chv->hv", weights, quaternions)
    quaternions /= np.sqrt((quaternions**2).sum(axis=-1, keepdims=True))
    return ActionChunk(last.stamp, last.stamps, np.einsum("ch,chv->hv", weights, positions), quaternions, last.openings)


def _aligned(quaternions: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same rotations (..., 4), with signs in the half-space of the others', so that they can be averaged."""
    return np.where((quaternions * others).sum(axis=-1, keepdims=True) < 0.0, -quaternions, quaternions)


HANDOVERS = {
    "ensemble": Handover(ensemble, FADE, "the mean of the last chunks that agree"),
    "newest": Handover(newest, 0.0, "the newest chunk as it is"),
}
DEFAULT = "ensemble"


def describe_handovers() -> str:
    """The choices, for help texts."""
    return ", ".join(f"{name} ({handover.help})" for name, handover in HANDOVERS.items())
