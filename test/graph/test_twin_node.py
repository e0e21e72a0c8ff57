"""The twin as a robot and two cameras."""

import itertools
import signal
import time

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from pictures import picture
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_srvs.srv import Trigger
from stopping import Driving, Process, check_stop

from onedp_ros.contract import NANOSECONDS, task_contract
from onedp_ros.control.safety import SafetyLimits
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import header, pose_message
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.twin_node import TwinNode
from onedp_ros.registry import UnknownNameError
from onedp_ros.resources import resource
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.stepped import SteppedCell

ROBOT = SafetyLimits.from_yaml(resource("config", "robot", "twin.yaml"))
NODE = "twin_node"


class Twin:
    """The node, what it publishes, and its services."""

    def __init__(self, rig, **parameters):
        self.rig = rig
        self.frames = {name: rig.listen(Image, f"{name}_camera/color/image_raw") for name in ("wrist", "front")}
        self.joints, self.poses = rig.listen(JointState, "joint_states"), rig.listen(PoseStamped, "current_pose")
        self.target = rig.node.create_publisher(PoseStamped, "target_pose", 1)
        self.gripper = rig.node.create_publisher(JointState, "gripper_target", 1)
        self.clients = {name: rig.node.create_client(Trigger, f"twin_node/{name}") for name in ("reset", "success")}
        self.node = rig.add(TwinNode, **parameters)
        rig.until(lambda: all(self.frames.values()) and self.poses, "frames and states")

    def call(self, name):
        client = self.clients[name]
        self.rig.until(client.service_is_ready, "the service")
        future = client.call_async(Trigger.Request())
        return self.rig.until(lambda: future.done() and future.result(), "the answer")

    def send(self, position, quaternion, frame="base"):
        self.target.publish(pose_message(position, quaternion, self.rig.node.get_clock().now().nanoseconds, frame))

    def grip(self, opening, stamp=None):
        stamp = self.rig.node.get_clock().now().nanoseconds if stamp is None else stamp
        self.gripper.publish(JointState(header=header(stamp), name=["gripper"], position=[opening]))

    def position(self):
        p = self.poses[-1].pose.position
        return np.array([p.x, p.y, p.z])


@pytest.fixture
def twin(rig, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))  # for the camera process
    return Twin(rig)


def spacing(messages):
    return np.diff([stamp_ns(m) for m in messages]) / NANOSECONDS


def test_rates_and_stamps_are_those_of_a_robot_and_two_cameras(rig, twin):
    rig.until(lambda: len(twin.frames["front"]) > 20 and len(twin.joints) > 200, "some frames")
    for frames in twin.frames.values():
        assert np.median(spacing(frames)) == pytest.approx(1 / 30, abs=1e-3)
        assert (frames[0].encoding, frames[0].height, frames[0].width) == ("rgb8", 120, 160)
    assert np.median(spacing(twin.joints)) == pytest.approx(1 / 200, abs=1e-4)
    wrist, front = ({stamp_ns(m) for m in frames} for frames in twin.frames.values())
    assert not wrist & front, "the cameras take turns"
    assert len(twin.joints[0].name) == len(twin.joints[0].position) == 9


def test_cameras_come_with_their_calibration_and_reliably(rig, twin):
    """As a RealSense's: what asks for reliable images, as RViz does by default, gets them too."""
    infos, images = [], []
    rig.node.create_subscription(CameraInfo, "wrist_camera/color/camera_info", infos.append, 10)
    rig.node.create_subscription(Image, "wrist_camera/color/image_raw", images.append, 10)
    rig.until(lambda: len(infos) > 5 and len(images) > 5, "both")
    assert {stamp_ns(m) for m in infos[1:5]} <= {stamp_ns(m) for m in images} | {stamp_ns(m) for m in twin.frames["wrist"]}
    info = infos[-1]
    assert (info.height, info.width, info.header.frame_id) == (120, 160, "wrist_camera_color_optical_frame")
    assert info.k[4] == info.p[5] > 0 and info.distortion_model == "plumb_bob"


def test_a_seed_gives_the_same_scene_again(rig, twin):
    scenes = []
    for seed in (100005, 100005, 100006):
        twin.node.set_parameters([rig.parameter("seed", seed)])
        answer = twin.call("reset")
        assert answer.success and str(seed) in answer.message
        settled = rig.node.get_clock().now().nanoseconds + NANOSECONDS // 2
        rig.until(lambda after=settled: stamp_ns(twin.frames["front"][-1]) > after, "a frame of the new scene")
        scenes.append(np.frombuffer(twin.frames["front"][-1].data, np.uint8).astype(int))
    same, other = (np.count_nonzero(np.abs(scenes[0] - scene) > 40) for scene in scenes[1:])
    assert same < 30 < other, (same, other)
    verdict = twin.call("success")
    assert not verdict.success and verdict.message == "never grasped"


