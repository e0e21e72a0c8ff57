"""From a wished opening to commands of a hand that only knows "move there" and "grasp"."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class GripperSettings:
    """``close_below`` < ``open_above`` (m): openings at which the wish turns; in between it stays. ``width`` (m) when open;
    ``speed`` (m/s) of the opening, ``force`` (N) of a grasp; a grasp holds something when its width is above ``nothing`` (m)."""

    close_below: float
    open_above: float
    width: float
    speed: float
    force: float
    nothing: float

    def __post_init__(self) -> None:
        if not 0 <= self.close_below < self.open_above <= self.width:
            raise ValueError(
                f"gripper: close_below {self.close_below}, open_above {self.open_above} and width {self.width} must rise from 0"
            )
        if min(self.speed, self.force, self.nothing) <= 0:
            raise ValueError(f"gripper: speed {self.speed}, force {self.force} and nothing {self.nothing} must be positive")


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
