"""ROS messages of any content that their types allow, for Hypothesis."""

from __future__ import annotations

import copy
import importlib
import math
import re
from typing import Any

from hypothesis import strategies as st

INTEGERS = {"boolean": None, "octet": None} | {
    f"{sign}int{bits}": (0 if sign else -(2 ** (bits - 1)), 2**bits - 1 if sign else 2 ** (bits - 1) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
WORDS = [
    "",
    "base",
    "world",
    "rgb8",
    "bgr8",
    "mono8",
    "16UC1",
    "yuv422",
    "bayer_rggb8",
    "rgb16",
    "jpeg",
    "gripper",
    "nan",
    "inf",
    "-1e999",
]
NAMES = ["fr3_finger_joint1", "fr3_finger_joint2", "recorder_node", "teleop_node", "seconds", "state", "episode", "x" * 1000]
DOUBLES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.7e308, -1.7e308, 3.5e38, 5e-324, 1e-200, 1e9, 255.0]
MOST = 12  # elements of a sequence


def scalars(kind: str) -> st.SearchStrategy[Any]:
    """Values of a type that is no message."""
    if kind == "double":
        return st.sampled_from(DOUBLES) | st.floats()
    if kind == "float":
        return st.sampled_from([math.nan, math.inf, 0.0, 3.4028234663852886e38]) | st.floats(width=32)
    if kind.startswith(("string", "wstring")):
        return st.sampled_from(WORDS + NAMES) | st.text(max_size=20)
    if kind == "boolean":
        return st.booleans()
    if kind == "octet":
        return st.binary(min_size=1, max_size=1)
    low, high = INTEGERS[kind]
    return st.sampled_from([v for v in (0, 1, 2, 160, 120, 480, 10_000, low, high) if low <= v <= high]) | st.integers(low, high)


def of_kind(kind: str) -> st.SearchStrategy[Any]:
    """Values of a field's type as ``get_fields_and_field_types`` names it."""
    if match := re.fullmatch(r"sequence<(.*?)(?:, \d+)?>", kind):
        if match[1] == "uint8":
            return st.binary(max_size=200) | st.just(bytes(57600))
        if match[1] in ("double", "float") or "/" not in match[1]:
            return st.lists(scalars(match[1]), max_size=MOST)
        return st.lists(of_kind(match[1]), max_size=3)
    if match := re.fullmatch(r"(.*)\[(\d+)\]", kind):
        return st.lists(of_kind(match[1]), min_size=int(match[2]), max_size=int(match[2]))
    if "/" in kind:
        package, name = kind.split("/")
        return anything(getattr(importlib.import_module(f"{package}.msg"), name))
    return scalars(kind)


def anything(message_type: Any) -> st.SearchStrategy[Any]:
    """Messages with every field at random."""
    return st.builds(message_type, **{n: of_kind(k) for n, k in message_type.get_fields_and_field_types().items()})


@st.composite
def spoilt(draw: st.DrawFn, template: Any) -> Any:
    """Copies of a message with one to three of its fields, at any depth, at random."""
    message = copy.deepcopy(template)
    for _ in range(draw(st.integers(0, 3))):
        at = message
        while True:
            fields = at.get_fields_and_field_types()
            name = draw(st.sampled_from(sorted(fields)))
            value, kind = getattr(at, name), fields[name]
            if hasattr(value, "get_fields_and_field_types"):
                at = value
            elif isinstance(value, list) and value and hasattr(value[0], "get_fields_and_field_types") and draw(st.booleans()):
                at = draw(st.sampled_from(value))
            else:
                setattr(at, name, draw(of_kind(kind)))
                break
    return message


def near(template: Any) -> st.SearchStrategy[Any]:
    """Messages at random, most of them nearly the template."""
    return st.one_of(spoilt(template), spoilt(template), spoilt(template), anything(type(template)))
