"""The phone's page, in a browser of a phone's size that two thumbs touch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from browser import CODE, PhoneDriver, wait_for

from onedp_ros.geometry import quaternion_from_rotation_vector, quaternion_to_matrix
from onedp_ros.teleop.devices.base import Command
from onedp_ros.teleop.devices.phone.server import TRIES, Phone

SIZES = ((390, 844), (360, 640), (844, 390))
BUTTONS = ("gripper", "home", "start", "stop", "fail", "discard", "speed25", "speed50", "speed100", "tilt")

# As much of WebXR as the page uses. The test sets xrPose.
WEBXR = """
window.xrPose = null;
class Session extends EventTarget {
  renderState = {};
  updateRenderState(state) { Object.assign(this.renderState, state); }
  async requestReferenceSpace(kind) { return kind; }
  requestAnimationFrame(callback) {
    const frame = { session: this, getViewerPose: (space) => space === "local" ? window.xrPose : null };
    if (!this.ended) requestAnimationFrame((now) => callback(now, frame));
  }
  async end() { this.ended = true; this.dispatchEvent(new Event("end")); }
}
window.XRWebGLLayer = class { framebuffer = null; };
Object.defineProperty(navigator, "xr", { value: {
  isSessionSupported: async (mode) => mode === "immersive-ar",
  requestSession: async (mode, options) => Object.assign(new Session(), { mode, options }),
} });
"""


@pytest.fixture
def open_page(browser: Any, phone: Phone) -> Iterator[Callable[..., PhoneDriver]]:
    """Opens the page, paired unless told otherwise. An error in it fails the test."""
    drivers: list[PhoneDriver] = []
    errors: list[str] = []

    def start(code: str = CODE, **options: Any) -> PhoneDriver:
        driver = PhoneDriver(browser, phone.urls[0], **options)
        driver.page.on("pageerror", lambda error: errors.append(str(error)))
        drivers.append(driver)
        if code:
            driver.pair(code)
        return driver

    yield start
    for driver in drivers:
        driver.close()
    assert not errors


@pytest.fixture
def driver(open_page: Callable[..., PhoneDriver]) -> PhoneDriver:
    return open_page()


def reach(driver: PhoneDriver, phone: Phone, wanted: Callable[[Command], bool], move: Callable[[], None]) -> Command:
    """The first engaged command that is as wanted. A machine that stalls disengages: ``move`` is done until it is not."""
    end = time.monotonic() + 20
    while True:
        driver.engage()
        move()
        driver.page.wait_for_timeout(50)
        command = phone.poll()
        if command.engaged and wanted(command):
            return command
        assert time.monotonic() < end, command


def until_let_go(driver: PhoneDriver, phone: Phone) -> None:
    wait_for(lambda: not phone.poll().engaged, "the end of the motion")
    assert driver.state != "engaged" or driver.page.wait_for_selector("body:not([data-state=engaged])")


# ---- pairing ----


def test_the_right_code_opens_the_page_and_a_wrong_one_says_so(phone: Phone, open_page: Callable[..., PhoneDriver]) -> None:
    driver = open_page(code="")
    assert not driver.page.is_visible("#drive")
    driver.page.fill("#code", "000000")
    driver.page.wait_for_selector("text=That is not the code.")
    assert not driver.page.is_visible("#drive")
    driver.pair(CODE)
    assert not driver.page.is_visible("#pairing")
    assert phone.refused["wrong code"] == 1


def test_after_too_many_wrong_codes_the_page_asks_for_the_longer_one(phone: Phone, open_page: Callable[..., PhoneDriver]) -> None:
    driver = open_page(code="")
    for count in range(1, TRIES + 1):
        driver.page.fill("#code", "000000")
        wait_for(lambda count=count: phone.refused["wrong code"] == count, "the refusal")
        driver.page.wait_for_selector("text=/That is not the code/")
    driver.page.wait_for_selector("text=/there is a longer one: look into the terminal/")
    driver.page.locator("#code").press_sequentially(f"{phone.code[:4]} {phone.code[4:]}")
    driver.page.wait_for_selector("#drive", state="visible")


def test_a_second_phone_is_told_that_another_drives(open_page: Callable[..., PhoneDriver], driver: PhoneDriver) -> None:
    second = open_page(code="")
    second.page.fill("#code", CODE)
    second.page.wait_for_selector("text=Another phone is connected.")
    driver.engage()


def test_a_reloaded_page_needs_no_code_but_a_new_tab_does(phone: Phone, driver: PhoneDriver) -> None:
    driver.page.reload()
    driver.page.wait_for_selector("#drive", state="visible")
    driver.release()
    driver.engage()
    other = driver.context.new_page()
    other.goto(phone.urls[0])
    assert other.is_visible("#pairing")


# ---- thumbs ----


def test_two_thumbs_move_the_arm_along_the_right_axes(phone: Phone, driver: PhoneDriver) -> None:
    driver.tap("speed100")
    for hold, pad, wanted in (
        ((0, 0), (0, 0), (0, 0, 0, 0, 0, 0)),
        ((0, 0.5), (0, 0), (0, 0, 0.5, 0, 0, 0)),
        ((0, -1), (0, 0), (0, 0, -1, 0, 0, 0)),
        ((-0.5, 0), (0, 0), (0, 0, 0, 0, 0, 0.5)),
        ((0.25, 0.75), (0, 1), (1, 0, 0.75, 0, 0, -0.25)),
        ((0, 0), (0, -0.5), (-0.5, 0, 0, 0, 0, 0)),
        ((0, 0), (-0.5, 0), (0, 0.5, 0, 0, 0, 0)),
        ((0, 0), (0.6, 0.8), (0.8, -0.6, 0, 0, 0, 0)),
    ):

        def move(hold: tuple[float, float] = hold, pad: tuple[float, float] = pad) -> None:
            driver.hold(*hold)
            driver.pad(*pad)

        def is_wanted(command: Command, wanted: tuple[float, ...] = wanted) -> bool:
            return bool(np.allclose(command.velocity, wanted, atol=0.02))

        reach(driver, phone, is_wanted, move)


def test_the_speed_is_a_share_that_the_buttons_choose(phone: Phone, driver: PhoneDriver) -> None:
    for button, speed in (("speed25", 0.25), ("speed50", 0.5), ("speed100", 1.0)):
        driver.release()
        driver.tap(button)
        driver.page.wait_for_selector(f"#{button}[aria-checked=true]")
        reach(driver, phone, lambda c, speed=speed: abs(c.velocity[2] - speed) < 0.01, lambda: driver.hold(0, 1))


def test_the_pad_alone_moves_nothing(phone: Phone, driver: PhoneDriver) -> None:
    driver.pad(0, 1)
    before = driver.page.evaluate("sequence")
    wait_for(lambda: driver.page.evaluate("sequence") > before + 10, "commands")
    assert phone.poll() == Command()
    assert driver.state == "off"


def test_both_pads_show_where_the_thumbs_are(driver: PhoneDriver) -> None:
    def middle(selector: str) -> np.ndarray:
        box = driver.page.locator(selector).bounding_box()
        return np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])

    assert not driver.page.is_visible("#hold .knob")
    driver.engage()
    driver.hold(-0.5, 0.5)
    driver.pad(0.5, 0)
    for pad, side in {"hold": (-1, -1), "pad": (1, 0)}.items():
        wait_for(
            lambda pad=pad, side=side: (np.sign((middle(f"#{pad} .knob") - middle(f"#{pad} .ring")).round()) == side).all(),
            "the knob",
        )
    driver.release()
    driver.page.wait_for_selector("#pad .knob", state="hidden")


# ---- what lets go ----


def test_letting_go_disengages_and_the_page_shows_it(phone: Phone, driver: PhoneDriver) -> None:
    def shown() -> list[str]:
        return list(driver.page.evaluate("[$('state').textContent, getComputedStyle($('frame')).borderTopColor]"))

    grey, green = "rgb(91, 102, 115)", "rgb(33, 216, 96)"
    wait_for(lambda: shown() == ["DISENGAGED", grey], "the first answer")
    reach(driver, phone, lambda _: shown() == ["ENGAGED", green], lambda: None)
    driver.lift("hold")
    until_let_go(driver, phone)
    wait_for(lambda: shown() == ["DISENGAGED", grey], "the sight of it")


@pytest.mark.parametrize(
    "what",
    [
        "document.getElementById('hold').dispatchEvent(new PointerEvent('pointercancel', {pointerId: hold.pointer}))",
        "window.dispatchEvent(new Event('pagehide'))",
        "Object.defineProperty(document, 'hidden', {value: true}); document.dispatchEvent(new Event('visibilitychange'))",
    ],
    ids=["a cancelled touch", "a page that is left", "a hidden page"],
)
def test_the_dead_man_switch_is_let_go_by(phone: Phone, driver: PhoneDriver, what: str) -> None:
    driver.engage()
    driver.page.evaluate(what)
    assert driver.page.evaluate("hold.active") is False
    until_let_go(driver, phone)
    driver._slide("hold", 0, 1)
    driver.page.wait_for_timeout(200)
    assert not phone.poll().engaged, "the thumb was not lifted since"


def test_a_page_that_loses_the_focus_lets_go(phone: Phone, driver: PhoneDriver) -> None:
    driver.devtools.send("Emulation.setFocusEmulationEnabled", {"enabled": False})
    driver.page.bring_to_front()
    driver.page.evaluate(
        "window.addEventListener('blur', () => { window.afterwards = hold.spent; })"
    )  # the page's listener was first
    driver.engage()
    driver.context.new_page().bring_to_front()
    until_let_go(driver, phone)
    driver.page.wait_for_function("window.afterwards !== undefined")
    assert driver.page.evaluate("window.afterwards") is True


def test_a_closed_page_lets_go_and_frees_the_phone(
    phone: Phone, driver: PhoneDriver, open_page: Callable[..., PhoneDriver]
) -> None:
    driver.engage()
    driver.close()
    wait_for(lambda: not phone.poll().engaged, "the end of the motion")
    wait_for(lambda: phone.session.connection is None, "the end of the connection")
    open_page().engage()


def test_a_lost_connection_lets_go_and_comes_back_by_itself_but_the_motion_does_not(phone: Phone, driver: PhoneDriver) -> None:
    driver.engage()
    driver.page.evaluate("socket.addEventListener('close', () => { window.afterwards = hold.active; })")
    operator = phone.session.connection
    assert operator
    phone._loop.call_soon_threadsafe(operator.socket._req.transport.abort)  # type: ignore[union-attr]
    until_let_go(driver, phone)
    driver.page.wait_for_selector("body[data-state=again]")  # connected anew; the thumb is still down
    assert driver.page.evaluate("window.afterwards") is False, "the page itself let go, before anybody told it to"
    assert phone.session.connection is not operator
    assert not phone.poll().engaged
    assert "THEN HOLD" in driver.page.inner_text("#hold-label")
    driver.engage()


def test_a_page_that_stalls_must_be_held_anew(phone: Phone, driver: PhoneDriver) -> None:
    driver.engage()
    driver.page.evaluate("const end = performance.now() + 300; while (performance.now() < end);")
    driver.page.wait_for_selector("body[data-state=again]")
    assert not phone.poll().engaged
    driver.lift("hold")
    driver.page.wait_for_selector("body[data-state=off]")
    reach(driver, phone, lambda _: True, lambda: None)


# ---- buttons, status, pictures ----


def test_buttons_are_events_while_the_other_thumb_holds(phone: Phone, driver: PhoneDriver) -> None:
    heard: list[str] = []
    phone.show({"recorder": "idle"})
    driver.page.wait_for_selector("#start:enabled")
    driver.engage()
    for button in ("start", "gripper", "home"):
        driver.tap(button)
    phone.show({"recorder": "recording", "seconds": 2.5})
    driver.page.wait_for_selector("#stop:enabled")
    driver.tap("start")  # disabled by now
    for button in ("stop", "fail", "discard"):
        driver.tap(button)
    wait_for(lambda: heard.extend(phone.events()) or "discard" in heard, "the events")
    assert heard == ["start", "gripper", "home", "stop", "fail", "discard"]
    assert driver.page.evaluate("hold.pointer !== null"), "the other thumb is still down"


def test_the_status_is_shown(phone: Phone, driver: PhoneDriver) -> None:
    phone.show(
        {"arm": "holding", "gripper": "closed", "recorder": "recording", "episode": "7", "seconds": 12.34, "problem": "<b>no</b>"}
    )
    driver.page.wait_for_selector("text=● REC 12.3 s · 7")
    assert driver.page.inner_text("#arm") == "holding"
    assert driver.page.inner_text("#gripper") == "Gripper: closed"
    assert driver.page.inner_text("#problem") == "<b>no</b>"
    phone.show({"arm": "holding", "gripper": "open", "recorder": "idle", "problem": ""})
    driver.page.wait_for_selector("text=Gripper: open")
    assert driver.page.inner_text("#recorder") == "idle"
    assert driver.page.inner_text("#problem") == ""


def test_both_cameras_are_shown_and_old_pictures_are_marked(phone: Phone, driver: PhoneDriver) -> None:
    colours = {"front": (200, 40, 40), "wrist": (40, 40, 200)}  # RGB
    for camera, colour in colours.items():
        image = np.full((120, 160, 3), colour[::-1], np.uint8)
        phone.show_frame(camera, cv2.imencode(".jpg", image)[1].tobytes())
    for index, (camera, colour) in enumerate(colours.items()):
        figure = f"#cameras figure:nth-child({index + 1})"
        driver.page.wait_for_selector(f"{figure} canvas[width='160'][height='120']")
        pixel = driver.page.evaluate(
            f"[...document.querySelector('{figure} canvas').getContext('2d').getImageData(80, 60, 1, 1).data]"
        )
        np.testing.assert_allclose(pixel, (*colour, 255), atol=8)
        assert driver.page.inner_text(f"{figure} figcaption") == camera
        driver.page.wait_for_selector(f"{figure}.old")
    phone.show_frame("front", b"not a picture")
    phone.show_frame("front", cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes())
    driver.page.wait_for_selector("canvas[width='80']")


@pytest.mark.parametrize("size", SIZES, ids=[f"{w}x{h}" for w, h in SIZES])
def test_everything_fits_on_the_screen_and_under_a_thumb(
    phone: Phone, open_page: Callable[..., PhoneDriver], size: tuple[int, int]
) -> None:
    driver = open_page(size=size, script=WEBXR)
    phone.show({"arm": "stopping", "gripper": "closed", "recorder": "recording", "seconds": 100.0, "problem": "a long story " * 30})
    driver.page.wait_for_selector("#stop:enabled")
    boxes = {name: driver.page.locator(f"#{name}").bounding_box() for name in (*BUTTONS, "ar", "hold", "pad", "problem", "cameras")}
    for name, box in boxes.items():
        assert box["x"] >= 8 and box["x"] + box["width"] <= size[0] - 8, name
        assert box["y"] >= 8 and box["y"] + box["height"] <= size[1] - 8, name
        if name in (*BUTTONS, "ar"):
            assert box["height"] >= 40 and box["width"] >= 48, name
            fits = driver.page.locator(f"#{name}").evaluate("button => button.scrollWidth <= button.clientWidth")
            assert fits, f"{name}'s text is wider than its button"
    assert min(boxes[pad][side] for pad in ("hold", "pad") for side in ("width", "height")) >= 140
    assert boxes["cameras"]["height"] >= 100
    overlap = [
        (a, b)
        for a in boxes
        for b in boxes
        if a < b
        and boxes[a]["x"] < boxes[b]["x"] + boxes[b]["width"] - 1
        and boxes[b]["x"] < boxes[a]["x"] + boxes[a]["width"] - 1
        and boxes[a]["y"] < boxes[b]["y"] + boxes[b]["height"] - 1
        and boxes[b]["y"] < boxes[a]["y"] + boxes[a]["height"] - 1
    ]
    assert not overlap


# ---- the phone's pose ----


def body(command: Command) -> np.ndarray:
    """Columns: where the phone's ahead, left and up point."""
    return quaternion_to_matrix(np.array(command.quaternion))


