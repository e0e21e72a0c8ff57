import numpy as np
import pytest

from onedp_ros.evaluation.smoothness import departures
from onedp_ros.geometry import quaternion_from_rotation_vector


def stream(seconds, jump=0.0, turn=0.0, at=1.0):
    """Targets that move at 0.3 m/s and turn at 0.5 rad/s, and jump at a time."""
    later = seconds >= at
    positions = np.stack([0.3 * seconds, jump * later, 0 * seconds], axis=1)
    return seconds, positions, [quaternion_from_rotation_vector(np.array([0, 0, a])) for a in 0.5 * seconds + turn * later]


@pytest.mark.parametrize("uneven", [False, True])
def test_a_jump_counts_and_steady_motion_does_not_however_unevenly_targets_are_sent(uneven):
    seconds = np.arange(0, 2, 1 / 60)
    if uneven:  # gaps, and targets 1 ms after another
        seconds = np.sort(np.concatenate([np.delete(seconds, slice(20, 24)), seconds[::7] + 1e-3]))
    for figures in departures(*stream(seconds)):
        assert figures.shape == (len(seconds) - 2,) and figures.max() < 1e-9
    distances, angles = departures(*stream(seconds, jump=0.004, turn=0.02))
    first = np.searchsorted(seconds, 1.0) - 2
    assert distances[first] == pytest.approx(0.004) and angles[first] == pytest.approx(0.02)
    assert distances.max() < 0.0081, "and once more where the velocity of the jump is not kept"


def test_the_motion_of_a_gap_is_no_jump():
    seconds = np.delete(np.arange(0, 2, 1 / 60), slice(57, 62))
    distances, angles = departures(*stream(seconds, jump=0.004, turn=0.02))
    assert distances.max() < 1e-9 and angles.max() < 1e-9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_targets_have_no_jump(count):
    distances, angles = departures(np.arange(count) / 60, np.zeros((count, 3)), [np.array([0, 0, 0, 1.0])] * count)
    assert len(distances) == len(angles) == 0
