"""What an operator holds: one file a device, whose name is the device's. :mod:`.base` states what a device is.

Launch files list the names on the system's Python; a device's module is imported when it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedp_ros.config import read_yaml
from onedp_ros.registry import Registry

if TYPE_CHECKING:
    from onedp_ros.teleop.devices.base import Device

DEVICES: Registry[type[Device]] = Registry("device", __name__, "DEVICE", besides=("base", "joystick"))
MOTION = "motion"  # the section of a teleoperation file that is no device's


def read_section(path: str | Path, name: str) -> Any:
    """The section ``name`` of a file such as ``config/teleop.yaml``; None where the file has none.

    Raises:
        ValueError: a section that is neither :data:`MOTION` nor a device's; names it, and those that there are.
    """
    sections = read_yaml(path)
    known = (MOTION, *DEVICES.names())
    if unknown := sorted(set(sections) - set(known)):
        raise ValueError(f"{path} has the unknown section {', '.join(unknown)}; there are {', '.join(known)}")
    return sections.get(name)


def read_settings(path: str | Path, device: str) -> Any:
    """The settings of a device from its section of a file such as ``config/teleop.yaml``.

    Raises:
        UnknownNameError: there is no such device.
        ValueError: as of :func:`read_section`, or the section cannot be used; names file, section and field.
    """
    kind = DEVICES.get(device)
    section = read_section(path, device)
    try:
        return kind.parse_settings(section)
    except ValueError as error:
        raise ValueError(f"{path}, section {device}: {error}; see config/teleop.yaml for a complete one") from error
