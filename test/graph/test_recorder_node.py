"""The recorder in a real graph: what is published is in the bag, and what is wrong is told at once."""

import array
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, WrenchStamped
from mcap.reader import make_reader
from mcap_ros2.reader import read_ros2_messages
from pictures import picture
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from onedp_ros.contract import NANOSECONDS, Contract, task_contract
from onedp_ros.data import recording
from onedp_ros.data.bags import writer as bag_writer
from onedp_ros.data.bags.reader import find_bags, read_bag, read_metadata
from onedp_ros.data.bags.writer import BagWriter
from onedp_ros.data.episodes import read_episodes
from onedp_ros.data.recording import Recording, TopicWatch, next_episode
from onedp_ros.geometry import gripper_down
from onedp_ros.messages.decode import header_stamp, stamp_ns
from onedp_ros.messages.encode import header, pose_message
from onedp_ros.nodes.recorder_node import RecorderNode

NODE = "recorder_node"
WRIST, FRONT = "wrist_camera/color/image_raw", "front_camera/color/image_raw"


class Operator:
    """Gives targets at 50 Hz, whose stamps are in ``stamps``, while ``holding``."""

    def __init__(self, node: Node, name: str = "target_pose") -> None:
        self.stamps: list[int] = []
        self.holding = True
        self._pose = node.create_publisher(PoseStamped, name, 10)
        self._gripper = node.create_publisher(JointState, "gripper_target", 10)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(0.02):
            if self.holding:
                stamp = time.time_ns()
                self.stamps.append(stamp)
                self._pose.publish(pose_message([0.5, 0.0, 0.3], gripper_down(0.0), stamp, "base"))
                self._gripper.publish(JointState(header=header(stamp), name=["gripper"], position=[0.04]))

    def close(self) -> None:
        self._closing.set()
        self._thread.join()


@pytest.fixture
def operator(rig):
    made = Operator(rig.node)
    yield made
    made.close()


@pytest.fixture
def ask(rig):
    """Call one of the recorder's services."""
    clients = {name: rig.node.create_client(Trigger, f"{NODE}/{name}") for name in ("start", "stop", "fail", "discard")}

    def call(name):
        rig.until(clients[name].service_is_ready, f"the service {name}")
        future = clients[name].call_async(Trigger.Request())
        rig.until(future.done, f"an answer of {name}")
        return future.result()

    return call


@pytest.fixture
def start(rig, ask):
    """Start as soon as the topics are there."""

    def call(words=""):
        rig.until(lambda: ask("start").success, f"a recording to start {words}")

    return call


@pytest.fixture
def recorder(rig, tmp_path):
    """Make the recorder, on any disk."""

    def make(**parameters):
        return rig.add(RecorderNode, out=str(tmp_path / "bags"), **{"min_free_gb": 0.0, **parameters})

    return make


def seconds(rig):
    return rig.value(NODE, "seconds")


def test_an_episode_holds_every_message_that_was_published_while_it_was_recorded(rig, operator, recorder, start, ask, tmp_path):
    source, sent = rig.source(), {"joint_states": [], "current_pose": []}
    source.change_joints = lambda message: sent["joint_states"].append(stamp_ns(message))
    source.change_pose = lambda message: sent["current_pose"].append(stamp_ns(message))
    recorder(robot="twin", operator="me")
    start()
    began = time.time_ns()
    rig.until(lambda: seconds(rig) > 2.0, "two seconds")
    ended = time.time_ns()
    answer = ask("stop")
    assert answer.success
    assert answer.message.startswith("episode_000000: ")

    bag = tmp_path / "bags" / "episode_000000"
    got: dict[str, list[int]] = {}
    for topic, stamp, message in read_bag(bag):
        got.setdefault(topic, []).append(stamp)
        if topic.endswith("image_raw"):
            assert message.data.tobytes() == picture(source.frames["wrist" if topic == WRIST else "front", stamp]).tobytes()
    frames = source.frames.copy()
    sent |= {WRIST: [s for n, s in frames if n == "wrist"], FRONT: [s for n, s in frames if n == "front"]}
    sent |= {"target_pose": operator.stamps, "gripper_target": operator.stamps}
    assert got.keys() == sent.keys()
    for topic, stamps in got.items():
        published = [s for s in sent[topic].copy() if stamps[0] <= s <= stamps[-1]]
        assert stamps == published, topic
        assert stamps[0] <= began + 0.5 * NANOSECONDS
        assert stamps[-1] >= ended - 0.5 * NANOSECONDS
    metadata = read_metadata(bag)
    assert Contract.from_dict(metadata["contract"]) == source.contract
    assert (metadata["task"], metadata["robot"], metadata["operator"], metadata["success"]) == ("pnp_milk", "twin", "me", True)
    assert {topic: stream["messages"] for topic, stream in metadata["streams"].items()} == {t: len(s) for t, s in got.items()}
    (episode, *_), _ = read_episodes(bag, source.contract)
    assert len(episode.stamps) > 10

    (file,) = bag.glob("*.mcap")
    with file.open("rb") as stream:  # in the order of the file
        logged = [(m.log_time, header_stamp(m.data)) for _, _, m in make_reader(stream).iter_messages(log_time_order=False)]
    assert [arrival for arrival, _ in logged] == sorted(arrival for arrival, _ in logged)
    assert all(0 <= arrival - stamp < NANOSECONDS for arrival, stamp in logged)
    independent = [(m.channel.topic, m.ros_msg.header.frame_id) for m in read_ros2_messages(str(file))]
    assert len(independent) == len(logged)
    assert ("/current_pose", "base") in independent


