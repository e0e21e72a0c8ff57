"""A phone for tests: the page in a real Chromium of a phone's size, touched by two thumbs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZE = (390, 844)  # CSS px
CODE = "246810"  # of the servers under test


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium, without a window."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true value of ``condition``; AssertionError when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.01)
    return value


class PhoneDriver:
    """One page on one phone, paired when a code is given. Where a thumb is: fractions, -1 to 1, right and up positive.

    ``script`` runs before the page's own.
    """

    def __init__(self, browser: Browser, url: str, code: str = "", size: tuple[int, int] = SIZE, script: str = "") -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=2,
            has_touch=True,
            is_mobile=True,
            ignore_https_errors=True,
        )
        self.page: Page = self.context.new_page()
        self.page.add_init_script(script)
        self.devtools = self.context.new_cdp_session(self.page)
        self.page.goto(url)
        self._travel, self._dead = self.page.evaluate("[TRAVEL, DEADBAND]")
        self._touches: dict[str, tuple[float, float]] = {}  # where each finger is, CSS px
        self._origins: dict[str, tuple[float, float]] = {}  # where it was put down
        if code:
            self.pair(code)

    def pair(self, code: str) -> None:
        """Type the code and wait until the phone may drive."""
        self.page.fill("#code", code)
        self.page.wait_for_selector("#drive", state="visible")

    @property
    def state(self) -> str:
        """What the page's border says: off, engaged, again (let go, then hold again) or lost (no connection)."""
        return str(self.page.get_attribute("body", "data-state"))

    def hold(self, dx: float = 0.0, dy: float = 0.0) -> None:
        """Hold the dead-man switch, anew where the page asks for that; dx turns the tool (right: clockwise), dy lifts it."""
        if self.state == "again":
            self.lift("hold")
        signed = [(self._dead + (1 - self._dead) * abs(v)) * (1 if v > 0 else -1) if v else 0.0 for v in (dx, dy)]
        self._slide("hold", *signed)

    def pad(self, dx: float = 0.0, dy: float = 0.0) -> None:
        """Slide the other thumb: dx moves to the right, dy ahead."""
        length = (dx * dx + dy * dy) ** 0.5
        scale = (self._dead + (1 - self._dead) * length) / length if length else 0.0
        self._slide("pad", dx * scale, dy * scale)

    def engage(self, dx: float = 0.0, dy: float = 0.0) -> None:
        """Hold the dead-man switch until the server says that the arm may move."""
        end = time.monotonic() + 20.0
        while self.state != "engaged":
            assert time.monotonic() < end, f"the page stayed {self.state!r}"
            self.hold(dx, dy)
            self.page.wait_for_timeout(20)

    def lift(self, thumb: str) -> None:
        """Take one thumb, ``"hold"`` or ``"pad"``, off."""
        if thumb in self._touches:
            self._touch("touchEnd", thumb)
            del self._touches[thumb]

    def release(self) -> None:
        """Take both thumbs off."""
        for thumb in list(self._touches):
            self.lift(thumb)

    def tap(self, button: str) -> None:
        """Tap a button by its id, such as ``"gripper"`` or ``"speed100"``, whatever the thumbs do meanwhile."""
        self._put_down("tap", button)
        self.lift("tap")

    def tilt(self, alpha: float, beta: float, gamma: float) -> None:
        """Turn the phone: the angles (degrees) of a DeviceOrientationEvent."""
        self.devtools.send("DeviceOrientation.setDeviceOrientationOverride", {"alpha": alpha, "beta": beta, "gamma": gamma})

    def close(self) -> None:
        self.context.close()

    def _slide(self, thumb: str, dx: float, dy: float) -> None:
        if thumb not in self._touches:
            self._put_down(thumb, thumb)
        x, y = self._origins[thumb]
        self._touches[thumb] = (x + dx * self._travel, y - dy * self._travel)
        self._touch("touchMove", *self._touches)

    def _put_down(self, finger: str, element: str) -> None:
        box = self.page.locator(f"#{element}").bounding_box()
        assert box, f"#{element} is not to be seen"
        self._origins[finger] = self._touches[finger] = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self._touch("touchStart", *self._touches)

    def _touch(self, kind: str, *fingers: str) -> None:
        """Fingers that are down and those that come (touchStart) or move (touchMove), or one that goes (touchEnd)."""
        points = [{"x": x, "y": y, "id": ("hold", "pad", "tap").index(name)} for name in fingers for x, y in [self._touches[name]]]
        self.devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
