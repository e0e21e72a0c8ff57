"""The contract: what it refuses, how sets are paired, and that no stream of messages breaks it."""

import contextlib
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onedp_ros.contract import (
    NANOSECONDS,
    Camera,
    Contract,
    ContractError,
    Normalizer,
    Observation,
    ObservationAssembler,
    ObservationHistory,
    task_contract,
)
from onedp_ros.geometry import rotation_angle
from onedp_ros.resources import resource

CONTRACT = task_contract("pnp_milk")
POSE, JOINTS, FINGERS = CONTRACT.arm.pose_topic, CONTRACT.arm.joint_states_topic, list(CONTRACT.arm.finger_joints)
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
MS = 1_000_000


def image(value: int = 0, shape: tuple[int, ...] = (120, 160, 3)) -> np.ndarray:
    return np.full(shape, value % 256, np.uint8)


def feed_states(assembler: ObservationAssembler, start: int, end: int, step: int = 5 * MS) -> None:
    for stamp in range(start, end + step, step):
        assembler.add_pose(POSE, stamp, [stamp / NANOSECONDS, 0, 0], DOWN)
        assembler.add_joints(JOINTS, stamp, FINGERS, [0.04, 0.04])


# ---- the contract itself


def with_camera(name: str, **fields: object) -> dict:
    return {**CONTRACT.to_dict(), "cameras": {name: {"topic": "camera", "height": 120, "width": 160, **fields}}}


EARLIER = {name: value for name, value in CONTRACT.to_dict().items() if name not in ("state", "action")} | {
    "joint_states_topic": "joint_states",
    "pose_topic": "current_pose",
    "finger_joints": ["left", "right"],
}


