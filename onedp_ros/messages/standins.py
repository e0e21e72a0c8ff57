"""cv_bridge and message_filters: the distribution's if they can be imported, otherwise stand-ins with the same calls and results.

ROS 2 from wheels has neither. ``from onedp_ros.messages.standins import CvBridge, CvBridgeError, Subscriber, TimeSynchronizer``
gets the real ones on a machine with ROS 2 installed. Only what this package uses is here. No rclpy: a subscription is made
by the node that is passed in.

Sources: https://docs.ros.org/en/jazzy/p/cv_bridge/, https://docs.ros.org/en/jazzy/p/message_filters/.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NANOSECONDS = 1_000_000_000
DESIRED = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")
FAMILIES = {  # of encodings: OpenCV's name, suffix of the name of OpenCV's conversion, channels, bits
    **{name: (name.upper(), "", len(name), (8, 16)) for name in ("rgb", "bgr", "rgba", "bgra")},
    "mono": ("GRAY", "", 1, (8, 16)),
    "yuv422": ("YUV", "_UYVY", 2, ("",)),
    "yuv422_yuy2": ("YUV", "_YUY2", 2, ("",)),
    # OpenCV names a Bayer pattern by the second row's second and third pixel.
    **{f"bayer_{a}": (f"Bayer{b}", "", 1, (8, 16)) for a, b in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB"))},
}
ENCODINGS = {f"{name}{bits}": name for name, (*_, depths) in FAMILIES.items() for bits in depths}
"""The encodings that cv_bridge converts to rgb8, with their family."""


class StandinCvBridgeError(TypeError):
    """An image that cannot be converted; names the encoding."""


class StandinCvBridge:
    """cv_bridge.CvBridge for :data:`ENCODINGS`, and their conversion to :data:`DESIRED`."""

    def imgmsg_to_cv2(self, img_msg: Any, desired_encoding: str = "passthrough") -> NDArray[np.uint8]:
        """sensor_msgs/Image -> (height, width, channels) uint8, or (height, width) for one channel; uint16 when a 16-bit image is
        passed through. Rows may be padded (``step``).

        Raises:
            CvBridgeError: an unsupported encoding, an impossible conversion, or fewer bytes than the image's size requires.
        """
        channels, size = _channels(img_msg.encoding), 2 if img_msg.encoding.endswith("16") else 1
        data = np.frombuffer(bytes(img_msg.data) if isinstance(img_msg.data, list) else img_msg.data, dtype=np.uint8)
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        row = width * channels * size
        if step < row or data.size < height * step:
            raise StandinCvBridgeError(
                f"{img_msg.encoding} image of {width}x{height} with step {step} holds {data.size} bytes, "
                f"expected a step of at least {row} and height * step bytes"
            )
        rows = np.ascontiguousarray(data[: height * step].reshape(height, step)[:, :row])
        if size == 2:
            rows = rows.view(">u2" if img_msg.is_bigendian else "<u2").astype(np.uint16)
        image = rows if channels == 1 else rows.reshape(height, width, channels)
        return image if desired_encoding == "passthrough" else _convert(image, img_msg.encoding, desired_encoding)


def _channels(encoding: str) -> int:
    if encoding not in ENCODINGS:
        raise StandinCvBridgeError(f"image encoding '{encoding}' is not supported; publish one of {', '.join(ENCODINGS)}")
    return FAMILIES[ENCODINGS[encoding]][2]


def _convert(image: NDArray[Any], source: str, desired: str) -> NDArray[np.uint8]:
    if desired not in DESIRED:
        raise StandinCvBridgeError(f"image encoding '{desired}' is not supported; ask for one of {', '.join(DESIRED)}")
    if (1 if image.ndim < 3 else image.shape[2]) != _channels(source):
        raise StandinCvBridgeError(f"image of shape {image.shape} is not {source}; cannot convert it to {desired}")
    if (ours := ENCODINGS[source]) != (theirs := ENCODINGS[desired]):
        code = f"COLOR_{FAMILIES[ours][0]}2{FAMILIES[theirs][0]}{FAMILIES[ours][1]}"
        try:
            image = cv2.cvtColor(image, getattr(cv2, code))
        except (AttributeError, cv2.error) as error:
            raise StandinCvBridgeError(f"image of shape {image.shape} cannot be converted from {source} to {desired}") from error
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255.0 / 65535.0)
    return np.asarray(image, dtype=np.uint8)


class StandinSubscriber:
    """message_filters.Subscriber: a subscription whose messages go to the callbacks registered with it.

    ``Subscriber(node, message_type, topic, qos_profile=…, …)``; further keywords go to ``node.create_subscription``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.node, _, self.topic = args[:3]
        self.callbacks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        kwargs.setdefault("qos_profile", 10)
        self.sub = self.node.create_subscription(*args[1:], self.callback, **kwargs)

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> int:
        """Call ``cb(message, *args)`` for each message."""
        self.callbacks.append((cb, args))
        return len(self.callbacks) - 1

    def callback(self, msg: Any) -> None:
        """Pass a message on."""
        for cb, args in self.callbacks:
            cb(msg, *args)


class StandinTimeSynchronizer:
    """message_filters.TimeSynchronizer: the messages of several subscribers that have the same header stamp, together.

    ``queue_size`` messages of each subscriber are kept; the callback gets one of each, in the order of ``fs``.
    """

    def __init__(self, fs: Sequence[Any], queue_size: int) -> None:
        self.queue_size = queue_size
        self.queues: list[dict[int, Any]] = [{} for _ in fs]
        self.callbacks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.lock = threading.Lock()
        for subscriber, queue in zip(fs, self.queues, strict=True):
            subscriber.registerCallback(self.add, queue)

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> int:
        """Call ``cb(message of the first, of the second, …, *args)`` for each complete set."""
        self.callbacks.append((cb, args))
        return len(self.callbacks) - 1

    def add(self, msg: Any, my_queue: dict[int, Any]) -> None:
        """Add a message and pass on the sets that it completes, oldest first."""
        with self.lock:
            my_queue[msg.header.stamp.sec * NANOSECONDS + msg.header.stamp.nanosec] = msg
            while len(my_queue) > self.queue_size:
                del my_queue[min(my_queue)]
            for stamp in sorted(set.intersection(*(set(queue) for queue in self.queues))):
                messages = [queue.pop(stamp) for queue in self.queues]
                for cb, args in self.callbacks:
                    cb(*messages, *args)


try:
    from cv_bridge import CvBridge, CvBridgeError
except ImportError:
    CvBridge, CvBridgeError = StandinCvBridge, StandinCvBridgeError
try:
    from message_filters import Subscriber, TimeSynchronizer
except ImportError:
    Subscriber, TimeSynchronizer = StandinSubscriber, StandinTimeSynchronizer

__all__ = ["CvBridge", "CvBridgeError", "Subscriber", "TimeSynchronizer"]