def test_tilting_turns_the_phone_s_pose(phone: Phone, driver: PhoneDriver) -> None:
    driver.tilt(0, 0, 0)
    driver.tap("tilt")
    driver.page.wait_for_selector("#tilt[aria-pressed=true]")
    c30, s30, c20, s20 = (f(np.radians(a)) for a in (30, 20) for f in (np.cos, np.sin))
    for angles, ahead, left in (
        ((0, 0, 0), (0, 1, 0), (-1, 0, 0)),  # the top of the phone is ahead, to the north
        ((30, 0, 0), (-s30, c30, 0), (-c30, -s30, 0)),  # turned to the left
        ((0, 30, 0), (0, c30, s30), (-1, 0, 0)),  # the top raised
        ((0, 0, 20), (0, 1, 0), (-c20, 0, s20)),  # the left side raised
        ((90, 30, 0), (-c30, 0, s30), (0, -1, 0)),
    ):
        wanted = np.column_stack([ahead, left, np.cross(ahead, left)])
        command = reach(
            driver,
            phone,
            lambda c, wanted=wanted: np.allclose(body(c), wanted, atol=0.01),
            lambda angles=angles: driver.tilt(*angles),
        )
        assert command.position == (0, 0, 0)
    driver.release()
    driver.tap("tilt")
    reach(driver, phone, lambda command: command.quaternion == (0, 0, 0, 1), lambda: None)