def test_contract_survives_yaml_and_json() -> None:
    assert Contract.from_dict(yaml.safe_load(yaml.safe_dump(CONTRACT.to_dict()))) == CONTRACT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_hz": 0.0}, "control_hz is 0.0, expected a positive number"),
        ({"slop": math.nan}, "slop is nan"),
        ({"n_obs_steps": 0}, "n_obs_steps is 0"),
        ({"n_action_steps": 16}, "exceeds the horizon 16"),
        ({"cameras": {}}, r"crop is \[108, 144\], expected none without cameras"),
        ({"crop": (121, 144)}, "crop .* does not fit the wrist camera's 120x160"),
        ({"crop": ()}, r"crop is \[\], expected height and width in pixels"),
    ],
)
def test_impossible_contract_names_the_field_and_value(change: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        dataclasses.replace(CONTRACT, **change)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "contract is None, expected a mapping"),
        ({**CONTRACT.to_dict(), "speed": 1}, r"unknown fields \['speed'\]"),
        ({"task": "pnp_milk"}, "lacks the fields"),
        ({**CONTRACT.to_dict(), "cameras": {"wrist": {"topic": "t"}}}, r"camera 'wrist' holds \['topic'\], expected exactly"),
        ({**CONTRACT.to_dict(), "cameras": [1]}, r"cameras is \[1\], expected a mapping"),
        ({**CONTRACT.to_dict(), "cameras": None}, "cameras is None, expected a mapping"),
        ({**CONTRACT.to_dict(), "crop": 3}, "crop is 3, expected a list of two"),
        ({**CONTRACT.to_dict(), "crop": [108.5, 144]}, "crop is 108.5, expected a whole number"),
        ({**CONTRACT.to_dict(), "control_hz": "20"}, "control_hz is '20', expected a positive number"),
        ({**CONTRACT.to_dict(), "control_hz": True}, "control_hz is True, expected a positive number"),
        ({**CONTRACT.to_dict(), "horizon": 10**9}, "horizon is 1000000000, expected a whole number, .* at most 1000"),
        ({**EARLIER, "finger_joints": "ab"}, "finger_joints is 'ab', expected a list of two"),
        ({**EARLIER, "finger_joints": [1, 2]}, r"joints is \(1, 2\), expected a list of joint names"),
        ({**EARLIER, "pose_topic": "a pose"}, "topic of the feature position 'a pose' is no name of a ROS topic"),
        ({**CONTRACT.to_dict(), "base_frame": ""}, "base_frame is '', expected the name of a TF frame"),
        ({**CONTRACT.to_dict(), "task": "../../etc"}, "task name '../../etc' cannot become part of a path: .* 'etc'; correct it"),
        ({**CONTRACT.to_dict(), "task": None}, "task name None cannot become part of a path"),
        (with_camera("arm/wrist"), "camera name 'arm/wrist' cannot become part of a path: .* 'arm_wrist'"),
        (with_camera("/tmp/x"), "camera name '/tmp/x' cannot"),
        (with_camera("state"), "camera name 'state' is reserved for another array in data sets; rename the camera"),
        (with_camera("w", height="120"), "the w camera's height is '120', expected a whole number, .*; remove the quotes"),
        (with_camera("w", width=10**9), "the w camera's width is 1000000000, expected .* at most 8192"),
        (with_camera("w", topic="a b"), "the w camera's topic 'a b' is no name of a ROS topic"),
    ],
)
def test_file_that_is_no_contract_is_refused(data: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Contract.from_dict(data)  # type: ignore[arg-type]


def test_task_files_are_contracts() -> None:
    files = sorted(resource("config", "tasks").glob("*.yaml"))
    assert files
    for file in files:
        assert Contract.from_yaml(file).task == file.stem


def test_difference_between_contracts_is_named() -> None:
    other = dataclasses.replace(CONTRACT, crop=(100, 144))
    with pytest.raises(ContractError, match=r"the node and the checkpoint differ in 'crop': \[108, 144\] against \[100, 144\]"):
        CONTRACT.require_same(other, "the node", "the checkpoint")
    CONTRACT.require_same(task_contract("pnp_milk"), "the node", "the checkpoint")


def test_chunk_and_history_are_spaced_by_the_training_step() -> None:
    stamp = 10 * NANOSECONDS
    assert CONTRACT.history_stamps(stamp) == [stamp - 50 * MS, stamp]
    actions = CONTRACT.action_stamps(stamp)
    assert actions[CONTRACT.n_obs_steps - 1] == stamp  # the action of the newest observation
    assert set(np.diff(actions)) == {50 * MS}


# ---- images


@pytest.mark.parametrize(
    "wrong",
    [
        image(shape=(120, 160)),
        image(shape=(120, 160, 4)),
        image(shape=(60, 80, 3)),
        image(shape=(480, 848, 3)),
        image(shape=(0, 0, 3)),
        np.zeros((120, 160, 3), np.float32),
        np.zeros((120, 160, 3), np.uint16),
    ],
)
def test_wrong_image_is_refused_by_topic_with_what_is_expected(wrong: np.ndarray) -> None:
    with pytest.raises(ContractError, match=r"wrist_camera/color/image_raw: image is .*expected"):
        ObservationAssembler(CONTRACT).add_image("wrist", 0, wrong)


def test_image_of_the_size_is_kept_and_a_larger_one_is_averaged() -> None:
    camera = Camera("camera", 120, 160)
    same = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    assert camera.fit(same) is same
    larger = np.repeat(np.repeat(same, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(camera.fit(larger), same)


# ---- state and action

floats = st.floats(-2, 2)
unit_quaternions = (
    arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1).map(lambda q: q / np.linalg.norm(q))
)


@given(arrays(np.float64, 3, elements=floats), unit_quaternions, st.floats(0, 0.08))
def test_action_decodes_to_what_was_encoded(position: np.ndarray, quaternion: np.ndarray, opening: float) -> None:
    p, q, o = CONTRACT.arm.decode_action(CONTRACT.arm.encode_action(position, quaternion, opening))
    np.testing.assert_allclose(p, position, atol=1e-6)
    assert rotation_angle(q, quaternion) < 1e-3
    assert o == pytest.approx(opening, abs=1e-6)


@settings(max_examples=300)
@given(arrays(np.float32, st.sampled_from([(10,), (16, 10), (9,), (2, 3, 10), ()]), elements=st.floats(width=32)))
def test_any_numbers_decode_to_finite_targets_or_a_contract_error(action: np.ndarray) -> None:
    try:
        p, q, o = CONTRACT.arm.decode_action(action)
    except ContractError:
        return
    assert p.shape == (*action.shape[:-1], 3) and o.shape == action.shape[:-1]
    assert np.all(np.isfinite(p)) and np.all(np.isfinite(o))
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1.0, atol=1e-6)


@given(arrays(np.float64, 3, elements=floats), unit_quaternions)
def test_a_quaternion_and_its_negative_are_one_state(position: np.ndarray, quaternion: np.ndarray) -> None:
    state = CONTRACT.arm.encode_state(position, quaternion, [0.01, 0.02])
    assert state.dtype == np.float32 and state.shape == (CONTRACT.state_dim,)
    assert state[3] >= 0
    if quaternion[0] != 0:
        np.testing.assert_array_equal(state, CONTRACT.arm.encode_state(position, -quaternion, [0.01, 0.02]))


def test_states_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(ContractError, match=r"NaN or infinity in \['position.y', 'finger.2'\]"):
        CONTRACT.arm.encode_state(np.array([0, np.nan, 0]), DOWN, [0, np.inf])
    with pytest.raises(ContractError, match=r"length 0\.000, expected a unit quaternion"):
        CONTRACT.arm.encode_state(np.zeros(3), np.zeros(4), [0, 0])


def test_normaliser_spans_the_range_leaves_rotations_and_survives_json() -> None:
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, (100, 9)).astype(np.float32)
    action = rng.uniform(-1, 1, (100, 10)).astype(np.float32)
    normalizer = Normalizer.fit(CONTRACT, state, action)
    normal = (action - normalizer.action_offset) / normalizer.action_scale
    np.testing.assert_allclose([normal[:, :3].min(0), normal[:, :3].max(0)], [[-1] * 3, [1] * 3], atol=1e-6)
    np.testing.assert_array_equal(normal[:, 3:9], action[:, 3:9])
    again = Normalizer.from_dict(normalizer.to_dict(), CONTRACT)
    for field in dataclasses.fields(Normalizer):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(normalizer, field.name))


