"""A phone: it opens a page that this machine serves, and its two thumbs, its tilt or its pose move the arm."""

from onedp_ros.teleop.devices.phone.server import Phone

DEVICE = Phone
