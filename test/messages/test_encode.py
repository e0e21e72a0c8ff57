import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: a sourced distribution, or its wheels (make venv)")

from hypothesis import given, settings
from hypothesis import strategies as st

from onedp_ros.contract import ContractError, task_contract
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.decode import chunk_from_message, decode_image, observation_from_messages, stamp_ns
from onedp_ros.messages.encode import (
    camera_info,
    chunk_message,
    header,
    image_message,
    pose_message,
    state_message,
)
from onedp_ros.nodes.lib.diagnostics import Percentiles, counted, worst

CONTRACT = task_contract("pnp_milk")
STAMP = 1_700_000_000_123_456_789
numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


def chunk(rows):
    values = np.array(rows, dtype=np.float64).reshape(-1, 8)
    stamps = STAMP + (np.arange(len(values), dtype=np.int64) - 1) * CONTRACT.dt_ns
    return ActionChunk(STAMP, stamps, values[:, :3], values[:, 3:7], values[:, 7])


@given(st.lists(st.tuples(*[numbers] * 8), max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_chunk_survives_its_message_whatever_it_holds(rows):
    sent = chunk(rows)
    received = chunk_from_message(chunk_message(sent, "base"), "base")
    assert received.stamp == STAMP
    for name in ("stamps", "positions", "quaternions", "openings"):
        np.testing.assert_array_equal(getattr(received, name), getattr(sent, name))


def test_times_before_the_stamp_have_negative_seconds():
    first = chunk_message(chunk([[0.0] * 8] * 2), "base").points[0].time_from_start
    assert (first.sec, first.nanosec) == (-1, 950_000_000)


def test_chunks_of_other_frames_joints_or_points_are_refused():
    message = chunk_message(chunk([[0.0] * 8] * 2), "world")
    with pytest.raises(ContractError, match="'world'"):
        chunk_from_message(message, "base")
    message.header.frame_id = "base"
    message.points[1].transforms = message.points[1].transforms[:1]
    with pytest.raises(ContractError, match="transform"):
        chunk_from_message(message, "base")
    message = chunk_message(chunk([[0.0] * 8] * 2), "base")
    message.joint_names = ["gripper", "end_effector"]
    with pytest.raises(ContractError, match="expected"):
        chunk_from_message(message, "base")


def test_images_keep_every_byte():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    message = image_message(image, STAMP, "camera")
    assert stamp_ns(message) == STAMP
    np.testing.assert_array_equal(decode_image(message, "camera"), image)


def observation_messages():
    state = np.array([0.5, 0.1, 0.3, 1, 0, 0, 0, 0.02, 0.03], np.float32)
    images = {name: image_message(np.full((120, 160, 3), i, np.uint8), STAMP) for i, name in enumerate(CONTRACT.cameras)}
    return images, state_message(CONTRACT, state, STAMP), state


def test_an_observation_survives_its_messages():
    images, message, state = observation_messages()
    observation = observation_from_messages(CONTRACT, images, message)
    assert observation.stamp == STAMP
    np.testing.assert_array_equal(observation.state, state)
    assert [int(observation.images[name][5, 5, 1]) for name in CONTRACT.cameras] == [0, 1]


def test_observations_against_the_contract_are_refused():
    images, message, _ = observation_messages()
    message.position[1] = float("nan")
    with pytest.raises(ContractError, match="NaN"):
        observation_from_messages(CONTRACT, images, message)
    images, message, _ = observation_messages()
    message.name = list(reversed(CONTRACT.state_names))
    with pytest.raises(ContractError, match="expected"):
        observation_from_messages(CONTRACT, images, message)
    images, message, _ = observation_messages()
    images["wrist"] = image_message(np.zeros((60, 80, 3), np.uint8), STAMP)
    with pytest.raises(ContractError, match="observation/wrist/image is rgb8 80x60"):
        observation_from_messages(CONTRACT, images, message)


def test_poses_and_stamps():
    message = pose_message([1, 2, 3], [0, 0, 0, 1], STAMP, "base")
    assert (message.pose.position.z, message.pose.orientation.w, message.header.frame_id) == (3.0, 1.0, "base")
    assert stamp_ns(message) == STAMP
    assert header(-1).stamp.sec == -1


def test_diagnostic_helpers():
    latencies = Percentiles()
    assert latencies.values("ms") == {}
    for value in range(101):
        latencies.add(value)
    assert latencies.values("ms") == {"ms_p50": 50.0, "ms_p95": 95.0, "ms_p99": 99.0}
    assert counted("dropped", {"no frame": 2, "late": 1}) == {"dropped.late": 1, "dropped.no_frame": 2}
    assert worst(None, (b"\x01", "a"), (b"\x02", "b"), (b"\x02", "c"), fine="ok") == (b"\x02", "b; c")
    assert worst(None, fine="ok")[1] == "ok"


def test_camera_info_projects_as_the_field_of_view_says() -> None:
    """A ray at half the field of view above the axis leaves the picture at its upper edge, half a pixel above the first centres."""
    info = camera_info(120, 160, 1.0)
    k = np.reshape(info.k, (3, 3))
    u, v, one = k @ [0.0, -np.tan(0.5), 1.0]
    assert (u, v, one) == pytest.approx((79.5, -0.5, 1.0))
    assert np.reshape(info.p, (3, 4))[:, :3].tolist() == k.tolist() and list(info.r) == np.eye(3).flatten().tolist()
