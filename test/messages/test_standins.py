"""The stand-ins for cv_bridge and message_filters give what the true ones give.

Where the true ones import, these tests run against both.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState

from onedp_ros.contract import ContractError
from onedp_ros.messages import standins as ros_standins
from onedp_ros.messages.decode import decode_image
from onedp_ros.messages.standins import (
    StandinCvBridge,
    StandinCvBridgeError,
    StandinSubscriber,
    StandinTimeSynchronizer,
)

BRIDGES = list({StandinCvBridge: StandinCvBridgeError, ros_standins.CvBridge: ros_standins.CvBridgeError}.items())
SYNCHRONIZERS = list({StandinTimeSynchronizer, ros_standins.TimeSynchronizer})
SUBSCRIBERS = list({StandinSubscriber, ros_standins.Subscriber})

RGB = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
ALPHA = np.full((6, 5, 1), 255, np.uint8)
PICTURES = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
}


def message(encoding: str, picture: np.ndarray, padding: int = 0, width: int | None = None) -> Image:
    rows = np.ascontiguousarray(picture).reshape(picture.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    image = Image(height=picture.shape[0], width=width or picture.shape[1], encoding=encoding, step=rows.shape[1])
    image.data.frombytes(rows.tobytes())
    return image


@pytest.mark.parametrize(("bridge", "error"), BRIDGES)
class TestCvBridge:
    @pytest.mark.parametrize("padding", [0, 3])
    @pytest.mark.parametrize("desired", list(PICTURES))
    @pytest.mark.parametrize("encoding", list(PICTURES))
    def test_colour_encodings_convert_into_each_other(
        self, bridge: Any, error: Any, encoding: str, desired: str, padding: int
    ) -> None:
        if padding % PICTURES[encoding].shape[2] and bridge is not StandinCvBridge:
            pytest.skip("cv_bridge takes rows of whole pixels only")
        image = bridge().imgmsg_to_cv2(message(encoding, PICTURES[encoding], padding), desired)
        np.testing.assert_array_equal(image, PICTURES[desired])
        assert image.dtype == np.uint8

    def test_grey_is_two_dimensional_and_spreads_to_colour(self, bridge: Any, error: Any) -> None:
        grey = RGB[..., 0]
        assert np.array_equal(bridge().imgmsg_to_cv2(message("mono8", grey)), grey)
        assert np.array_equal(bridge().imgmsg_to_cv2(message("mono8", grey), "rgb8"), np.repeat(grey[..., None], 3, axis=2))
        expected = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
        assert np.array_equal(bridge().imgmsg_to_cv2(message("rgb8", RGB), "mono8"), expected)

    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("mosaic", ["rggb", "bggr", "gbrg", "grbg"])
    def test_a_mosaic_becomes_the_colour_it_was_made_of(self, bridge: Any, error: Any, mosaic: str, bits: int) -> None:
        colour = {"r": 200, "g": 120, "b": 40}
        cell = np.array([colour[c] for c in mosaic]).reshape(2, 2)
        raw = np.tile(cell, (6, 8)).astype(np.uint8) if bits == 8 else np.tile(257 * cell, (6, 8)).astype("<u2")
        image = bridge().imgmsg_to_cv2(message(f"bayer_{mosaic}{bits}", raw.view(np.uint8), width=16), "rgb8")
        assert image.dtype == np.uint8 and image.shape == (12, 16, 3)
        np.testing.assert_array_equal(image, np.broadcast_to(np.uint8([200, 120, 40]), image.shape))

    @pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("yuv422_yuy2", "yuyv")])
    def test_two_pixels_share_the_colour_of_yuv422(self, bridge: Any, error: Any, encoding: str, order: str) -> None:
        y, u, v = 81, 90, 240  # red, by BT.601
        raw = np.tile(np.uint8([{"y": y, "u": u, "v": v}[c] for c in order]), (4, 4))
        red = bridge().imgmsg_to_cv2(message(encoding, raw, width=8), "rgb8")
        assert red.shape == (4, 8, 3)
        np.testing.assert_allclose(red, np.broadcast_to([254, 0, 0], red.shape), atol=2)

    @pytest.mark.parametrize("big", [False, True])
    @pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16", "mono16"])
    def test_16_bits_are_scaled_to_8(self, bridge: Any, error: Any, encoding: str, big: bool) -> None:
        depth = np.random.default_rng(1).integers(0, 65536, (6, 5, {"m": 1}.get(encoding[0], len(encoding) - 2)), dtype=np.uint16)
        made = message(encoding, depth.astype(">u2" if big else "<u2").view(np.uint8), width=5)
        made.is_bigendian = int(big)
        expected = np.rint(depth / 257).astype(np.uint8)
        if encoding.startswith("bgr"):
            expected = expected[..., 2::-1]
        expected = np.repeat(expected, 3, axis=2) if encoding == "mono16" else expected[..., :3]
        np.testing.assert_array_equal(bridge().imgmsg_to_cv2(made, "rgb8"), expected)

    def test_what_cannot_be_converted_is_a_cv_bridge_error(self, bridge: Any, error: Any) -> None:
        with pytest.raises(error, match="nonsense"):
            bridge().imgmsg_to_cv2(message("nonsense", RGB), "rgb8")
        with pytest.raises(error):
            bridge().imgmsg_to_cv2(message("rgb8", RGB), "nonsense")
        with pytest.raises(error):  # an odd width cannot be in pairs
            bridge().imgmsg_to_cv2(message("yuv422", RGB[..., :2]), "rgb8")
        short = message("rgb8", RGB)
        short.data = short.data[:-1]
        with pytest.raises(TypeError):  # the true one's error is NumPy's
            bridge().imgmsg_to_cv2(short, "rgb8")


@pytest.mark.parametrize(
    "wrong",
    [message("32FC1", RGB), Image(encoding="rgb8", height=6, width=5, step=15), CompressedImage(format="jpeg", data=b"no jpeg")],
)
def test_image_that_cannot_be_decoded_names_the_topic(wrong: Any) -> None:
    with pytest.raises(ContractError, match="front_camera: "):
        decode_image(wrong, "front_camera")


def test_a_few_bytes_that_claim_a_gigabyte_are_refused_before_they_take_it() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(ContractError, match=r"front_camera: .*PIXELS"):
        decode_image(CompressedImage(format="png", data=bomb), "front_camera")


def stamped(nanoseconds: int) -> JointState:
    joint_state = JointState()
    joint_state.header.stamp.sec, joint_state.header.stamp.nanosec = divmod(nanoseconds, 1_000_000_000)
    return joint_state


class Source:
    """What a synchroniser asks of a subscriber."""

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> None:
        self.send = lambda message: cb(message, *args)


@pytest.mark.parametrize("synchronizer", SYNCHRONIZERS)
def test_messages_of_one_stamp_come_together_in_the_order_of_the_subscribers(synchronizer: Any) -> None:
    first, second = Source(), Source()
    received: list[tuple[int, int, bool]] = []
    sync = synchronizer([first, second], 3)
    a = {stamp: stamped(stamp) for stamp in range(10)}
    b = {stamp: stamped(stamp) for stamp in range(10)}
    sync.registerCallback(
        lambda x, y, extra: received.append((x.header.stamp.nanosec, y.header.stamp.nanosec, x is a[x.header.stamp.nanosec])),
        "extra",
    )
    first.send(a[1])
    assert not received
    second.send(b[1])
    assert received == [(1, 1, True)]
    second.send(b[1])  # its partner is used up
    assert received == [(1, 1, True)]
    for stamp in (2, 3, 4, 5):  # more than the queue holds: 2 is forgotten
        first.send(a[stamp])
    for stamp in (2, 5, 3):
        second.send(b[stamp])
    assert received[1:] == [(5, 5, True), (3, 3, True)]


@pytest.fixture
def node() -> Iterator[Any]:
    context = Context()
    rclpy.init(context=context, domain_id=83)
    made = rclpy.create_node("standins", context=context)
    yield made
    made.destroy_node()
    context.shutdown()


@pytest.mark.parametrize("subscriber", SUBSCRIBERS)
def test_subscriber_passes_on_what_a_publisher_sends(node: Any, subscriber: Any) -> None:
    received: list[SimpleNamespace] = []
    filtered = subscriber(node, JointState, "joints", qos_profile=qos_profile_sensor_data)
    filtered.registerCallback(lambda message, name: received.append(SimpleNamespace(message=message, name=name)), "a")
    publisher = node.create_publisher(JointState, "joints", qos_profile_sensor_data)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    for _ in range(500):
        publisher.publish(stamped(5))
        executor.spin_once(timeout_sec=0.02)
        if received:
            break
    executor.shutdown()
    assert received[0].name == "a"
    assert received[0].message == stamped(5)
