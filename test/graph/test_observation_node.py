import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState

from onedp_ros.contract import NANOSECONDS, STATE_NAMES
from onedp_ros.data.messages import stamp_ns
from onedp_ros.geometry import gripper_down
from onedp_ros.nodes.observation_node import ObservationNode

NODE = "observation_node"


def listen(rig):
    return (
        rig.listen(Image, "observation/wrist/image"),
        rig.listen(Image, "observation/front/image"),
        rig.listen(JointState, "observation/state"),
    )


def test_a_set_has_one_stamp_the_frames_of_the_cameras_and_the_state_at_that_time(rig):
    source = rig.source()
    wrist, front, states = listen(rig)
    rig.add(ObservationNode)
    rig.until(lambda: min(len(wrist), len(front), len(states)) >= 30, "thirty sets")
    images = {name: {stamp_ns(m): m for m in messages} for name, messages in (("wrist", wrist), ("front", front))}
    complete = [s for s in states if stamp_ns(s) in images["wrist"] and stamp_ns(s) in images["front"]]
    assert len(complete) >= 25
    frames = source.frames.copy()  # the source goes on
    for state in complete:
        stamp = stamp_ns(state)
        assert list(state.name) == list(STATE_NAMES)
        np.testing.assert_allclose(state.position[:3], source.position(stamp), atol=2e-5)
        np.testing.assert_allclose(state.position[3:], [*gripper_down(0.2), 0.02, 0.02], atol=1e-6)
        ages = []
        for name in ("wrist", "front"):
            message = images[name][stamp]
            assert (message.encoding, message.height, message.width) == ("rgb8", 120, 160)
            values = set(bytes(message.data))
            assert len(values) == 1
            ages.append(min(stamp - s for (n, s), v in frames.items() if n == name and {v} == values and s <= stamp))
        assert min(ages) == 0, "the stamp is the newest frame's"
        assert max(ages) <= 0.03 * NANOSECONDS, "the other frame lies within the slop"
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.OK, "running"), "an OK status")
    assert rig.value(NODE, "frames_received_wrist") > 0
    assert rig.value(NODE, "frames_received_front") > 0


def test_larger_images_and_bgr_are_fitted(rig):
    def enlarge(message):
        red = np.zeros((240, 320, 3), np.uint8)
        red[..., 2] = 200
        message.height, message.width, message.step, message.encoding = 240, 320, 960, "bgr8"
        message.data = red.tobytes()

    rig.source().change_image = enlarge
    wrist, _, _ = listen(rig)
    rig.add(ObservationNode)
    rig.until(lambda: wrist, "a set")
    pixels = np.frombuffer(wrist[0].data, np.uint8).reshape(120, 160, 3)
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8([200, 0, 0]), pixels.shape))


def wrong_encoding(source):
    def change(message):
        message.encoding, message.step, message.data = "16UC1", 320, bytes(120 * 320)

    source.change_image = change


def wrong_size(source):
    def change(message):
        message.height, message.width, message.step, message.data = 90, 90, 270, bytes(90 * 270)

    source.change_image = change


def too_few_bytes(source):
    source.change_image = lambda message: setattr(message, "data", bytes(100))


def missing_joints(source):
    source.change_joints = lambda message: setattr(message, "name", ["panda_joint1", "panda_finger_joint1", "panda_finger_joint2"])


def nan_in_pose(source):
    source.change_pose = lambda message: setattr(message.pose.position, "y", float("nan"))


def nan_in_fingers(source):
    source.change_joints = lambda message: setattr(message, "position", [0.0, float("nan"), 0.02])


def other_frame(source):
    source.change_pose = lambda message: setattr(message.header, "frame_id", "world")


def from_the_future(source):
    source.offset = 5 * NANOSECONDS


@pytest.mark.parametrize(
    ("spoil", "topic", "words"),
    [
        (wrong_encoding, "wrist_camera/color/image_raw", "16UC1"),
        (wrong_size, "wrist_camera/color/image_raw", "90x90"),
        (too_few_bytes, "wrist_camera/color/image_raw", "100 bytes"),
        (missing_joints, "joint_states", "finger_joints"),
        (nan_in_pose, "current_pose", "NaN"),
        (nan_in_fingers, "joint_states", "not finite"),
        (other_frame, "current_pose", "base"),
        (from_the_future, "joint_states", "synchronise the clocks"),
    ],
)
def test_bad_input_is_named_and_counted_and_sets_come_again_after_it(rig, spoil, topic, words):
    source = rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode, timeout=0.3)
    rig.more(states, 3, "sets before")
    keep = dict(vars(source))
    spoil(source)
    reason = "from_the_future" if spoil is from_the_future else "against_the_contract"
    rig.until(lambda: rig.value(NODE, f"refused.{topic}_{reason}") > 0, "the refusals to be counted")
    if spoil is from_the_future:
        rig.until(lambda: rig.error(NODE, "synchronise the clocks"), "an error")
    else:
        rig.until(lambda: rig.error(NODE, words), f"an error with '{words}'")
    assert all(np.all(np.isfinite(s.position)) for s in states)
    for name in ("change_image", "change_joints", "change_pose", "offset"):
        setattr(source, name, keep[name])
    rig.more(states, 3, "sets after it")


@pytest.mark.parametrize(
    ("silent", "topic"),
    [("wrist", "wrist_camera/color/image_raw"), ("front", "front_camera/color/image_raw"), ("joints", "joint_states")],
)
def test_a_topic_that_never_comes_is_named(rig, silent, topic):
    rig.source().silent.add(silent)
    rig.add(ObservationNode, timeout=0.3)
    rig.until(lambda: rig.error(NODE, f"{topic}: no message yet"), "the error")
    assert "check that its driver runs" in rig.status[NODE].message


@pytest.mark.parametrize(("silent", "topic"), [("wrist", "wrist_camera/color/image_raw"), ("pose", "current_pose")])
def test_a_topic_that_stops_is_named_and_sets_come_again_with_it(rig, silent, topic):
    source = rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode, timeout=0.3)
    rig.more(states, 3, "sets before")
    source.silent.add(silent)
    rig.until(lambda: rig.error(NODE, f"{topic}: no message for"), "the error")
    source.silent.clear()
    rig.more(states, 3, "sets after it")


def test_stamps_that_jump_back_are_counted_and_begin_anew(rig):
    source = rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode, timeout=0.3)
    last = stamp_ns(rig.more(states, 3, "sets before")[-1])
    source.offset = -60 * NANOSECONDS
    rig.until(lambda: stamp_ns(states[-1]) < last - 50 * NANOSECONDS, "sets with the earlier stamps")
    rig.until(lambda: rig.value(NODE, "dropped") > 0, "the jump to be counted")
    counted = [v.key for v in rig.status[NODE].values if "jumped_back" in v.key]
    assert counted
