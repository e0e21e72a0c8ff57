"""Warnings about recorded data that can be read but look wrong: units, the quaternion's seam, clocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.contract import Contract
from onedp_ros.contract.features import slices

REACH = 3.0  # m from the base frame's origin: three times an arm's reach, for one on a rail
BEYOND = 0.25  # fraction of an opening's range by which its values may exceed it: calibration is not exact
APART = 0.4  # m between target and end effector, median: an arm follows its targets within a few centimetres
SEAM = math.radians(15.0)  # of rotation, from the orientations at which the state's quaternion changes its sign
LATE, EARLY = 0.1, 0.02  # s that a stamp may lie before and after the time of recording, median
LOST = 0.05  # fraction of the steps, or of a topic's messages, that may be lost without a warning
LOST_TIME = 0.5  # s that may be lost in any case, at start and end
IDLE = 0.3  # fraction of a recording that may have no command: the operator gets ready


def doubts(contract: Contract, state: NDArray[np.float32], action: NDArray[np.float32], ends: ArrayLike) -> list[str]:
    """Warnings about the states (N, state_dim) and actions (N, action_dim) of episodes that end before the rows ``ends``."""
    found = []
    positions: dict[str, list[NDArray[np.float32]]] = {}
    seams: list[str] = []
    for where, features, data in (("measured", contract.state, state), ("target", contract.action, action)):
        for feature, at in zip(features, slices(features).values(), strict=True):
            values, name = data[:, at], f"the {where} {feature.name}"
            if feature.kind == "position":
                positions.setdefault(where, []).append(values)
                if (far := float(np.abs(values).max())) > REACH:
                    found.append(
                        f"{name} lies up to {far:.4g} m from the base frame's origin, expected {REACH:g} at most; are these metres?"
                    )
            elif feature.range is not None:
                low, high = float(values.min()), float(values.max())
                lower, upper = sorted(feature.range)
                spare = BEYOND * (upper - lower)
                if low < lower - spare or high > upper + spare:
                    found.append(
                        f"{name} spans {low:.4g} to {high:.4g}, expected {lower:g} to {upper:g}; record it in the unit of its "
                        f"range, or set the recorded range (closed, open) in the task file"
                    )
            elif feature.kind == "quaternion" and where == "measured":
                seams += _seam(feature.name, values, np.asarray(ends, dtype=np.int64))
    for here, there in zip(positions.get("measured", []), positions.get("target", []), strict=False):
        apart = float(np.median(np.linalg.norm(there - here, axis=1)))
        if apart > APART and not found:
            found.append(
                f"targets lie {apart:.2f} m from the end effector (median), expected {APART:g} at most; are they absolute, in the "
                f"base frame and of the same tool center point?"
            )
    return found + seams


def _seam(name: str, quaternion: NDArray[np.float32], ends: NDArray[np.int64]) -> list[str]:
    near = 2 * np.arcsin(np.clip(quaternion[:, 0], 0.0, 1.0)) < SEAM
    episodes = np.searchsorted(ends, np.nonzero(near)[0], "right")
    if not len(episodes):
        return []
    flips = np.sum(quaternion[1:] * quaternion[:-1], axis=1) < 0
    flips[ends[:-1] - 1] = False  # from one episode to the next
    return [
        f"in {len(set(episodes.tolist()))} of {len(ends)} episodes the orientation comes within {math.degrees(SEAM):.0f} degrees "
        f"of the seam of the state's quaternion ({name}.x = 0, 180 degrees from tool down), in {int(near.sum())} steps; it "
        f"changes its sign there {int(flips.sum())} times, and one pose looks like two: use the kind rotation_6d, or "
        f"keep the tool closer to straight down"
    ]


def lags(seconds: Mapping[str, float]) -> list[str]:
    """Warnings about the median time (s) from stamp to recording, by topic."""
    found = []
    for topic, lag in seconds.items():
        if lag > LATE or lag < -EARLY:
            when = f"{lag:.3f} s after" if lag > 0 else f"{-lag:.3f} s before"
            found.append(
                f"{topic} was recorded {when} its stamps (median; the smallest of all {min(seconds.values()):.3f}): its clock is "
                f"off (synchronise with chrony), it is stamped at the wrong time, or it also reaches a policy that late"
            )
    return found


def losses(steps: int, expected: float, uncommanded: float, hz: float, dropped: Mapping[str, int]) -> list[str]:
    """Warnings about losses: ``steps`` kept of ``expected``; ``uncommanded``: the fraction of observations without a target."""
    found = []
    rest = expected * (1 - uncommanded)
    if rest - steps > max(LOST * rest, LOST_TIME * hz):
        reasons = ", ".join(f"{count} {reason}" for reason, count in _most(dropped))
        found.append(f"only {steps} steps remain of about {rest:.0f}; dropped: {reasons or 'nothing, the cameras had gaps'}")
    if uncommanded > IDLE:
        found.append(
            f"{100 * uncommanded:.0f} % of the observations have no target at their stamp; are targets published at 4 Hz or more "
            f"throughout the recording?"
        )
    return found


def _most(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(dropped.items(), key=lambda item: -item[1])[:4]


def refusals(refused: Mapping[str, int], reasons: Mapping[str, str], heard: Mapping[str, int]) -> list[str]:
    """Warnings about refused messages, for topics with more than a few of them among those ``heard``."""
    return [
        f"{count} of {heard[topic]} messages of {topic} were refused; the first: {reasons[topic]}"
        for topic, count in refused.items()
        if count > LOST * heard.get(topic, 0)
    ]


def unstamped(counts: Mapping[str, int], heard: Mapping[str, int]) -> list[str]:
    """Warnings about messages without a stamp, for topics with more than a few of them: a clock may start at 0."""
    return [
        f"{count} of {heard[topic]} messages of {topic} have no stamp; the time of recording is used, which is later"
        for topic, count in counts.items()
        if count > max(LOST * heard[topic], 1)
    ]
