"""Detects faulty cameras: images that are black, of a single colour or frozen are worse than none.

Such a camera keeps publishing with new stamps, and the policy keeps moving the arm on outdated images. The result depends only on
the observations, not on a clock, so that a replay withholds the same ones as the live node, except for images that froze before the
recording began.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict

import cv2
import numpy as np

from onedp_ros.contract import NANOSECONDS, Contract, Floats, Image, Observation
from onedp_ros.contract.features import Pose, slices
from onedp_ros.geometry import rotation_angle

FEATURELESS = 3.0  # of 255 levels: an image in which every channel's standard deviation is below this has no content
FROZEN_TIME = 0.3  # s: drivers repeat an image or two when frames are lost; a longer repetition is a fault
# The twin's images are identical within 0.7 um and 2.3 urad of hand motion; a resting robot's measured pose drifts by 0.1 mm.
MOVED, TURNED = 0.003, 0.02  # m, rad: an arm in view, or a camera on it, cannot move that far without any pixel changing
KEPT = 16  # images remembered: a driver may cycle through old buffers


class CameraCheck:
    """Finds observations whose images do not show the current scene.

    *featureless*: black, white or of a single colour. *frozen*: identical to an image at least :data:`FROZEN_TIME` old, while the
    end effector has moved by :data:`MOVED` or turned by :data:`TURNED` since. A real sensor's noise never gives the same image
    twice; a simulated camera without noise does while the arm is at rest, which is why the arm must have moved.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        parts = list(zip(contract.state, slices(contract.state).values(), strict=True))
        self._positions = [at for feature, at in parts if feature.kind == "position"]
        self._rotations = [(feature, at) for feature, at in parts if feature.kind in ("quaternion", "rotation_6d")]
        self._clear()

    def _clear(self) -> None:
        self._newest = 0
        self._judged: dict[str, tuple[int, tuple[str, str]]] = {}
        self._seen: dict[str, OrderedDict[int, tuple[int, Pose]]] = {name: OrderedDict() for name in self._contract.cameras}

    def faults(self, observation: Observation) -> dict[str, tuple[str, str]]:
        """Faults by camera: ``featureless`` or ``frozen``, and a message with the remedy.

        Pass observations in order; an older stamp resets the check.
        """
        if observation.stamp < self._newest:
            self._clear()
        self._newest = observation.stamp
        pose = self._pose(observation.state)
        for name, image in observation.images.items():
            stamp = observation.image_stamps[name]
            if name not in self._judged or self._judged[name][0] != stamp:
                self._judged[name] = stamp, self._judge(name, stamp, image, pose)
        return {name: fault for name, (_, fault) in self._judged.items() if fault[0]}

    def _pose(self, state: Floats) -> Pose:
        """Positions (P, 3) and quaternions (Q, 4) in a state."""
        positions = [state[at].astype(np.float64) for at in self._positions]
        turns = [feature.quaternions(state[at]) for feature, at in self._rotations]
        return np.reshape(positions, (-1, 3)), np.reshape(turns, (-1, 4))

    def _judge(self, camera: str, stamp: int, image: Image, pose: Pose) -> tuple[str, str]:
        topic = self._contract.cameras[camera].topic
        mean, deviation = cv2.meanStdDev(np.ascontiguousarray(image[::4, ::4]))  # one pixel of 16 is enough to see content
        if deviation.max() < FEATURELESS:
            colour = np.round(mean[:, 0]).astype(int).tolist()
            return "featureless", (
                f"{topic}: the image is of a single colour, RGB {colour}; check the lens cap, the light, the exposure and the cable"
            )
        seen, digest = self._seen[camera], zlib.crc32(image.tobytes())
        if digest not in seen:
            seen[digest] = stamp, pose
            if len(seen) > KEPT:
                seen.popitem(last=False)
            return "", ""
        first, (position, quaternion) = seen[digest]
        age = (stamp - first) / NANOSECONDS
        moved = float(np.linalg.norm(pose[0] - position, axis=-1).max(initial=0.0))
        turned = max((rotation_angle(a, b) for a, b in zip(pose[1], quaternion, strict=True)), default=0.0)
        if age < FROZEN_TIME or (moved < MOVED and turned < TURNED):
            return "", ""
        return "frozen", (
            f"{topic}: the same image for {age:.1f} s, though the arm moved by {1e3 * moved:.0f} mm; restart the camera's driver"
        )
