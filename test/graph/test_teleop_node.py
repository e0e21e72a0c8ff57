"""An operator's device in a real graph."""

import functools
import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState, Joy
from std_srvs.srv import Trigger

from onedp_ros.contract import MAX_OPENING
from onedp_ros.messages.decode import pose_arrays, stamp_ns
from onedp_ros.nodes.teleop_node import MAX_NAMES, TeleopNode
from onedp_ros.teleop.devices import DEVICES
from onedp_ros.teleop.devices.base import Command, Device

NODE = "teleop_node"


class Hands(Device):
    """A device whose hands the test moves."""

    shows_frames = True

    def __init__(self, setup):
        self.setup = setup
        self.command, self.asked, self.shown, self.frames = Command(), [], {}, {}

    def poll(self):
        return self.command

    def events(self):
        asked, self.asked = self.asked, []
        return asked

    def show(self, status):
        self.shown = dict(status)

    def show_frame(self, camera, jpeg):
        self.frames[camera] = jpeg


def obey(source, targets):
    """Make the source's arm be where it was told to."""

    def follow(message):
        if targets:
            message.pose = targets[-1].pose

    source.change_pose = follow


@pytest.fixture
def hands(rig):
    """A new device, in a running node: registering it is all that the node needs."""
    targets, openings = rig.listen(PoseStamped, "target_pose"), rig.listen(JointState, "gripper_target")
    source = rig.source()
    obey(source, targets)
    DEVICES.add("hands", Hands)
    try:
        node = rig.add(TeleopNode, device="hands", operator_yaw=0.0)
        made = node._device
        made.node, made.source, made.targets, made.openings = node, source, targets, openings
        rig.until(lambda: NODE in rig.status, "the node")
        yield made
    finally:
        DEVICES.remove("hands")


def positions(messages):
    return np.array([pose_arrays(m.pose)[0] for m in messages])


def push(hands, **shares):
    hands.command = Command(True, tuple(float(shares.get(axis, 0.0)) for axis in ("x", "y", "z", "roll", "pitch", "yaw")))


def test_the_dead_man_switch_starts_and_stops_the_target(rig, hands):
    rig.more(rig.listen(PoseStamped, "current_pose"), 5, "measured poses")
    assert not hands.targets and hands.shown["arm"] == "waiting"
    push(hands, y=1.0)
    rig.more(hands.targets, 30, "targets")
    assert hands.shown["arm"] == "moving"
    first, *_, last = hands.targets
    assert abs(pose_arrays(first.pose)[0][1]) < 0.01, "it begins where the arm is"
    assert pose_arrays(last.pose)[0][1] > 0.05 and first.header.frame_id == "base"
    assert np.all(np.diff([stamp_ns(m) for m in hands.targets]) > 0)
    hands.command = Command()
    rig.until(lambda: hands.shown["arm"] == "holding", "the hold")
    held = positions(rig.more(hands.targets, 10, "targets of the hold"))
    assert np.ptp(held, axis=0).max() < 1e-6
    assert rig.value(NODE, "target_hz") > 20


def test_an_arm_that_was_taken_away_is_not_drawn_back(rig, hands):
    push(hands, y=1.0)
    rig.more(hands.targets, 20, "targets")
    hands.command = Command()
    rig.until(lambda: hands.shown["arm"] == "holding", "the hold")
    hands.source.change_pose = lambda message: setattr(message.pose.position, "z", 0.1)
    rig.until(lambda: hands.shown["arm"] == "waiting", "the end of the hold")
    count = len(hands.targets)
    rig.more(rig.listen(PoseStamped, "current_pose"), 40, "measured poses")
    assert len(hands.targets) <= count + 1
    push(hands, y=1.0)
    rig.more(hands.targets, 5, "targets from where the arm is")
    assert abs(positions(hands.targets[-1:])[0, 2] - 0.1) < 1e-6


def test_buttons_turn_the_gripper_and_ask_the_recorder(rig, hands):
    push(hands)
    rig.more(hands.openings, 3, "openings")
    assert hands.openings[-1].position[0] == 0.0, "a hand that is half open may hold something"
    hands.asked = ["gripper"]
    rig.until(lambda: hands.openings[-1].position[0] == pytest.approx(MAX_OPENING), "the open hand")
    assert hands.shown["gripper"] == "open"
    hands.asked = ["start"]
    rig.until(lambda: "recorder_node is not running" in hands.shown["problem"], "the answer")

    recorder = Node("recorder_node", context=rig.context)
    rig._executor.add_node(recorder)
    calls = []

    def answer(name, _request, response):
        calls.append(name)
        response.success, response.message = name != "stop", "" if name != "stop" else "nothing is recorded"
        return response

    for name in ("start", "stop", "fail", "discard"):
        recorder.create_service(Trigger, f"~/{name}", functools.partial(answer, name))
    for name in ("start", "fail", "stop"):
        rig.until(lambda name=name: hands.asked.append(name) or name in calls, f"the call of {name}")
    rig.until(lambda: "nothing is recorded" in hands.shown["problem"], "the recorder's refusal")
    recorder.destroy_node()