def test_in_ar_the_phone_s_pose_arrives_in_the_operator_s_axes(phone: Phone, open_page: Callable[..., PhoneDriver]) -> None:
    driver = open_page(script=WEBXR)
    driver.page.wait_for_selector("#ar", state="visible")
    driver.tap("ar")
    driver.page.wait_for_selector("#ar[aria-pressed=true]")
    assert driver.page.evaluate("[session.mode, session.options.domOverlay.root === document.body]") == ["immersive-ar", True]

    to_ours = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]])  # right, up, back -> ahead, left, up
    for seed in range(3):
        random = np.random.default_rng(seed)
        place = random.normal(size=3)
        turn = quaternion_from_rotation_vector(random.normal(size=3))
        names = ({k: float(v) for k, v in zip(keys, values, strict=True)} for keys, values in (("xyz", place), ("xyzw", turn)))
        driver.page.evaluate("([position, orientation]) => { xrPose = { transform: { position, orientation } } }", list(names))
        command = reach(
            driver, phone, lambda c, place=place: np.allclose(c.position, to_ours @ place), lambda: driver.page.wait_for_timeout(50)
        )
        np.testing.assert_allclose(body(command), to_ours @ quaternion_to_matrix(turn) @ to_ours.T, atol=1e-6)

    driver.page.evaluate("xrPose = null")  # it lost track of where it is
    until_let_go(driver, phone)
    driver.release()
    driver.tap("ar")
    driver.page.wait_for_selector("#ar[aria-pressed=false]")
    reach(driver, phone, lambda command: command.position == (0, 0, 0), lambda: None)


def test_ar_is_not_offered_where_there_is_none(driver: PhoneDriver) -> None:
    assert not driver.page.is_visible("#ar")
