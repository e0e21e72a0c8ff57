"""Draws teleop.png from config/teleop.yaml, the keyboard's keys and phone.png: python docs/images/make_teleop_picture.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from onedp_ros.teleop.devices.keyboard import EVENT_KEYS, HOME, MOVES

IMAGES = Path(__file__).parent
DIRECTIONS = {
    "x": ("ahead", "back"),
    "y": ("left", "right"),
    "z": ("up", "down"),
    "roll": ("roll +", "roll -"),
    "pitch": ("pitch +", "pitch -"),
    "yaw": ("turn ⟲", "turn ⟳"),
}
EVENTS = {
    "gripper": "gripper",
    "start": "record\n(and end)",
    "stop": "end:\nsuccess",
    "fail": "end:\nfailure",
    "discard": "discard",
    "home": "home",
}
ROWS = ("1234   -+", "qwer uio ", "asdf h k ")
STICKS = {
    "spacemouse": {0: "cap: push", 1: "cap: sideways", 2: "cap: lift", 3: "cap: roll", 4: "cap: tip", 5: "cap: twist"},
    "gamepad": {0: "left stick ↔", 1: "left stick ↕", 3: "right stick ↔", 4: "right stick ↕"},
}
BUTTONS = {
    "spacemouse": {0: "left button", 1: "right button"},
    "gamepad": {0: "A", 1: "B", 2: "X", 3: "Y", 4: "LB", 6: "Back", 7: "Start"},
}


def key_text(key: str) -> str:
    if key in MOVES:
        axis = next(i for i, v in enumerate(MOVES[key]) if v)
        return DIRECTIONS[list(DIRECTIONS)[axis]][MOVES[key][axis] < 0]
    return {HOME: "home\n(hold)", "-": "slower", "+": "faster", **{k: EVENTS[e] for k, e in EVENT_KEYS.items()}}[key]


def draw_key(axes: Axes, x: float, y: float, width: float, name: str, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, 0.86, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec="#444444"))
    axes.text(x + 0.1, y + 0.62, name, fontsize=9, fontweight="bold", va="center")
    axes.text(x + width / 2, y + 0.26, text, fontsize=7.5, va="center", ha="center", linespacing=0.95)


def draw_keyboard(axes: Axes) -> None:
    for row, keys in enumerate(ROWS):
        for column, key in enumerate(keys):
            if key != " ":
                colour = "#cfe8cf" if key in MOVES or key == HOME else "#f4d9c6" if key in EVENT_KEYS else "#dddddd"
                draw_key(axes, column + 0.25 * row, -row, 0.92, key.upper(), key_text(key), colour)
    draw_key(axes, 1.5, -3, 4.0, "space", "gripper: open, close", "#f4d9c6")
    axes.set(xlim=(-0.2, 9.8), ylim=(-3.2, 1.5), title="keyboard: a key moves the arm while it is held")


def draw_table(axes: Axes, device: str, data: dict) -> None:
    rows = []
    for name, (index, sign) in data["axes"].items():
        positive, negative = DIRECTIONS[name]
        rows.append((STICKS[device][index], f"{positive} / {negative}" if sign > 0 else f"{negative} / {positive}"))
    held = "moving the cap" if data["dead_man_switch"] < 0 else BUTTONS[device][data["dead_man_switch"]] + ", held"
    rows.append((held, "dead-man switch"))
    rows += [(BUTTONS[device][index], EVENTS[event].replace("\n", " ")) for event, index in data["buttons"].items()]
    table = axes.table(cellText=rows, loc="upper center", cellLoc="left", colWidths=[0.45, 0.45], edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.25)
    axes.set_title({"spacemouse": "SpaceMouse", "gamepad": "gamepad (Xbox layout)"}[device])


def main() -> None:
    data = yaml.safe_load((IMAGES.parents[1] / "config" / "teleop.yaml").read_text(encoding="utf-8"))
    figure = plt.figure(figsize=(13, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[1, 1.05, 1.05], height_ratios=[1, 1.15])
    phone, keyboard, mouse, pad = (
        figure.add_subplot(grid[place]) for place in ((slice(None), 0), (0, slice(1, 3)), (1, 1), (1, 2))
    )
    phone.imshow(plt.imread(IMAGES / "phone.png"))
    phone.set_title("phone: hold left, slide both")
    draw_keyboard(keyboard)
    draw_table(mouse, "spacemouse", data["spacemouse"])
    draw_table(pad, "gamepad", data["gamepad"])
    for axes in (phone, keyboard, mouse, pad):
        axes.axis("off")
    keyboard.set_aspect("equal")
    figure.savefig(IMAGES / "teleop.png", dpi=90)


if __name__ == "__main__":
    main()
