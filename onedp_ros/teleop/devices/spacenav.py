"""A SpaceMouse, through spacenav's driver."""

from onedp_ros.teleop.devices.joystick import Joystick


class Spacenav(Joystick):
    """The axes and buttons that spacenav_node publishes."""

    joy_topic = "spacenav/joy"


DEVICE = Spacenav