def test_without_a_measured_pose_the_operator_is_told_and_nothing_moves(rig, hands):
    hands.source.silent.add("pose")
    push(hands, x=1.0)
    rig.until(lambda: "no valid current_pose" in hands.shown["problem"], "the reason")
    rig.until(lambda: rig.level(NODE, b"\x01", "no valid current_pose"), "the warning")
    rig.until(lambda: hands.shown["arm"] in ("waiting", "holding"), "rest, though the dead-man switch is held")


def test_home_needs_the_dead_man_switch(rig, hands):
    client = rig.node.create_client(Trigger, f"{NODE}/home")
    rig.until(client.service_is_ready, "the service")

    def home():
        future = client.call_async(Trigger.Request())
        return rig.until(lambda: future.done() and future.result(), "the answer")

    assert not home().success
    push(hands)
    rig.until(lambda: hands.shown.get("arm") == "moving", "the motion")
    assert home().success
    rig.until(lambda: hands.shown["arm"] == "homing", "the way home")


def test_the_operator_sees_both_cameras_and_what_is_wrong_elsewhere(rig, hands):
    rig.until(lambda: {"wrist", "front"} <= set(hands.frames), "pictures")
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in hands.frames.values())
    rig.add(TeleopNode, device="gamepad", recorder="none")  # a second publisher of targets
    rig.until(lambda: rig.error(NODE, "also publishes target_pose"), "the error")


def test_a_joystick_on_its_topic_moves_the_arm(rig):
    targets = rig.listen(PoseStamped, "target_pose")
    obey(rig.source(), targets)
    rig.add(TeleopNode, device="gamepad", operator_yaw=0.0)
    joy = rig.node.create_publisher(Joy, "joy", 1)
    held = Joy(axes=[0.0, 0.0, 0.0, 1.0, 0.0, 0.0], buttons=[0, 0, 0, 0, 1, 0, 0, 0])

    def pushed():
        joy.publish(held)
        return len(targets) > 20 and positions(targets[-1:])[0, 1] > 0.03

    rig.until(pushed, "the motion")
    rig.until(lambda: rig.level(NODE, b"\x00", "holding"), "the stop when the joystick is silent")


def test_settings_that_make_no_sense_end_the_node(rig):
    for parameters, words in (
        ({"frame": "sky"}, "frame is 'sky'"),
        ({"device": "wheel"}, "unknown device 'wheel', expected one of gamepad, .*write the file"),
    ):
        with pytest.raises(ValueError, match=words):
            rig.add(TeleopNode, **parameters)


def test_the_twins_expert_needs_no_operator(rig, monkeypatch):
    from std_srvs.srv import SetBool

    from onedp_ros.nodes.twin_node import TwinNode

    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))  # for the camera process
    targets, poses = rig.listen(PoseStamped, "target_pose"), rig.listen(PoseStamped, "current_pose")
    rig.add(TwinNode)
    client = rig.node.create_client(SetBool, "twin_node/expert")
    rig.until(lambda: poses and client.service_is_ready(), "the twin")
    assert rig.node.count_publishers("target_pose") == 0
    client.call_async(SetBool.Request(data=True))
    rig.more(targets, 30, "targets of the expert")
    steps = np.diff([stamp_ns(m) for m in targets]) * 1e-9
    np.testing.assert_allclose(steps, 0.05, atol=0.006)
    moved = positions(poses[-1:])[0] - positions(poses[:1])[0]
    assert np.linalg.norm(moved) > 0.02
    client.call_async(SetBool.Request(data=False))
    rig.until(lambda: rig.value("twin_node", "holds") > 0, "the rest after it")


def image_of(height, width, step=None, size=None, encoding="rgb8"):
    step = 3 * width if step is None else step
    return Image(height=height, width=width, encoding=encoding, step=step, data=bytes(height * step if size is None else size))