def test_names_count_on_and_outcomes_are_kept(rig, operator, recorder, start, ask, tmp_path):
    for name in ("episode_000004", "episode_000007.partial", "episode_x", "notes"):
        (tmp_path / "bags" / name).mkdir(parents=True)
    rig.source()
    node = recorder()
    for end, name in (("stop", "episode_000008"), ("discard", "episode_000009"), ("fail", "episode_000009")):
        start()
        rig.until(lambda: rig.value(NODE, "messages") > 20, "messages")
        status = {v.key: v.value for v in rig.status[NODE].values}
        assert (status["state"], status["episode"]) == ("recording", name)
        assert ask(end).success
        rig.until(lambda: ("state", "idle") in [(v.key, v.value) for v in rig.status[NODE].values], "an idle recorder")
        assert not any(watch.timing.count for watch in node._watches.values()), "nothing piles up between episodes"
    assert read_metadata(tmp_path / "bags" / "episode_000008")["success"] is True
    assert read_metadata(tmp_path / "bags" / "episode_000009")["success"] is False
    assert next_episode(tmp_path / "bags") == "episode_000010"
    assert not (tmp_path / "bags" / "episode_000009.partial").exists()


def test_an_episode_that_cannot_be_discarded_does_not_end_the_recorder(rig, operator, recorder, start, ask, monkeypatch, tmp_path):
    rig.source()
    recorder()
    start()

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("onedp_ros.data.bags.writer.shutil.rmtree", refuse)
    answer = ask("discard")
    assert not answer.success
    assert "episode_000000.partial could not be discarded" in answer.message and "Read-only" in answer.message
    rig.until(lambda: rig.error(NODE, "make its folder writable"), "the error")
    monkeypatch.undo()
    start("after it")
    assert ask("stop").success


def test_a_service_at_the_wrong_moment_says_what_to_do(rig, operator, recorder, start, ask):
    rig.source()
    recorder()
    for name in ("stop", "fail", "discard"):
        answer = ask(name)
        assert (answer.success, answer.message) == (False, "nothing is being recorded; start first")
    start()
    answer = ask("start")
    assert not answer.success
    assert answer.message == "episode_000000 is being recorded; stop, fail or discard it first"
    assert ask("stop").success


@pytest.mark.parametrize(("silent", "topic"), [("front", FRONT), ("joints", "joint_states"), ("pose", "current_pose")])
def test_it_does_not_start_without_what_the_task_needs(rig, recorder, ask, start, tmp_path, silent, topic):
    source = rig.source()
    source.silent.add(silent)
    recorder()
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.WARN, f"cannot start: {topic} is silent"), "a warning")
    answer = ask("start")
    assert not answer.success
    assert f"{topic} is silent; check that its driver runs" in answer.message
    assert list((tmp_path / "bags").iterdir()) == []
    source.silent.clear()
    start("with it")


def test_it_does_not_start_when_the_disk_is_short(rig, recorder, ask):
    rig.source()
    recorder(min_free_gb=1e6)
    rig.until(lambda: rig.value(NODE, "hz.joint_states"), "messages")
    answer = ask("start")
    assert not answer.success
    assert "GB left, less than min_free_gb = 1e+06" in answer.message