# ---- pairing


def test_set_pairs_the_nearest_frames_and_interpolates_the_state() -> None:
    assembler = ObservationAssembler(CONTRACT)
    feed_states(assembler, 0, 100 * MS, 10 * MS)
    for k in range(4):
        assembler.add_image("wrist" if k % 2 == 0 else "front", 17 * MS * k, image(k))
    first, second, third = assembler.pop()
    assert [o.stamp for o in (first, second, third)] == [17 * MS, 34 * MS, 51 * MS]
    assert second.image_stamps == {"wrist": 34 * MS, "front": 17 * MS}
    assert (second.images["wrist"][0, 0, 0], second.images["front"][0, 0, 0]) == (2, 1)
    assert second.state[0] == pytest.approx(0.034)  # between the samples at 30 and 40 ms
    assert assembler.pop() == []


def test_set_waits_for_the_state_that_encloses_it() -> None:
    assembler = ObservationAssembler(CONTRACT)
    feed_states(assembler, 0, 15 * MS)
    assembler.add_image("front", 0, image())
    assembler.add_image("wrist", 17 * MS, image())
    assert assembler.pop() == []
    assembler.add_pose(POSE, 20 * MS, [0, 0, 0], DOWN)
    assert assembler.pop() == []
    assembler.add_joints(JOINTS, 20 * MS, FINGERS, [0, 0])
    assert [o.stamp for o in assembler.pop()] == [17 * MS]


