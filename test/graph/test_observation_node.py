import functools
import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from pictures import picture
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from standin import load_standin

from onedp_ros.contract import NANOSECONDS
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.nodes.action_node import ActionNode
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode

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
        assert list(state.name) == list(source.contract.state_names)
        np.testing.assert_allclose(state.position[:3], source.position(stamp), atol=2e-5)
        np.testing.assert_allclose(state.position[3:], [*gripper_down(0.2), 0.02, 0.02], atol=1e-6)
        ages = []
        for name in ("wrist", "front"):
            message = images[name][stamp]
            assert (message.encoding, message.height, message.width) == ("rgb8", 120, 160)
            value = message.data[0]
            assert bytes(message.data) == picture(value).tobytes()
            ages.append(min(stamp - s for (n, s), v in frames.items() if n == name and v == value and s <= stamp))
        assert min(ages) == 0, "the stamp is the newest frame's"
        assert max(ages) <= 0.03 * NANOSECONDS, "the other frame lies within the slop"
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.OK, "running"), "an OK status")
    assert rig.value(NODE, "frames_received_wrist") > 0
    assert rig.value(NODE, "frames_received_front") > 0


def test_larger_images_and_bgr_are_fitted(rig):
    def enlarge(message):
        red = np.zeros((240, 320, 3), np.uint8)
        red[:, :160, 2] = 200
        message.height, message.width, message.step, message.encoding = 240, 320, 960, "bgr8"
        message.data = red.tobytes()

    rig.source().change_image = enlarge
    wrist, _, _ = listen(rig)
    rig.add(ObservationNode)
    rig.until(lambda: wrist, "a set")
    pixels = np.frombuffer(wrist[0].data, np.uint8).reshape(120, 160, 3)
    np.testing.assert_array_equal(pixels[:, :80], np.broadcast_to(np.uint8([200, 0, 0]), (120, 80, 3)))
    assert not pixels[:, 80:].any()


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


def of_long_ago(source):
    source.offset = -NANOSECONDS


def no_pixels(source):
    def change(message):
        message.height, message.data = 0, b""

    source.change_image = change


def huge_pose(source):
    source.change_pose = lambda message: setattr(message.pose.position, "x", 1.7e308)


def huge_fingers(source):
    source.change_joints = lambda message: setattr(message, "position", [0.0, 1.7e308, -1.7e308])


@pytest.mark.parametrize(
    ("spoil", "topic", "words"),
    [
        (wrong_encoding, "wrist_camera/color/image_raw", "16UC1"),
        (wrong_size, "wrist_camera/color/image_raw", "90x90"),
        (too_few_bytes, "wrist_camera/color/image_raw", "100 bytes"),
        (missing_joints, "joint_states", "joint names"),
        (nan_in_pose, "current_pose", "NaN"),
        (nan_in_fingers, "joint_states", "not finite"),
        (other_frame, "current_pose", "base"),
        (from_the_future, "joint_states", "synchronise the clocks"),
        (of_long_ago, "joint_states", "synchronise the clocks"),
        (no_pixels, "wrist_camera/color/image_raw", "160x0"),
        (huge_pose, "current_pose", "out of reach"),
        (huge_fingers, "joint_states", "implausible"),
    ],
)
def test_bad_input_is_named_and_counted_and_sets_come_again_after_it(rig, spoil, topic, words):
    source = rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode, timeout=0.3)
    rig.more(states, 3, "sets before")
    keep = dict(vars(source))
    spoil(source)
    reason = {from_the_future: "from_the_future", of_long_ago: "too_old"}.get(spoil, "against_the_contract")
    rig.until(lambda: rig.value(NODE, f"refused.{topic}_{reason}") > 0, "the refusals to be counted")
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
    rig.add(ObservationNode, timeout=0.3, max_observation_age=10.0)
    last = stamp_ns(rig.more(states, 3, "sets before")[-1])
    source.offset = -5 * NANOSECONDS
    rig.until(lambda: stamp_ns(states[-1]) < last - 2 * NANOSECONDS, "sets with the earlier stamps")
    rig.until(lambda: rig.value(NODE, "dropped") > 0, "the jump to be counted")
    counted = [v.key for v in rig.status[NODE].values if "jumped_back" in v.key]
    assert counted


