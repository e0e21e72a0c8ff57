"""From a continuous opening to the commands of a hand that only has "move" and "grasp"."""

from __future__ import annotations

import dataclasses

from onedp_ros.settings import Range, check_fields, within

OPENS = "a Franka hand opens by 0.08 m"


@dataclasses.dataclass(frozen=True)
class GripperSettings:
    """``close_below`` < ``open_above`` (m): requested openings that close and open the hand, with hysteresis in between. ``width``
    (m) when open; ``speed`` (m/s) of the opening, ``force`` (N) of a grasp; a grasp at most ``empty_width`` (m) wide is empty."""

    close_below: float = within(Range(0.0, 0.08, "m", OPENS))
    open_above: float = within(Range(0.001, 0.08, "m", OPENS))
    width: float = within(Range(0.005, 0.08, "m", OPENS))
    speed: float = within(Range(0.005, 0.1, "m/s", "slower commands time out, and the hand moves at 0.1 m/s at most"))
    force: float = within(Range(1.0, 70.0, "N", "less holds nothing, and the hand grasps with 70 N at most"))
    empty_width: float = within(
        Range(0.0001, 0.02, "m", "touching fingers are 0 m apart, and more rejects thin objects"), formerly="nothing"
    )

    def __post_init__(self) -> None:
        check_fields(self, "gripper")
        if not self.close_below < self.open_above <= self.width:
            raise ValueError(
                f"gripper.close_below {self.close_below}, open_above {self.open_above} and width {self.width} must be increasing"
            )
        if not 2 * self.empty_width < self.width:
            raise ValueError(f"gripper.empty_width is {self.empty_width} m, expected less than half of width, {self.width} m")


class GripperIntent:
    """The request to the hand, ``open`` or ``closed``, from a stream of requested openings; ``""`` before the first clear one."""

    def __init__(self, settings: GripperSettings) -> None:
        self._settings = settings
        self.request = ""

    def update(self, opening: float) -> bool:
        """Add a requested opening, m. Returns whether it changed the request."""
        before = self.request
        if opening < self._settings.close_below:
            self.request = "closed"
        elif opening > self._settings.open_above:
            self.request = "open"
        return self.request != before