def test_camera_that_stops_is_counted_and_makes_no_set() -> None:
    assembler = ObservationAssembler(CONTRACT)
    feed_states(assembler, 0, 400 * MS)
    assembler.add_image("front", 0, image())
    for k in range(10):
        assembler.add_image("wrist", 33 * MS * k, image())
    assert len(assembler.pop()) == 1  # the first only
    assert assembler.dropped["no front frame within slop"] == 9


def test_state_that_stops_is_counted_and_makes_no_set() -> None:
    assembler = ObservationAssembler(CONTRACT)
    feed_states(assembler, 0, 10 * MS)
    for k in range(40):
        assembler.add_image("wrist" if k % 2 else "front", 20 * MS + 17 * MS * k, image())
        assert assembler.pop() == []
    assert assembler.dropped["no state at the stamp"] > 20


def test_clock_that_goes_back_starts_again() -> None:
    assembler = ObservationAssembler(CONTRACT)
    for start in (100 * NANOSECONDS, 0):
        feed_states(assembler, start, start + 50 * MS)
        assembler.add_image("front", start, image())
        assembler.add_image("wrist", start + 17 * MS, image())
        assert [o.stamp for o in assembler.pop()] == [start + 17 * MS]
    assert sum(count for reason, count in assembler.dropped.items() if "jumped back" in reason) >= 1


def test_missing_finger_joint_names_the_joints_and_the_remedy() -> None:
    with pytest.raises(ContractError, match=r"joint_states has joints \['a'\].*use the message's joint names"):
        ObservationAssembler(CONTRACT).add_joints(JOINTS, 0, ["a"], [0.0])


faults = st.sampled_from([None] * 20 + ["small", "larger", "float", "empty", "nan", "zero", "missing", "short", "back", "future"])
sources = st.sampled_from(["wrist", "front", "pose", "pose", "joints", "joints"])
streams = st.lists(st.tuples(sources, st.integers(-20, 20), faults), min_size=20, max_size=200)


def send(assembler: ObservationAssembler, source: str, stamp: int, fault: str | None) -> None:
    """One message, sound or with a fault."""
    stamp += {"back": -60 * NANOSECONDS, "future": 3 * NANOSECONDS}.get(fault or "", 0)
    if source in ("wrist", "front"):
        shapes = {"small": (2, 2, 3), "larger": (240, 320, 3), "empty": ()}
        picture = image(stamp, shapes.get(fault or "", (120, 160, 3)))
        assembler.add_image(source, stamp, picture.astype(np.float32) if fault == "float" else picture)
    elif source == "pose":
        value = {"nan": np.nan, "zero": 0.0}.get(fault or "", 1.0)
        assembler.add_pose(POSE, stamp, [0.1, 0.2, value], value * DOWN)
    else:
        names = ["other"] if fault == "missing" else ["other", *FINGERS]
        value = np.nan if fault == "nan" else 0.03
        assembler.add_joints(JOINTS, stamp, names, [0.0] if fault == "short" else [0.0, 0.02, value])


@settings(max_examples=200, deadline=None)
@given(streams)
def test_no_stream_of_messages_breaks_the_assembler(stream: list[tuple[str, int, str | None]]) -> None:
    assembler = ObservationAssembler(CONTRACT)
    last, jumps = -1, 0
    for i, (source, jitter, fault) in enumerate(stream):
        with contextlib.suppress(ContractError):
            send(assembler, source, 60 * NANOSECONDS + (4 * i + jitter) * MS, fault)
        jumps_now = sum(count for reason, count in assembler.dropped.items() if "jumped back" in reason)
        if jumps_now > jumps:  # the clock went back, so may the sets
            jumps, last = jumps_now, -1
        for observation in assembler.pop():
            assert observation.stamp > last
            last = observation.stamp
            stamps = observation.image_stamps
            assert max(stamps.values()) == observation.stamp
            assert observation.stamp - min(stamps.values()) <= CONTRACT.slop * NANOSECONDS
            assert set(observation.images) == {"wrist", "front"}
            assert all(i.shape == (120, 160, 3) and i.dtype == np.uint8 for i in observation.images.values())
            assert observation.state.shape == (9,) and np.all(np.isfinite(observation.state))


