"""A camera that no longer sees is found out, and one that sees never is."""

from collections import Counter

import numpy as np
import pytest

from onedp_ros.contract import NANOSECONDS, Observation, ObservationAssembler, task_contract
from onedp_ros.contract.camera_check import FROZEN_TIME, MOVED, CameraCheck
from onedp_ros.data.bags.reader import read_bag
from onedp_ros.evaluation.golden import golden
from onedp_ros.evaluation.replayed import source_topics
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import feed
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")
RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
HZ = 30.0


def noisy(image=SCENE):
    return image ^ RNG.integers(0, 2, image.shape, dtype=np.uint8)


class Cell:
    """Observations at 30 Hz of cameras and an arm that the test chooses."""

    def __init__(self):
        self.check, self.index, self.x, self.yaw = CameraCheck(CONTRACT), 0, 0.4, 0.0

    def see(self, wrist, front=None, speed=0.0, spin=0.0):
        """What is wrong, by camera, with the next observation."""
        self.index += 1
        self.x, self.yaw = self.x + speed / HZ, self.yaw + spin / HZ
        stamp = round(self.index * NANOSECONDS / HZ)
        state = CONTRACT.arm.encode_state(np.array([self.x, 0.0, 0.3]), gripper_down(self.yaw), (0.04, 0.04))
        images = {"wrist": wrist, "front": noisy() if front is None else front}
        faults = self.check.faults(Observation(stamp, images, dict.fromkeys(images, stamp), state))
        return {camera: reason for camera, (reason, _) in faults.items()}


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 135, 0), (128, 128, 128)])
def test_a_picture_of_one_colour_shows_nothing_though_it_may_be_noisy_and_the_arm_at_rest(colour):
    cell, plain = Cell(), np.broadcast_to(np.uint8(colour), SCENE.shape)
    for image in (plain, noisy(plain)):
        assert cell.see(image) == {"wrist": "featureless"}
        assert cell.see(noisy(), image) == {"front": "featureless"}
    assert cell.see(noisy()) == {}


def test_the_text_names_topic_picture_and_remedy():
    check, state = CameraCheck(CONTRACT), np.array([0.4, 0, 0.3, 1, 0, 0, 0, 0, 0], np.float32)
    images = {"wrist": noisy(), "front": np.zeros_like(SCENE)}
    ((reason, text),) = check.faults(Observation(1, images, {"wrist": 1, "front": 1}, state)).values()
    assert reason == "featureless"
    assert text.startswith("front_camera/color/image_raw: the image is of a single colour, RGB [0, 0, 0]; check the lens cap")


@pytest.mark.parametrize("motion", [{"speed": 0.1}, {"spin": 0.5}])
def test_a_picture_that_stays_while_the_arm_moves_is_frozen_until_another_comes(motion):
    cell = Cell()
    found = [cell.see(SCENE, **motion) for _ in range(30)]
    expected = round(FROZEN_TIME * HZ)
    assert found[:expected] == [{}] * expected, "a picture or two may be repeated"
    assert found[expected + 1 :] == [{"wrist": "frozen"}] * (29 - expected)
    assert cell.see(noisy(), **motion) == {}


def test_a_camera_that_froze_at_rest_is_found_out_when_the_arm_has_moved_by_millimetres():
    cell = Cell()
    assert not any(cell.see(SCENE) for _ in range(300)), "simulated cameras show a standing arm so"
    start = cell.x
    while not cell.see(SCENE, speed=0.05):
        assert cell.x < start + 2 * MOVED


def test_a_ring_of_old_buffers_is_frozen_too():
    cell, ring = Cell(), [noisy() for _ in range(4)]
    found = [cell.see(ring[i % 4], speed=0.1) for i in range(30)]
    assert found[-10:] == [{"wrist": "frozen"}] * 10


def test_one_pixel_that_changes_is_enough():
    cell, image = Cell(), SCENE.copy()
    for i in range(100):
        image = image.copy()
        image[i, 5, 1] ^= 1
        assert cell.see(image, speed=0.1) == {}


def test_stamps_that_go_back_begin_anew():
    cell = Cell()
    while not cell.see(SCENE, speed=0.1):
        pass
    cell.index = 0
    assert cell.see(SCENE, speed=0.1) == {}


def test_every_picture_of_the_golden_recording_is_one_that_sees():
    bag, _ = golden("pnp_milk")
    assembler, check, found = ObservationAssembler(CONTRACT), CameraCheck(CONTRACT), Counter()
    for topic, _, message in read_bag(bag, source_topics(CONTRACT, "raw")):
        feed(assembler, topic, message)
        for observation in assembler.pop():
            found.update(reason for reason, _ in check.faults(observation).values())
            found["observations"] += 1
    assert set(found) == {"observations"}


def test_the_twin_is_never_blind_though_its_pictures_repeat_while_the_arm_stands():
    cell, check = SteppedCell(CONTRACT, PnpMilk()), CameraCheck(CONTRACT)
    cell.reset(np.random.default_rng(0))
    pictures = Counter()
    for step in range(100):
        still = CONTRACT.arm.encode_action(cell.cell.target_position, cell.cell.target_quaternion, cell.cell.target_opening)
        cell.step(still if step < 40 else cell.expert_action())
        observation = cell.observe()
        assert check.faults(observation) == {}
        pictures[observation.images["front"].tobytes()] += 1
    cell.close()
    assert max(pictures.values()) > 3, "else it shows nothing"