def black(source):
    source.change_image = lambda message: setattr(message, "data", bytes(len(message.data)))


def white(source):
    source.change_image = lambda message: setattr(message, "data", b"\xff" * len(message.data))


def frozen(source):
    source.change_image = lambda message: setattr(message, "data", picture(7).tobytes())


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (white, "featureless", "RGB [255, 255, 255]"),
        (frozen, "frozen", "restart the camera's driver"),
    ],
)
def test_a_camera_that_no_longer_sees_is_named_and_nothing_is_published_until_it_does(rig, spoil, reason, words):
    source = rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode)
    rig.more(states, 3, "sets before")
    good = source.change_image
    spoil(source)
    rig.until(lambda: rig.error(NODE, words), "the error")
    assert "front_camera/color/image_raw: the" in rig.status[NODE].message
    count = len(states)
    refused = rig.value(NODE, f"refused.front_camera/color/image_raw_{reason}")
    rig.until(lambda: rig.value(NODE, f"refused.front_camera/color/image_raw_{reason}") > refused + 20, "further refusals")
    assert len(states) == count
    source.change_image = good
    rig.more(states, 3, "sets after it")
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.OK, "running"), "an OK status")


@pytest.mark.parametrize("spoil", [black, frozen])
def test_the_arm_is_held_while_a_camera_is_blind(rig, spoil):
    source = rig.source()
    targets = rig.listen(PoseStamped, "target_pose")
    rig.add(ObservationNode)
    policy = rig.add(functools.partial(PolicyNode, load_standin))
    rig.add(ActionNode, enabled=True)
    assert rig.transition(policy, "configure").name == rig.transition(policy, "activate").name == "SUCCESS"
    rig.until(lambda: rig.level("action_node", DiagnosticStatus.OK, "following"), "following")
    good = source.change_image
    spoil(source)
    rig.until(lambda: rig.error("action_node", "holding"), "the arm to be held")
    rig.until(lambda: np.ptp([t.pose.position.x for t in targets[-10:]]) < 1e-6, "targets at rest")
    source.change_image = good
    rig.until(lambda: rig.level("action_node", DiagnosticStatus.OK, "following"), "following again")


@pytest.mark.parametrize(("kind", "topic"), [(Image, "front_camera/color/image_raw"), (PoseStamped, "current_pose")])
def test_while_a_topic_has_a_second_publisher_nothing_is_published(rig, kind, topic):
    rig.source()
    _, _, states = listen(rig)
    rig.add(ObservationNode)
    rig.more(states, 3, "sets before")
    other = rig.node.create_publisher(kind, topic, qos_profile_sensor_data)
    rig.until(lambda: rig.error(NODE, f"2 nodes publish {topic}"), "the error")
    count = len(states)
    refused = rig.value(NODE, f"refused.{topic}_several_publishers")
    rig.until(lambda: rig.value(NODE, f"refused.{topic}_several_publishers") > refused + 20, "refusals")
    assert len(states) == count
    rig.node.destroy_publisher(other)
    rig.more(states, 3, "sets after it")


def test_a_camera_slower_than_the_task_needs_is_a_warning(rig):
    source = rig.source()
    _, _, states = listen(rig)
    source.every["front"] = 3
    rig.add(ObservationNode)
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.WARN, "front_camera/color/image_raw arrives at 1"), "the warning")
    assert "expected 20 Hz or more" in rig.status[NODE].message
    assert "wrist_camera" not in rig.status[NODE].message
    assert states, "and sets come all the same"


def test_after_a_pause_of_the_process_nothing_old_is_published(rig):
    rig.source()
    _, _, states = listen(rig)
    process = rig.process("observation_node")
    rig.more(states, 3, "sets before")
    for pause in (0.7, 2.0):
        process.send_signal(signal.SIGSTOP)
        since = time.monotonic()
        rig.until(lambda: time.monotonic() - since > pause, "the pause")  # noqa: B023
        continued = time.time_ns()
        process.send_signal(signal.SIGCONT)
        after = rig.more(states, 10, "sets after it")
        old = [s for s in map(stamp_ns, after) if s < continued - 0.6 * NANOSECONDS]
        assert len(old) <= 1, "none but the one that was being sent"
        rig.until(lambda: rig.value(NODE, "observations") and rig.level(NODE, DiagnosticStatus.OK, "running"), "an OK status")