# ---- history


def observation(stamp: int) -> Observation:
    return Observation(stamp, {}, {}, np.zeros(9, np.float32))


@pytest.mark.parametrize("rate", [20, 30, 60, 100])
def test_history_is_spaced_by_time_whatever_the_rate(rate: int) -> None:
    history = ObservationHistory(CONTRACT)
    for k in range(rate):
        history.add(observation(round(k * NANOSECONDS / rate)))
        window = history.window()
        assert window is not None and len(window) == CONTRACT.n_obs_steps
        if k > rate // 10:
            older, newest = window
            assert abs(newest.stamp - older.stamp - CONTRACT.dt_ns) <= NANOSECONDS / rate / 2 + 1


def test_history_repeats_the_newest_at_the_start_and_after_a_gap() -> None:
    history = ObservationHistory(CONTRACT)
    assert history.window() is None
    for stamp in (0, 10 * MS, 500 * MS):
        history.add(observation(stamp))
        window = history.window()
        assert window is not None
        assert [o.stamp for o in window] == [stamp, stamp]


def test_history_forgets_when_the_clock_goes_back() -> None:
    history = ObservationHistory(CONTRACT)
    for stamp in (NANOSECONDS, NANOSECONDS + 50 * MS, 50 * MS):
        history.add(observation(stamp))
    window = history.window()
    assert window is not None
    assert [o.stamp for o in window] == [50 * MS, 50 * MS]


def test_the_documented_task_file_for_wide_cameras_takes_them(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "set-up-cameras.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "pour.yaml").write_text(example, encoding="utf-8")
    contract = Contract.from_yaml(tmp_path / "pour.yaml")
    for height, width in ((720, 1280), (1080, 1920), (90, 160)):
        assert contract.cameras["wrist"].fit(np.zeros((height, width, 3), np.uint8)).shape == (90, 160, 3)


@pytest.mark.parametrize("size", [(720, 1280), (480, 848), (1080, 1920), (1200, 1600), (97, 101), (1, 10_000), (5000, 3)])
def test_an_image_of_another_shape_is_told_what_would_fit_it(size):
    height, width = size
    with pytest.raises(ContractError, match="or, before recording data, set in the task file height: ") as error:
        Camera("cam", 120, 170).fit(np.zeros((height, width, 3), np.uint8))
    told = {name: int(value) for name, value in re.findall(r"(height|width): (\d+)", str(error.value))}
    assert Camera("cam", **told).fit(np.zeros((height, width, 3), np.uint8)).shape[:2] == (told["height"], told["width"])
    assert told["height"] <= max(240, height // np.gcd(height, width))
    crop = [int(v) for v in re.search(r"crop: \[(\d+), (\d+)\]", str(error.value)).groups()]
    assert 0 < crop[0] <= told["height"] and 0 < crop[1] <= told["width"]


def test_cameras_must_be_as_fast_as_the_steps_and_as_near_to_each_other_as_the_slop():
    assert CONTRACT.least_camera_hz == 20.0
    assert dataclasses.replace(CONTRACT, slop=0.01).least_camera_hz == pytest.approx(50.0)
    one = {"front": CONTRACT.cameras["front"]}
    assert dataclasses.replace(CONTRACT, slop=0.01, cameras=one).least_camera_hz == 20.0


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e39, 2e4])
def test_huge_measurements_are_refused_and_never_come_out_of_pop(value):
    assembler = ObservationAssembler(CONTRACT)
    with pytest.raises(ContractError, match="out of reach"):
        assembler.add_pose(POSE, 1, (value, 0.0, 0.3), (1.0, 0.0, 0.0, 0.0))
    with pytest.raises(ContractError, match="implausible"):
        assembler.add_joints(JOINTS, 1, FINGERS, [0.02, value])
