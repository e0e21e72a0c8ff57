"""A gamepad, through joy's joy_node."""

from onedp_ros.teleop.devices.joystick import Joystick


class Gamepad(Joystick):
    """Sticks and buttons as joy_node numbers them; its game_controller_node does so otherwise."""

    joy_topic = "joy"


DEVICE = Gamepad
