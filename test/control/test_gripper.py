"""Openings turn the request with hysteresis."""

import pytest

from onedp_ros.control.gripper import GripperIntent, GripperSettings

SETTINGS = GripperSettings(close_below=0.03, open_above=0.05, width=0.08, speed=0.1, force=20.0, empty_width=0.002)


def test_the_request_turns_at_the_far_threshold_only() -> None:
    intent = GripperIntent(SETTINGS)
    assert intent.request == "" and not intent.update(0.04), "no clear request yet"
    turns = [intent.update(opening) for opening in (0.08, 0.04, 0.031, 0.029, 0.04, 0.049, 0.051, 0.051)]
    assert turns == [True, False, False, True, False, False, True, False]
    assert intent.request == "open"


def test_thresholds_that_do_not_rise_are_named() -> None:
    with pytest.raises(ValueError, match=r"close_below 0\.05"):
        GripperSettings(0.05, 0.03, 0.08, 0.1, 20.0, 0.002)
    with pytest.raises(ValueError, match=r"speed is 0\.0"):
        GripperSettings(0.03, 0.05, 0.08, 0.0, 20.0, 0.002)