def test_a_folder_that_is_gone_is_named(rig, recorder, ask, start, tmp_path):
    rig.source()
    recorder()
    (tmp_path / "bags").rmdir()
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.WARN, f"the folder {tmp_path / 'bags'} is gone"), "a warning")
    assert "is gone; create it" in ask("start").message
    (tmp_path / "bags").mkdir()
    start("in the folder")


def test_a_camera_that_goes_silent_is_told_at_once_and_noted(rig, operator, recorder, start, ask, tmp_path):
    source = rig.source()
    recorder()
    start()
    rig.until(lambda: rig.value(NODE, "messages") > 20, "messages")
    source.silent.add("wrist")
    rig.until(lambda: rig.error(NODE, f"{WRIST} stopped "), "an error")
    source.silent.clear()
    rig.until(lambda: rig.error(NODE, f"{WRIST} had "), "the gap")
    answer = ask("stop")
    assert answer.success
    assert f"{WRIST} had " in answer.message
    assert any(problem.startswith(f"{WRIST} had ") for problem in read_metadata(tmp_path / "bags" / "episode_000000")["problems"])


def test_an_operator_who_lets_go_is_told_and_one_who_never_held_is_noted(rig, operator, recorder, start, ask, tmp_path):
    operator.holding = False
    rig.source()
    recorder()
    start()
    rig.until(lambda: seconds(rig) > 0.6, "a while")
    assert "target_pose" not in rig.status[NODE].message
    answer = ask("stop")
    assert "target_pose never arrived" in answer.message
    assert "gripper_target never arrived" in answer.message
    start()
    operator.holding = True
    rig.until(lambda: rig.value(NODE, "hz.target_pose") > 0, "targets")
    operator.holding = False
    rig.until(lambda: rig.error(NODE, "target_pose stopped "), "an error")
    ask("discard")


def test_a_second_publisher_is_told_by_name(rig, operator, recorder, start, ask):
    rig.source()
    recorder()
    start()
    other = rig.node.create_publisher(PoseStamped, "target_pose", 1)
    rig.until(lambda: rig.error(NODE, "target_pose has 2 publishers: /test_rig, /test_rig; stop all but one"), "an error")
    rig.node.destroy_publisher(other)
    assert "2 publishers" in ask("stop").message


def test_compressed_images_stay_as_they_came(rig, operator, recorder, start, ask, tmp_path):
    source, sent = rig.source(), {}
    publishers = {
        c.topic: rig.node.create_publisher(CompressedImage, f"{c.topic}/compressed", qos_profile_sensor_data)
        for c in source.contract.cameras.values()
    }

    def forward(message: Image) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(120, 160, 3)
        jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
        for topic, publisher in publishers.items():
            sent[topic, stamp_ns(message)] = jpeg
            publisher.publish(CompressedImage(header=message.header, format="rgb8; jpeg compressed", data=array.array("B", jpeg)))

    source.change_image = forward
    recorder(image_transport="compressed")
    start()
    rig.until(lambda: seconds(rig) > 0.6, "a while")
    assert ask("stop").success
    counts = dict.fromkeys(publishers, 0)
    for topic, stamp, message in read_bag(tmp_path / "bags" / "episode_000000"):
        assert not topic.endswith("image_raw")
        if topic.endswith("/compressed"):
            assert message.format == "rgb8; jpeg compressed"
            assert message.data.tobytes() == sent[topic.removesuffix("/compressed"), stamp]
            counts[topic.removesuffix("/compressed")] += 1
    assert min(counts.values()) > 10
    assert read_episodes(tmp_path / "bags" / "episode_000000", source.contract)[0]


def test_further_topics_are_recorded_with_the_types_they_have(rig, operator, recorder, start, ask, tmp_path):
    rig.source()
    recorder(extra_topics=["franka/state/wrench", "said"])
    rig.until(lambda: rig.value(NODE, "hz.joint_states"), "messages")
    rig.until(lambda: "franka/state/wrench of extra_topics is not published" in ask("start").message, "a refusal")
    wrenches = rig.node.create_publisher(WrenchStamped, "franka/state/wrench", 10)
    words = rig.node.create_publisher(String, "said", 10)
    start("with them")
    sent = []

    def say():
        sent.append(f"word {len(sent)}")
        words.publish(String(data=sent[-1]))
        wrenches.publish(WrenchStamped(header=header(len(sent))))
        return rig.value(NODE, "hz.said") > 0 and len(sent) > 50

    rig.until(say, "words to arrive")
    ask("stop")
    got = {}
    for topic, _, message in read_bag(tmp_path / "bags" / "episode_000000", ["said", "franka/state/wrench"]):
        got.setdefault(topic, []).append(message)
    heard = [message.data for message in got["said"]]
    assert heard == sent[sent.index(heard[0]) : sent.index(heard[-1]) + 1]
    assert len(got["franka/state/wrench"]) > 10
    problems = read_metadata(tmp_path / "bags" / "episode_000000")["problems"]
    assert not [p for p in problems if p.startswith(("said", "franka"))]


