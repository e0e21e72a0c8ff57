"""From a wished opening to commands of a hand that only knows "move there" and "grasp"."""

from __future__ import annotations

import dataclasses

from onedp_ros.ranges import Range, check_fields, within

OPENS = "a Franka hand opens by 0.08 m"


@dataclasses.dataclass(frozen=True)
class GripperSettings:
    """``close_below`` < ``open_above`` (m): openings at which the wish turns; in between it stays. ``width`` (m) when open;
    ``speed`` (m/s) of the opening, ``force`` (N) of a grasp; a grasp holds something when its width is above ``nothing`` (m)."""

    close_below: float = within(Range(0.0, 0.08, "m", OPENS))
    open_above: float = within(Range(0.001, 0.08, "m", OPENS))
    width: float = within(Range(0.005, 0.08, "m", OPENS))
    speed: float = within(Range(0.005, 0.1, "m/s", "less takes longer than a command may, and the hand moves at 0.1 m/s at most"))
    force: float = within(Range(1.0, 70.0, "N", "less holds nothing, and the hand holds with 70 N at most"))
    nothing: float = within(Range(0.0001, 0.02, "m", "fingers that touch are 0 m apart, and thin things are to be grasped"))

    def __post_init__(self) -> None:
        check_fields(self, "gripper")
        if not self.close_below < self.open_above <= self.width:
            raise ValueError(
                f"gripper.close_below {self.close_below}, open_above {self.open_above} and width {self.width} must rise"
            )
        if not 2 * self.nothing < self.width:
            raise ValueError(f"gripper.nothing is {self.nothing} m, expected less than half of width, {self.width} m")


class GripperIntent:
    """What the hand shall do, ``open`` or ``closed``, from the stream of wished openings; ``""`` before the first clear one."""

    def __init__(self, settings: GripperSettings) -> None:
        self._settings = settings
        self.wish = ""

    def update(self, opening: float) -> bool:
        """Take a wished opening, m. Whether that turned the wish."""
        before = self.wish
        if opening < self._settings.close_below:
            self.wish = "closed"
        elif opening > self._settings.open_above:
            self.wish = "open"
        return self.wish != before
