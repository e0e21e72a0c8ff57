"""Joysticks and keyboard: what is pressed becomes a command, and what goes silent lets go."""

import os
import pty
import time

import pytest

from onedp_ros.resources import resource
from onedp_ros.teleop.devices import DEVICES, read_settings
from onedp_ros.teleop.devices.base import Command, Setup
from onedp_ros.teleop.devices.keyboard import Keyboard

FILE = resource("config", "teleop.yaml")
BUTTONS = [0] * 11


def open_device(name):
    """A device with the settings of config/teleop.yaml."""
    return DEVICES.get(name)(Setup(read_settings(FILE, name)))


def pressed(*indices):
    return [int(i in indices) for i in range(len(BUTTONS))]


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_a_gamepad_moves_only_while_its_dead_man_switch_is_held():
    pad = open_device("gamepad")
    sticks = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # the right stick pushed away
    pad.feed(sticks, BUTTONS)
    assert not pad.poll().engaged
    pad.feed(sticks, pressed(4))
    assert pad.poll() == Command(True, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    pad.feed([0.0] * 6, pressed(4))
    assert pad.poll() == Command(True)


def test_a_spacemouse_is_held_by_being_moved_and_has_a_deadband():
    mouse = open_device("spacenav")
    mouse.feed([0.05, -0.05, 0.0, 0.0, 0.0, 0.02], [0, 0])
    assert not mouse.poll().engaged
    mouse.feed([0.0, 0.0, 0.0, 0.0, 0.0, -1.0], [0, 0])
    assert mouse.poll() == Command(True, (0.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    mouse.feed([0.5, 0.0, 0.0, 0.0, 0.0, 0.0], [0, 0])
    assert 0.4 < mouse.poll().velocity[0] < 0.5


def test_a_device_that_goes_silent_lets_go():
    pad = open_device("gamepad")
    pad.feed([0.0] * 6, pressed(4))
    assert pad.poll().engaged
    wait_for(lambda: not pad.poll().engaged)


def test_a_button_is_an_event_once_when_pressed():
    pad = open_device("gamepad")
    for buttons in ((), (0,), (0,), (0, 3), (), (0,)):
        pad.feed([0.0] * 6, pressed(*buttons))
    assert pad.events() == ["gripper", "home", "gripper"]
    assert pad.events() == []


@pytest.mark.parametrize("axes", [[float("nan")] * 6, [1.0]])
def test_a_report_that_makes_no_sense_is_counted_and_lets_go(axes):
    pad = open_device("gamepad")
    pad.feed([0.0] * 6, pressed(4))
    pad.feed(axes, pressed(4))
    assert not pad.poll().engaged and pad.refused == {"reports of the device": 1}


def test_a_map_with_names_that_are_none_is_refused(tmp_path):
    file = tmp_path / "teleop.yaml"
    file.write_text("gamepad: {axes: {up: [0, 1]}, dead_man_switch: 4, buttons: {}}")
    with pytest.raises(ValueError, match=r"teleop\.yaml, section gamepad.*\['up'\]"):
        read_settings(file, "gamepad")
    with pytest.raises(ValueError, match=r"section spacemouse: .*axes, dead_man_switch, buttons"):
        read_settings(file, "spacemouse")


@pytest.mark.parametrize(
    ("text", "device", "words"),
    [
        ("gamepad: {axes: {}, dead_man: 4, buttons: {}}", "gamepad", "section gamepad: dead_man is called dead_man_switch now"),
        ("gamepad: {axes: {}, buttons: {}}", "gamepad", "its fields are axes, buttons, expected axes, dead_man_switch, buttons"),
        ("wheel: {}", "keyboard", "unknown section wheel; there are motion, gamepad, keyboard, phone, spacemouse, spacenav"),
        ("keyboard: {speed: 2}", "keyboard", "section keyboard: this device has no settings"),
        ("motion: {}", "wheel", r"unknown device 'wheel', expected one of gamepad, .* write the file .*devices/wheel\.py"),
    ],
)
def test_what_a_file_may_not_hold_is_named(tmp_path, text, device, words):
    file = tmp_path / "teleop.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_settings(file, device)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("x: [4, 1]", "x: [-1, 1]", r"axes\.x is -1, expected a number from 0 to 63"),
        ("x: [4, 1]", "x: [4, 1e9]", r"axes\.x is 1000000000\.0, expected a number from -1 to 1"),
        ("dead_man_switch: 4", "dead_man_switch: -2", "dead_man_switch is -2, expected a number from -1"),
        ("gripper: 0, fail", "gripper: .nan, fail", r"buttons\.gripper is nan"),
    ],
)
def test_implausible_numbers_of_axes_and_buttons_are_named(tmp_path, old, new, words):
    file = tmp_path / "teleop.yaml"
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"teleop\.yaml.*{words}"):
        read_settings(file, "gamepad")


def test_without_a_spacemouse_the_remedy_is_named():
    with pytest.raises(RuntimeError, match=r"no SpaceMouse.*libhidapi"):
        open_device("spacemouse")


@pytest.fixture
def terminal():
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_a_key_moves_the_arm_for_a_moment_and_longer_while_it_repeats(terminal):
    ours, theirs = terminal
    keyboard = Keyboard(Setup(), theirs)
    os.write(ours, b"w")
    wait_for(lambda: keyboard.poll() == Command(True, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)))
    os.write(ours, b"aq")
    wait_for(lambda: keyboard.poll().velocity[5] == 1.0)
    wait_for(lambda: keyboard.poll() == Command())
    os.write(ours, b"-wh \x31")
    wait_for(lambda: keyboard.poll().velocity[0] == 0.5)
    assert keyboard.events() == ["home", "gripper", "start"]
    keyboard.close()


def test_a_keyboard_needs_a_terminal(tmp_path):
    with open(tmp_path / "file", "w") as file, pytest.raises(RuntimeError, match="ros2 run onedp_ros teleop_node"):
        Keyboard(Setup(), file.fileno())