def test_no_picture_ends_the_node_and_what_is_none_is_counted(rig, hands):
    hands.source.silent |= {"wrist", "front"}
    topic = "front_camera/color/image_raw"
    publisher = rig.node.create_publisher(Image, topic, qos_profile_sensor_data)
    odd = [
        image_of(0, 160),
        image_of(160, 0),
        image_of(120, 160, size=100),
        image_of(120, 160, step=7),
        image_of(4_000_000_000, 1, 0),
    ]
    for message in (*odd, image_of(120, 160, encoding="nonsense")):
        before = rig.value(NODE, f"refused.{topic}_no_image")
        rig.until(
            lambda message=message, before=before: (
                publisher.publish(message) or rig.value(NODE, f"refused.{topic}_no_image") > before
            ),
            "the refusal",
        )
    for message in (image_of(1, 10_000), image_of(10_000, 1), image_of(1, 1)):
        hands.frames.clear()
        rig.until(lambda message=message: publisher.publish(message) or "front" in hands.frames, "the picture")


def test_whatever_others_say_on_diagnostics_is_borne(rig, hands):
    publisher = rig.node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def say(name, level=DiagnosticStatus.OK, text="", **values):
        items = [KeyValue(key=key, value=value) for key, value in values.items()]
        publisher.publish(DiagnosticArray(status=[DiagnosticStatus(level=level, name=name, message=text, values=items)]))

    for seconds in ("nan", "-inf", "1e999", "", "two"):
        hands.shown.clear()
        rig.until(
            lambda seconds=seconds: (
                say("recorder_node", state=f"s {seconds}", seconds=seconds) or hands.shown.get("recorder") == f"s {seconds}"
            ),
            "the recorder's state",
        )
        assert hands.shown["seconds"] == 0.0
    many = [DiagnosticStatus(name=f"node {i}", level=DiagnosticStatus.ERROR, message="x" * 100) for i in range(20_000)]
    rig.until(
        lambda: (
            publisher.publish(DiagnosticArray(status=many)) or rig.value(NODE, "refused.diagnostics_of_too_many_names") > 19_000
        ),
        "the refusals",
    )
    assert len(hands.node._others) <= MAX_NAMES + 1
    rig.until(lambda: say("recorder_node", state="recording", seconds="2.5") or hands.shown["seconds"] == 2.5, "the recorder")
    assert len(hands.shown["problem"]) < MAX_NAMES * 400


@pytest.mark.parametrize("x", [1.7e308, float("nan")])
def test_a_measured_pose_that_is_none_moves_nothing_and_is_counted(rig, hands, x):
    push(hands, y=1.0)
    rig.more(hands.targets, 10, "targets")
    hands.source.change_pose = lambda message: setattr(message.pose.position, "x", x)
    reason = "not_finite" if np.isnan(x) else "out_of_reach"
    rig.until(lambda: rig.value(NODE, f"refused.current_pose_{reason}") > 0, "the refusals")
    rig.until(lambda: hands.shown["arm"] in ("holding", "waiting"), "the stop")
    assert np.all(np.isfinite(positions(hands.targets)))


def test_a_second_publisher_of_the_measured_pose_stops_the_operator(rig, hands):
    push(hands, y=1.0)
    rig.more(hands.targets, 10, "targets")
    other = rig.node.create_publisher(PoseStamped, "current_pose", 1)
    rig.until(lambda: rig.error(NODE, "2 nodes publish current_pose"), "the error")
    rig.until(lambda: hands.shown["arm"] in ("holding", "waiting"), "the stop")
    rig.node.destroy_publisher(other)


def test_after_a_pause_of_the_process_the_dead_man_switch_must_be_pressed_anew(rig, pause=1.0):
    targets = rig.listen(PoseStamped, "target_pose")
    obey(rig.source(), targets)
    process = rig.process("teleop_node", device="gamepad", operator_yaw=0.0)
    joy = rig.node.create_publisher(Joy, "joy", 1)
    buttons = [0, 0, 0, 0, 1, 0, 0, 0]
    axes = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]

    def push(held=True):
        joy.publish(Joy(axes=axes, buttons=buttons if held else [0] * 8))

    def push_for(seconds, held=True):
        end = time.monotonic() + seconds
        rig.until(lambda: push(held) or time.monotonic() > end, "the time")

    rig.until(lambda: push(False) or NODE in rig.status, "the node")
    rig.until(lambda: push() or len(targets) > 20, "the motion")
    process.send_signal(signal.SIGSTOP)
    push_for(pause)
    sent = len(targets)
    process.send_signal(signal.SIGCONT)
    push_for(1.5)
    assert len(targets) <= sent + 1, "none but the one that was being sent"
    assert rig.level(NODE, b"\x01", "let go of the dead-man switch")
    push_for(0.2, held=False)
    rig.until(lambda: push() or len(targets) > sent + 20, "the motion, pressed anew")