def test_a_full_disk_ends_the_recording_and_the_next_one_can_start(rig, operator, recorder, start, ask, tmp_path, monkeypatch):
    rig.source()
    recorder()
    start()
    rig.until(lambda: rig.value(NODE, "bytes") > 0, "a chunk on disk")

    def fail(_storage):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(bag_writer._Storage, "close_chunk", fail)
        rig.until(lambda: rig.error(NODE, "is full"), "an error")
    partial = tmp_path / "bags" / "episode_000000.partial"
    for words in ("the disk at ", f"{partial} ends here, and its content is readable"):
        assert words in rig.status[NODE].message
    answer = ask("stop")
    assert not answer.success
    assert f"{partial} ends here" in answer.message
    assert find_bags([tmp_path / "bags"]) == ([partial], {})
    assert sum(1 for _ in read_bag(partial)) > 20
    assert read_metadata(partial)["interrupted"] is True
    start("again")
    rig.until(lambda: rig.value(NODE, "messages") > 20, "messages")
    assert "is full" not in rig.status[NODE].message
    assert ask("stop").success


def test_what_a_slow_disk_cannot_take_is_counted_and_told(rig, operator, recorder, start, ask, tmp_path, monkeypatch):
    written = threading.Event()
    write = bag_writer.BagWriter.write

    def slow(self, *message):
        written.wait()
        write(self, *message)

    monkeypatch.setattr(recording, "QUEUE_BYTES", 2_000_000)
    monkeypatch.setattr(bag_writer.BagWriter, "write", slow)
    rig.source()
    recorder()
    start()
    rig.until(lambda: rig.error(NODE, "messages were lost: the disk or the CPU is too slow"), "an error")
    lost = rig.value(NODE, "lost")
    assert lost > 0
    written.set()
    rig.until(lambda: rig.value(NODE, "waiting_MB") < 1.0, "the queue to empty")
    assert ask("stop").success
    bag = tmp_path / "bags" / "episode_000000"
    (problem,) = [p for p in read_metadata(bag)["problems"] if "lost" in p]
    streams = read_metadata(bag)["streams"].values()
    assert sum(s["messages"] for s in streams) - sum(1 for _ in read_bag(bag)) == int(problem.split()[0]) >= lost


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_episode_outlives_its_recorder(rig, operator, start, ask, tmp_path, end):
    rig.source()
    environment = {**os.environ, "ROS_DOMAIN_ID": str(rig.domain)}
    arguments = ["--ros-args", "-p", "task:=pnp_milk", "-p", f"out:={tmp_path}", "-p", "min_free_gb:=0.0"]
    process = subprocess.Popen([sys.executable, "-m", "onedp_ros.nodes.recorder_node", *arguments], env=environment)
    try:
        start()
        rig.until(lambda: rig.value(NODE, "bytes") > 0, "a chunk on disk")
        messages = rig.value(NODE, "messages")
        process.send_signal(end)
        rig.until(lambda: process.poll() is not None, "the recorder to end")
    finally:
        process.kill()
        process.wait()
    (bag,), broken = find_bags([tmp_path])
    assert not broken
    metadata = read_metadata(bag)
    assert metadata["interrupted"] is True
    assert "success" not in metadata
    assert {topic for topic, _, _ in read_bag(bag)} >= {WRIST, FRONT, "joint_states", "current_pose", "target_pose"}
    if end == signal.SIGINT:
        assert process.returncode == 0
        assert bag.name == "episode_000000"
        assert sum(1 for _ in read_bag(bag)) >= messages
        assert isinstance(metadata["problems"], list)
    else:
        assert bag.name == "episode_000000.partial"


def test_a_wrong_transport_is_refused(rig, tmp_path):
    with pytest.raises(ValueError, match="image_transport is 'theora', expected raw or compressed"):
        rig.add(RecorderNode, out=str(tmp_path), image_transport="theora")