def test_a_varied_cell_looks_live_as_in_lock_step(rig, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))
    stepped = SteppedCell(task_contract("pnp_milk"), PnpMilk(), variation="strong")
    stepped.reset(np.random.default_rng(100007))
    expected = stepped.observe().images["front"].tobytes()
    stepped.close()
    twin = Twin(rig, variation="strong")

    def seen():
        twin.node.set_parameters([rig.parameter("seed", 100007)])
        twin.call("reset")
        count = len(twin.frames["front"])
        rig.until(lambda: len(twin.frames["front"]) > count + 2, "frames")
        return any(bytes(frame.data) == expected for frame in twin.frames["front"])

    rig.until(seen, "the same picture")  # the first of an episode may be skipped


def test_follows_targets_and_holds_without_them(rig, twin):
    goal = twin.position() + np.array([0.05, 0.05, 0.0])

    def near():
        twin.send(goal, gripper_down(0.0))
        return np.linalg.norm(twin.position() - goal) < 0.005

    rig.until(near, "the arm at its target")
    rig.until(lambda: rig.value(NODE, "holds") > 0, "the hold")
    rest = [twin.position()]

    def still():
        count = len(twin.poses)
        rig.until(lambda: len(twin.poses) > count + 40, "more states")
        rest.append(twin.position())
        return np.linalg.norm(rest[-1] - rest[-2]) < 5e-4

    rig.until(still, "rest")
    at_rest = twin.position()
    still()
    assert np.linalg.norm(twin.position() - at_rest) < 0.002
    assert np.linalg.norm(twin.position() - goal) < 0.05, "it braked, and did not go on"


@pytest.mark.parametrize("spoil", ["nan", "no rotation", "frame", "gripper"])
def test_bad_targets_are_refused_and_counted_and_the_arm_stays(rig, twin, spoil):
    rig.until(lambda: NODE in rig.status, "a status")
    rest = twin.position()
    far = rest + np.array([0.1, 0.0, 0.0])

    def bad():
        if spoil == "gripper":
            twin.grip(float("nan"))
        else:
            twin.send(
                far * np.nan if spoil == "nan" else far,
                np.zeros(4) if spoil == "no rotation" else gripper_down(0.0),
                "world" if spoil == "frame" else "base",
            )
        return rig.value(NODE, "targets_refused") > 20

    rig.until(bad, "the refusals")
    assert np.linalg.norm(twin.position() - rest) < 0.002


def test_commands_of_1970_and_of_two_publishers_move_neither_arm_nor_hand(rig, twin):
    rest = twin.position()
    far = pose_message(rest + np.array([0.1, 0.0, 0.0]), gripper_down(0.0), 0, "base")
    for stamp, reason in ((lambda: 0, "old"), (time.time_ns, "several_publishers")):
        if reason == "several_publishers":
            for kind, topic in ((PoseStamped, "target_pose"), (JointState, "gripper_target")):
                rig.node.create_publisher(kind, topic, 1)
            rig.until(lambda: rig.error(NODE, "2 nodes publish target_pose") and rig.error(NODE, "gripper_target"), "the error")

        def bad(stamp=stamp, reason=reason):
            far.header = header(stamp(), "base")
            twin.target.publish(far)
            twin.grip(0.0, stamp())
            return min(rig.value(NODE, f"targets_refused.{name}") for name in (reason, f"gripper_{reason}")) > 5

        rig.until(bad, "the refusals")
    assert np.linalg.norm(twin.position() - rest) < 0.002
    assert sum(twin.joints[-1].position[-2:]) > 0.07


def test_the_warning_of_an_overload_ends_with_it(rig, twin, monkeypatch):
    monkeypatch.setattr("onedp_ros.nodes.twin_node.RECENT", 1.0)
    twin.node._epoch -= NANOSECONDS  # as if physics had stood still for a second
    rig.until(lambda: rig.level(NODE, b"\x01", "overloaded"), "the warning")
    rig.until(lambda: rig.level(NODE, b"\x00", "running"), "its end")
    assert rig.value(NODE, "time_lost_s") >= 0.9


