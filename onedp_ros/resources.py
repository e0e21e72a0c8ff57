"""Where the package's files are: in the source tree, or in ``share/onedp_ros`` of an installed package."""

from __future__ import annotations

from pathlib import Path

from onedp_ros.contract import Contract


def resource(*parts: str) -> Path:
    """Path of ``config/…``, ``models/…`` or ``launch/…``. FileNotFoundError names where it was looked for."""
    here = Path(__file__).resolve()
    # the checkout; <prefix>/share for <prefix>/lib/pythonX.Y/site-packages/onedp_ros/resources.py
    places = [here.parents[1], *(p / "share" / "onedp_ros" for p in here.parents[3:6])]
    for place in places:
        if (found := place.joinpath(*parts)).exists():
            return found
    raise FileNotFoundError(
        f"{'/'.join(parts)} is in none of {[str(p) for p in places]}; install the package with colcon or pip install -e"
    )


def task_contract(task: str) -> Contract:
    """The contract of ``config/tasks/<task>.yaml``."""
    return Contract.from_yaml(resource("config", "tasks", f"{task}.yaml"))
