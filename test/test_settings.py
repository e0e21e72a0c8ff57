"""Whatever a robot file or a teleoperation file holds, no value is taken that switches a protection off."""

import dataclasses
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.control.follow import FollowLimits
from onedp_ros.control.limits import SafetyLimits
from onedp_ros.resources import resource
from onedp_ros.robot.settings import SECTIONS, RobotSettings
from onedp_ros.settings import Choice, Range, expected_values, from_mapping
from onedp_ros.teleop.session import Motion

ROBOT = yaml.safe_load(resource("config", "robot", "franka.yaml").read_text(encoding="utf-8"))
MOTION = yaml.safe_load(resource("config", "teleop.yaml").read_text(encoding="utf-8"))["motion"]
KINDS = {**SECTIONS, "motion": Motion, "follow": FollowLimits}
DATA = {**ROBOT, "motion": MOTION, "follow": dataclasses.asdict(RobotSettings.from_dict(ROBOT).follow)}
FIELDS = [(section, name) for section, kind in KINDS.items() for name in expected_values(kind)]
NUMBERS = (math.nan, math.inf, -math.inf, 1e9, -1e9, 1.7e308, 10**400, -1e-9)
OTHERS = (None, True, "", "1e9", "text", {}, {"x": 1.0}, [], [[]], [None], "x" * 10_000)


def bad_values(expected: Range | Choice, good: Any) -> list[Any]:
    """Values that are no plausible ones of a field, whose plausible ones include ``good``."""
    if isinstance(expected, Choice):
        return [*NUMBERS, None, True, {}, "text", ["text"], [1.0], [["x"]], *(["x"] if expected.several else [""])]
    step = 0.01 * (expected.high - expected.low)
    outside = [v for v in (*NUMBERS, expected.low - step, expected.high + step) if not expected.low <= v <= expected.high]
    if not expected.count:
        return [*outside, *OTHERS, [good]]
    spoiled = [[*good[:i], v, *good[i + 1 :]] for v in (*outside, "1.0", None, True) for i in range(expected.count)]
    return [*spoiled, *NUMBERS, *OTHERS, good[:-1], [*good, good[0]], good[0]]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_refuses_what_is_implausible_and_says_field_value_range_and_reason(section: str, name: str) -> None:
    expected = expected_values(KINDS[section])[name]
    assert expected.why
    for bad in bad_values(expected, DATA[section][name]):
        with pytest.raises(ValueError, match=rf"{section}\.{name} is ") as raised:
            from_mapping(KINDS[section], section, {**DATA[section], name: bad})
        assert str(expected) in str(raised.value) and len(str(raised.value)) < 1000
        if section in SECTIONS:
            with pytest.raises(ValueError, match=rf"{section}\.{name} is "):
                RobotSettings.from_dict({**ROBOT, section: {**ROBOT[section], name: bad}})


@pytest.mark.parametrize("section", KINDS)
def test_missing_and_unknown_fields_are_named(section: str) -> None:
    for name in DATA[section]:
        with pytest.raises(ValueError, match=rf"section {section} lacks {name}"):
            from_mapping(KINDS[section], section, {key: value for key, value in DATA[section].items() if key != name})
    for unknown in ("stale_afer", None, 3, "x" * 10_000):
        with pytest.raises(ValueError, match=rf"section {section} holds") as raised:
            from_mapping(KINDS[section], section, {**DATA[section], unknown: 1.0})
        assert len(str(raised.value)) < 1000