def test_targets_far_from_an_arm_at_rest_are_not_followed(rig, twin):
    rest = twin.position()
    far = rest + np.array([0.0, 0.3, 0.0])
    rig.until(lambda: twin.send(far, gripper_down(0.0)) or rig.level(NODE, b"\x01", "too far"), "the warning")
    assert np.linalg.norm(twin.position() - rest) < 0.002


@pytest.mark.parametrize("signal_number", [None, signal.SIGINT])
def test_disabled_in_motion_and_at_the_end_of_action_node_the_arm_brakes(rig, twin, signal_number):
    for publisher in (twin.target, twin.gripper):
        rig.node.destroy_publisher(publisher)
    with Process("action_node") as process, Driving(rig, twin.poses) as driving:
        for _ in range(2 if signal_number is None else 1):
            driving.drive()
            stop = (lambda: process.send_signal(signal_number)) if signal_number else (lambda: driving.ask(False))
            check_stop(driving, stop, ROBOT.linear_deceleration)
        if signal_number:
            assert process.wait(2.0) == 0


def test_when_the_policy_dies_or_falls_silent_the_arm_brakes(rig, twin):
    for publisher in (twin.target, twin.gripper):
        rig.node.destroy_publisher(publisher)
    with Process("action_node"), Driving(rig, twin.poses) as driving:
        driving.drive()
        check_stop(driving, driving.fall_silent, ROBOT.linear_deceleration, after=ROBOT.stale_after)
        driving.drive()
        check_stop(driving, driving.die, ROBOT.linear_deceleration)


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_after_a_pause_of_action_node_nothing_goes_on_from_before(rig, twin, seconds):
    for publisher in (twin.target, twin.gripper):
        rig.node.destroy_publisher(publisher)
    with Process("action_node") as process, Driving(rig, twin.poses) as driving:
        driving.drive()
        process.send_signal(signal.SIGSTOP)
        if seconds < 3.0:
            driving.fall_silent()  # what has been sent until now will be old
        begin = time.monotonic()
        request = driving.ask(True) if seconds > 3.0 else None
        rig.until(lambda: time.monotonic() - begin > seconds, "the pause")
        rest = twin.position()
        process.send_signal(signal.SIGCONT)
        if request is not None:
            rig.until(request.done, "the answer")
            assert not request.result().success or "repeat it" in request.result().message
            rig.until(lambda: rig.error("action_node", "did not run for"), "the reason")
        else:
            rig.until(lambda: rig.error("action_node", "holding"), "the hold")
        begin = time.monotonic()
        rig.until(lambda: time.monotonic() - begin > 1.0, "a second")
        assert np.linalg.norm(twin.position() - rest) < 0.005


def test_compressed_frames_make_sets_and_broken_ones_are_named(rig):
    source = rig.source()
    source.silent |= {"wrist", "front"}
    states = rig.listen(JointState, "observation/state")
    cameras = [
        rig.node.create_publisher(CompressedImage, f"{n}_camera/color/image_raw/compressed", qos_profile_sensor_data)
        for n in ("wrist", "front")
    ]
    rig.add(ObservationNode, image_transport="compressed", timeout=0.3)
    values = itertools.count()

    def jpeg():
        return cv2.imencode(".jpg", picture(next(values) % 256))[1].tobytes()

    def publish(data):
        for camera in cameras:
            camera.publish(CompressedImage(header=header(rig.node.get_clock().now().nanoseconds), format="jpeg", data=data))

    rig.until(lambda: publish(jpeg()) or len(states) > 3, "sets")
    for broken in (b"", b"no image"):
        refused = rig.value("observation_node", "refused")
        rig.until(
            lambda data=broken, before=refused: publish(data) or rig.value("observation_node", "refused") > before, "refusals"
        )
    have = len(states)
    rig.until(lambda: publish(jpeg()) or len(states) > have + 3, "sets again")


def test_a_task_without_a_scene_and_no_task_at_all_are_refused(rig, tmp_path):
    """A task of a real cell never becomes another task's scene."""
    tea = tmp_path / "tea.yaml"
    tea.write_text(resource("config", "tasks", "pnp_milk.yaml").read_text().replace("task: pnp_milk", "task: tea"))
    with pytest.raises(UnknownNameError, match=r"unknown simulated task 'tea', expected one of .*pnp_milk"):
        rig.add(TwinNode, task=str(tea))
    for make in (TwinNode, ObservationNode):
        with pytest.raises(ValueError, match=r"parameter task is empty; give the name of a file in config/tasks \(.*pnp_milk"):
            rig.add(make, task="")