def test_what_comes_while_topics_are_polled_is_written_in_its_turn(tmp_path):
    contract = task_contract("pnp_milk")
    topics = {"a": "std_msgs/msg/String", "b": "std_msgs/msg/String"}
    recording = Recording(BagWriter(tmp_path / "bag", contract, topics))
    word = bytes([0, 1, 0, 0, 2, 0, 0, 0, 65, 0])
    begin = time.time_ns()
    for arrival, topic in ((2, "a"), (7, "a"), (1, "b"), (6, "b")):
        recording.add(begin + arrival, topic, word)
    recording.pass_on(begin + 5)
    for arrival, topic in ((4, "a"), (8, "b")):  # the first was late
        recording.add(begin + arrival, topic, word)
    recording.pass_on(begin + 8)
    recording.end()
    (file,) = recording.writer.close().glob("*.mcap")
    with file.open("rb") as stream:
        written = [(m.log_time - begin, c.topic) for _, c, m in make_reader(stream).iter_messages(log_time_order=False)]
    assert written == [(1, "/b"), (2, "/a"), (4, "/a"), (6, "/b"), (7, "/a")]
    assert (recording.messages, recording.lost) == (5, 0)


MS = 1_000_000
BEGAN = 1_700_000_000 * NANOSECONDS


def message_at(stamp: int) -> bytes:
    return bytes([0, 1, 0, 0]) + (stamp // NANOSECONDS).to_bytes(4, "little") + (stamp % NANOSECONDS).to_bytes(4, "little")


def watched(times_ms, late_ms=5, **needs):
    """A watch that has seen messages stamped at these times after the start, and the time of the last arrival."""
    watch = TopicWatch("topic", **{"hz": 20.0, "gap": 0.075, "optional": False, **needs})
    watch.begin(BEGAN)
    for at in times_ms:
        watch.take(message_at(BEGAN + round(at * MS)), BEGAN + round((at + late_ms) * MS))
    return watch, BEGAN + round((times_ms[-1] + late_ms) * MS)


def texts(watch, now, ended=False):
    return list(watch.problems(now, ended).values())


def test_a_stream_as_the_task_needs_it_has_no_problem():
    for period in (50, 33.3, 5):
        watch, now = watched(np.arange(0, 3000, period))
        assert texts(watch, now, ended=True) == []
        assert watch.hz(now) == pytest.approx(1000 / period, rel=0.01)


def test_one_frame_of_thirty_a_second_may_miss_but_not_two_in_a_row():
    times = np.arange(0, 3000, 33.3)
    watch, now = watched(np.delete(times, 40))
    assert texts(watch, now) == []
    assert watch.summary()["missing_frames"] == 1
    watch, now = watched(np.delete(times, [40, 41]))
    (text,) = texts(watch, now)
    assert text == "topic had 1 gap longer than 0.075 s, the longest 0.10 s, the first 1.3 s after the start"


def test_a_slow_stream_is_told_though_it_has_no_gap():
    watch, now = watched(np.arange(0, 3000, 66))
    assert texts(watch, now) == ["topic arrived at 15.2 Hz, the task needs 20"]


def test_silence_counts_from_the_start_and_is_forgiven_when_nothing_is_missing():
    watch = TopicWatch("topic", 20.0, 0.075, optional=False)
    watch.begin(BEGAN)
    assert texts(watch, BEGAN + 200 * MS) == []
    assert texts(watch, BEGAN + 400 * MS) == ["topic stopped 0.0 s after the start"]
    for at in range(0, 400, 33):  # late, but all there
        watch.take(message_at(BEGAN + at * MS), BEGAN + 450 * MS)
    assert texts(watch, BEGAN + 460 * MS) == []


def test_stamps_of_another_clock_and_out_of_order_are_told():
    watch, now = watched(np.arange(0, 1000, 33), late_ms=1500)
    assert texts(watch, now) == ["topic was stamped 1.50 s before it arrived; synchronise the clocks (chrony)"]
    watch, now = watched(np.arange(0, 1000, 33), late_ms=-200)
    assert texts(watch, now) == ["topic was stamped 0.20 s after it arrived; synchronise the clocks (chrony)"]
    watch, now = watched([*range(0, 600, 33), *range(500, 1000, 33)])
    assert texts(watch, now) == ["topic had 3 stamps not newer than the one before"]


def test_a_header_is_read_in_either_byte_order():
    stamp = BEGAN + 123_456_789
    assert header_stamp(message_at(stamp)) == stamp
    big = bytes([0, 0, 0, 0]) + (stamp // NANOSECONDS).to_bytes(4, "big") + (stamp % NANOSECONDS).to_bytes(4, "big")
    assert header_stamp(big) == stamp