def test_a_renamed_field_of_an_older_file_is_named_with_its_new_name() -> None:
    gripper = {key: value for key, value in ROBOT["gripper"].items() if key != "empty_width"}
    with pytest.raises(ValueError, match=r"section gripper holds 'nothing', which is called 'empty_width' now; rename it"):
        RobotSettings.from_dict({**ROBOT, "gripper": {**gripper, "nothing": 0.002}})


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings without plausible values."""

    steps: int
    rate: float = 1e-4
    name: str = ""
    betas: tuple[float, float] = (0.9, 0.999)
    channels: tuple[int, ...] = ()


def test_fields_without_plausible_values_are_of_their_annotations_types() -> None:
    assert from_mapping(Run, "run", {"steps": 3, "betas": [0, 1], "channels": [1, 2, 3]}) == Run(
        3, betas=(0, 1), channels=(1, 2, 3)
    )
    with pytest.raises(ValueError, match="section run lacks betas, channels, name, rate; give"):
        from_mapping(Run, "run", {"steps": 3}, complete=True)
    with pytest.raises(ValueError, match="section run lacks steps"):
        from_mapping(Run, "run", {})
    for name, bad in (
        *(("steps", v) for v in (1.0, True, "1", None)),
        *(("rate", v) for v in (True, "1", [1.0])),
        *(("name", v) for v in (1, None)),
        *(("betas", v) for v in ([0.9], [0.9, 0.9, 0.9], 0.9, "ab", [0.9, "x"])),
        *(("channels", v) for v in (3, ["x"], [1.0])),
    ):
        with pytest.raises(ValueError, match=rf"run\.{name} is "):
            from_mapping(Run, "run", {"steps": 1, name: bad})


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("servo", {"linear_speed": 3.0, "linear_acceleration": 0.5}, r"linear_acceleration 0\.5.*stop takes"),
        ("servo", {"angular_speed": 2.5, "angular_acceleration": 2.4}, r"angular_acceleration 2\.4.*stop takes"),
        ("safety", {"linear_speed": 3.0, "linear_deceleration": 0.5}, r"linear_deceleration 0\.5.*stop takes"),
        ("safety", {"workspace_min": [0.7, -0.45, 0.02]}, r"workspace_min.*0\.7.*increase by"),
        ("safety", {"opening": [0.05, 0.01]}, "opening.*increasing"),
        ("impedance", {"linear_stiffness": 3000.0, "linear_clip": 0.1}, "pushes with 300 N"),
        ("gripper", {"close_below": 0.06}, "close_below.*increasing"),
        ("gripper", {"width": 0.02, "open_above": 0.01, "close_below": 0.005, "empty_width": 0.015}, r"empty_width is 0\.015"),
    ],
)
def test_values_that_are_implausible_together_are_refused(section: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_mapping(KINDS[section], section, {**DATA[section], **change})


def test_speeds_may_be_a_hundredth_of_the_least() -> None:
    slow = RobotSettings.from_dict(ROBOT).slowed(0.01)
    assert slow.servo.linear_speed == pytest.approx(0.006)
    assert SafetyLimits.from_dict(ROBOT["safety"]).slowed(0.01).linear_speed == pytest.approx(0.008)


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.sampled_from(["joint_reflex", "1e9", -1, 0, 1e9])
)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=9) | st.dictionaries(leaves, v, max_size=3), max_leaves=12)


@st.composite
def robot_files(draw: st.DrawFn) -> Any:
    """The robot file with some fields changed, by much or by little, lost or added."""
    data = {section: dict(fields) for section, fields in ROBOT.items()}
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from(sorted(ROBOT)))
        name = draw(st.sampled_from(sorted(ROBOT[section])))
        before = ROBOT[section][name]
        if isinstance(before, float) and draw(st.booleans()):
            data[section][name] = before * draw(st.floats(0.01, 100.0))
        else:
            data[section][name] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        data[draw(st.sampled_from([section, name]))] = draw(values)
    return data


@settings(max_examples=400)
@given(st.one_of(robot_files(), values))
def test_a_random_robot_file_is_taken_within_the_ranges_or_refused_in_words(data: Any) -> None:
    try:
        taken = RobotSettings.from_dict(data)
    except ValueError as error:
        assert any(word in str(error) for word in ("expected", "lacks", "holds", "must be increasing")) and len(str(error)) < 2000
        return
    for section, kind in SECTIONS.items():
        for name, expected in expected_values(kind).items():
            value = getattr(getattr(taken, section), name)
            assert expected.check(name, value) == value == expected.check(name, data[section][name])
            if isinstance(expected, Range):
                numbers = value if expected.count else (value,)
                assert all(expected.low <= number <= expected.high for number in numbers)
    assert RobotSettings.from_dict(taken.to_dict()) == taken


@settings(max_examples=100)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_a_file_that_is_none_is_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "robot.yaml"
    path.write_bytes(content)
    for kind in (RobotSettings, SafetyLimits, Motion):
        with pytest.raises(ValueError, match=r"robot\.yaml"):
            kind.from_yaml(path)
