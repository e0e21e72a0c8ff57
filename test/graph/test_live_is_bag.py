"""What a policy saw and said live is what it sees and says in the recording: byte by byte, number by number."""

import bisect
import dataclasses
import functools
import json
import threading
import time

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from standin import StandinPredictor
from std_srvs.srv import SetBool, Trigger

from onedp_ros import contract as contract_module
from onedp_ros.cli.replay import main
from onedp_ros.contract import NANOSECONDS, pairing, task_contract
from onedp_ros.data.bags.reader import BagError
from onedp_ros.evaluation.replay_live import replay_in_graph
from onedp_ros.evaluation.replay_report import compare, equal
from onedp_ros.evaluation.replayed import Outputs, read_recording, replay_offline, stamps_of_windows
from onedp_ros.geometry import gripper_down
from onedp_ros.graph.processes import graph_environment
from onedp_ros.messages import decode as data_messages
from onedp_ros.messages.decode import restamped, stamp_ns
from onedp_ros.messages.encode import header, image_message, pose_message
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.player_node import PlayerNode
from onedp_ros.nodes.policy_node import PolicyNode
from onedp_ros.nodes.recorder_node import RecorderNode
from onedp_ros.nodes.twin_node import TwinNode
from onedp_ros.policy.predictor import load_predictor
from onedp_ros.resources import resource

CONTRACT = task_contract("pnp_milk")
GOLDEN = resource("models", "pnp_milk", "golden", "bag")
CAMERAS = CONTRACT.cameras
SEED = 11
SETS = 60  # that a recording holds, at least
CHUNKS = 30  # whose windows are known, at least
MS = 1_000_000


class Watched:
    """A predictor that remembers its windows, by the stamp of the newest observation."""

    def __init__(self, predictor):
        self.predictor, self.windows = predictor, {}

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def predict(self, windows):
        for window in windows:
            self.windows[window[-1].stamp] = list(window)
        return self.predictor.predict(windows)


class Cell:
    """A robot at 200 Hz that moves and turns, and two cameras of 320x240 at 25 Hz in turn, none of whose frames is like another.

    Stamps keep their distances however late this thread is: frames of a camera lie farther apart than the contract's slop. ``form``
    is that of compressed frames; empty: raw ones.
    """

    def __init__(self, node, form):
        self.form, self.rng = form, np.random.default_rng(0)
        suffix, kind = ("/compressed", CompressedImage) if form else ("", Image)
        topics = [f"{camera.topic}{suffix}" for camera in CAMERAS.values()]
        self.cameras = [node.create_publisher(kind, topic, qos_profile_sensor_data) for topic in topics]
        self.joints = node.create_publisher(JointState, CONTRACT.arm.joint_states_topic, 10)
        self.poses = node.create_publisher(PoseStamped, CONTRACT.arm.pose_topic, 10)
        self.closing, self.silent = threading.Event(), False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        stamp, step = time.time_ns(), 0
        while not self.closing.wait(max(0.0, (stamp - time.time_ns()) / NANOSECONDS)):
            if not self.silent:
                self.publish(stamp, step)
            late = time.time_ns() - stamp > 150 * MS  # what is older would not be acted upon
            stamp, step = stamp + (200 if late else 5) * MS, step + 1

    def publish(self, stamp, step):
        t = step * 0.005
        position, quaternion = [0.5 + 0.1 * np.sin(t), 0.1 * np.cos(3 * t), 0.3], gripper_down(np.sin(2 * t))
        self.poses.publish(pose_message(position, quaternion, stamp, CONTRACT.base_frame))
        opening = 0.02 + 0.01 * np.sin(t)
        self.joints.publish(JointState(header=header(stamp), name=[*CONTRACT.arm.finger_joints], position=[opening, opening]))
        if step % 4 == 0:
            self.cameras[step // 4 % 2].publish(self.frame(stamp - 2 * MS))

    def frame(self, stamp):
        smooth = cv2.resize(self.rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        image = cv2.add(smooth, self.rng.integers(0, 16, smooth.shape, dtype=np.uint8))
        if not self.form:
            return image_message(image, stamp)
        data = cv2.imencode(f".{self.form}", image[..., ::-1])[1].tobytes()
        return CompressedImage(header=header(stamp), format=f"rgb8; {self.form} compressed bgr8", data=data)

    def close(self):
        self.closing.set()
        self.thread.join()


def ask(rig, kind, service, request=None):
    client = rig.node.create_client(kind, service)
    rig.until(client.service_is_ready, service)
    future = client.call_async(request or kind.Request())
    rig.until(future.done, f"an answer of {service}")
    return future.result()


@pytest.fixture
def cell():
    cells = []

    def make(*args):
        cells.append(Cell(*args))
        return cells[-1]

    yield make
    for made in cells:
        made.close()


RUNS = {}


@pytest.fixture
def run(rig, cell, bundle, tmp_path_factory, monkeypatch):
    """A live policy, recorded: the bag, and the windows that it predicted from. Cameras: twin, or raw, png or jpg of a Cell."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))  # for the twin's cameras
    for name, value in graph_environment({}).items():  # what a replay in a graph would set
        monkeypatch.setenv(name, value)

    def record(cameras):
        if cameras in RUNS:
            return RUNS[cameras]
        transport, out = "compressed" if cameras in ("png", "jpg") else "raw", tmp_path_factory.mktemp(cameras)
        if cameras == "twin":
            rig.add(TwinNode)
            ask(rig, SetBool, "twin_node/expert", SetBool.Request(data=True))
        else:
            cell(rig.node, "" if cameras == "raw" else cameras)
        loaded = []

        def load(path, **options):
            loaded.append(Watched(load_predictor(path, **options)))
            return loaded[0]

        rig.add(ObservationNode, image_transport=transport)
        policy = rig.add(functools.partial(PolicyNode, load), model=str(bundle), engine="torch", threads=1, seed=SEED)
        policy.start()
        topics = [*(f"observation/{name}/image" for name in CAMERAS), "observation/state", "action/chunk", "/diagnostics"]
        rig.add(RecorderNode, out=str(out), extra_topics=topics, image_transport=transport, min_free_gb=0.0)
        rates = [f"hz.{t}" for t in topics]
        rig.until(lambda: all(rig.value("recorder_node", rate) > 0 for rate in rates), "the recorder to hear all", 60.0)
        rig.until(lambda: ask(rig, Trigger, "recorder_node/start").success, "the recording to start")
        windows, begin = loaded[0].windows, time.time_ns()
        rig.until(lambda: sum(s > begin for s in list(windows)) > CHUNKS + 10, "predictions", 60.0)
        rig.until(lambda: rig.value("recorder_node", "seconds") > 2.0, "two seconds")
        answer = ask(rig, Trigger, "recorder_node/stop")
        assert answer.success, answer.message
        RUNS[cameras] = out / "episode_000000", dict(windows)
        return RUNS[cameras]

    return record


def assert_all_equal(report):
    sets, actions = report["observations"], report["actions"]
    assert sets["equal"] == sets["compared"] >= SETS, report
    assert actions["equal"] == actions["compared"] >= CHUNKS, report


@pytest.mark.parametrize("cameras", ["twin", "raw", "png", "jpg"])
def test_a_replay_sees_and_says_what_the_live_policy_saw_and_said(run, bundle, cameras):
    bag, live = run(cameras)
    recording = read_recording(bag, CONTRACT)
    predictor = Watched(load_predictor(bundle, engine="torch", threads=1, seed=SEED))
    report, _ = compare(recording, replay_offline(bag, recording, predictor), recording.outputs.sets)
    assert_all_equal(report)
    assert report["actions"]["other_window"] == 0
    assert len(predictor.windows) == report["actions"]["compared"]
    for stamp, window in predictor.windows.items():
        assert [o.stamp for o in window] == [o.stamp for o in live[stamp]]
        for a, b in zip(window, live[stamp], strict=True):
            assert a.state.tobytes() == b.state.tobytes()
            assert all(a.images[name].tobytes() == b.images[name].tobytes() for name in CAMERAS)


@pytest.mark.parametrize("cameras", ["twin", "jpg"])
def test_the_nodes_themselves_see_and_say_it_again_in_the_recordings_time(run, bundle, cameras, tmp_path):
    bag, _ = run(cameras)
    recording = read_recording(bag, CONTRACT)
    policy = {"model": bundle, "method": "onedp_s", "engine": "torch", "seed": SEED, "threads": 1}
    replayed = replay_in_graph(bag, recording, logs=tmp_path, **policy)
    report, _ = compare(recording, replayed, recording.outputs.sets)
    sets, actions = report["observations"], report["actions"]
    assert sets["equal"] == sets["compared"] >= SETS, report
    assert actions["equal"] == actions["compared"] > 0, report
    # Predicting from every set, as this graph does, gives more windows than the live policy had; without a graph, the same.
    demonstration = dataclasses.replace(recording, outputs=Outputs(CONTRACT))
    offline = replay_offline(bag, demonstration, load_predictor(bundle, engine="torch", threads=1, seed=SEED))
    assert replayed.sets == offline.sets
    assert replayed.windows == offline.windows
    assert all(equal(replayed.chunks[stamp], chunk) for stamp, chunk in offline.chunks.items())
    assert report["counts"] == {}


def test_the_nodes_keep_up_in_real_time(run, bundle, tmp_path):
    bag, _ = run("raw")
    recording = read_recording(bag, CONTRACT)
    replayed = replay_in_graph(bag, recording, real_time=True, logs=tmp_path, model=bundle, engine="torch", seed=SEED, threads=1)
    report, _ = compare(recording, replayed, recording.outputs.sets)
    sets, actions = report["observations"], report["actions"]
    assert sets["different"] == 0
    assert sets["equal"] == sets["compared"] - sets["missing"] >= SETS // 2, report  # a busy machine may lose some
    assert actions["equal"] == actions["compared"] > 0, report


def wrong_filter(monkeypatch):
    def fit(self, image):
        return cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_NEAREST)

    monkeypatch.setattr(contract_module.Camera, "fit", fit)


def colours_swapped(monkeypatch):
    decode = data_messages.decode_image
    monkeypatch.setattr(data_messages, "decode_image", lambda *args: decode(*args)[..., ::-1])


def last_state_instead_of_that_at_the_stamp(monkeypatch):
    def last(self, stamp):
        return self.values[bisect.bisect_right(self.stamps, stamp) - 1]

    monkeypatch.setattr(pairing._Samples, "at", last)


def test_the_command_knows_the_policy_and_writes_a_report(run, bundle, tmp_path, capsys):
    bag, _ = run("raw")
    assert main([str(bag), "--json", str(tmp_path / "report.json"), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    policy = {"model": str(bundle), "method": "onedp_s", "engine": "torch", "threads": 1, "seed": SEED}
    assert report["policy"] == policy
    assert_all_equal(report)
    assert json.loads((tmp_path / "out" / "replay.json").read_text()) == report
    assert cv2.imread(str(tmp_path / "out" / "replay.png")).shape[0] > 500
    count = report["observations"]["compared"]
    assert f"{count} of {count} equal byte by byte, 0 differ" in capsys.readouterr().out
    assert main([str(bag), "--image-transport", "compressed"]) == 1, "it has none"
    assert "0 made again, of other times than" in capsys.readouterr().out
    assert main([str(bag), "--seed", "3", "--json", str(tmp_path / "other.json")]) == 0
    actions = json.loads((tmp_path / "other.json").read_text())["actions"]
    assert actions["equal"] == 0
    assert 0 < actions["position_mm"]["max"] < 50


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (wrong_filter, ["front", "wrist"]),
        (colours_swapped, ["front", "wrist"]),
        (last_state_instead_of_that_at_the_stamp, ["state"]),
    ],
)
def test_any_other_way_to_the_policys_input_is_told(run, spoil, parts, monkeypatch, tmp_path, capsys):
    bag, _ = run("raw")
    spoil(monkeypatch)
    assert main([str(bag), "--json", str(tmp_path / "report.json")]) == 1
    sets = json.loads((tmp_path / "report.json").read_text())["observations"]
    assert sets["different"] == sets["compared"] >= SETS
    assert sets["which"] and all(sorted(which["different"]) == parts for which in sets["which"])


class Noting(PolicyNode):
    """Notes the stamps of the sets that come."""

    @property
    def starved(self):
        return self._starved

    def __init__(self, *args, **kwargs):
        self.stamps = []
        super().__init__(*args, **kwargs)

    def _on_set(self, *messages):
        self.stamps.append(stamp_ns(messages[-1]))
        super()._on_set(*messages)


def change(rig, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    assert ask(rig, ChangeState, "policy_node/change_state", request).success


def test_windows_follow_from_the_sets_that_came_and_the_stamps_of_the_chunks(rig, cell):
    """Though the policy is slow, is put to sleep, and does not act upon a set that waited for too long."""
    source, predictor = cell(rig.node, ""), StandinPredictor(CONTRACT, 0.03)
    rig.add(ObservationNode)
    node = rig.add(functools.partial(Noting, lambda path, **_: predictor), max_observation_age=0.04)
    node.start()

    def more(things, what):
        enough = len(things) + 20
        rig.until(lambda: len(things) > enough, what, 60.0)

    more(predictor.windows, "predictions")
    change(rig, Transition.TRANSITION_DEACTIVATE)
    more(node.stamps, "sets that nobody looks at")
    change(rig, Transition.TRANSITION_ACTIVATE)
    more(predictor.windows, "predictions")
    for _ in range(6):
        predictor.hold = threading.Event()
        enough = len(node.stamps) + 5
        rig.until(lambda n=enough: len(node.stamps) > n, "sets that wait")
        source.silent = True
        rig.until(lambda: time.time_ns() - node.stamps[-1] > 50 * MS, "the last to be too old")
        starved = node.starved
        predictor.hold.set()
        rig.until(lambda n=starved: node.starved > n, "it not to be acted upon")
        source.silent = False
        more(predictor.windows, "predictions")
    change(rig, Transition.TRANSITION_DEACTIVATE)
    made = [tuple(o.stamp for o in window) for window in predictor.windows if window[-1].stamp]  # not those of the warm-up
    followed = stamps_of_windows(CONTRACT, list(node.stamps), {window[-1] for window in made}, whole=True)
    assert made == [followed[window[-1]] for window in made]
    assert len(node.stamps) > len(set(made)) + 60, "many were passed over"
    assert sum(window[0] < window[-1] for window in made) > 80


def test_a_demonstration_goes_through_the_nodes_as_it_goes_offline(bundle, tmp_path, monkeypatch):
    for name, value in graph_environment({}).items():
        monkeypatch.setenv(name, value)
    arguments = [str(GOLDEN), "--policy", str(bundle), "--engine", "torch", "--graph", "--json", str(tmp_path / "report.json")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    sets, actions = report["observations"], report["actions"]
    assert sets["equal"] == sets["compared"] == report["sets"] >= SETS
    assert actions["compared"] == actions["predictions"] == report["sets"]
    assert report["counts"] == {}


def player(rig, **parameters):
    overrides = [rig.parameter(name, value) for name, value in {"task": "pnp_milk", "bag": str(GOLDEN), **parameters}.items()]
    return PlayerNode(context=rig.context, parameter_overrides=overrides)


def test_the_player_says_what_is_missing(rig):
    with pytest.raises(BagError, match=r"lacks the topics \['front_camera/color/image_raw/compressed', 'wrist_"):
        player(rig, image_transport="compressed")
    with pytest.raises(BagError, match=r"nowhere does not exist; give a bag"):
        player(rig, bag="nowhere")
    alone = player(rig, start_time=1.0)
    with pytest.raises(RuntimeError, match="no chunk within 1 s; do observation_node and policy_node run, with use_sim_time"):
        alone.connect()
    alone.destroy_node()


def test_a_message_gets_another_stamp_and_stays_the_same_otherwise():
    message = pose_message([0.1, 0.2, 0.3], [1, 0, 0, 0], 1_700_000_000_123_456_789, "base")
    again = deserialize_message(restamped(serialize_message(message), 5 * NANOSECONDS + 7), PoseStamped)
    assert stamp_ns(again) == 5 * NANOSECONDS + 7
    assert (again.header.frame_id, again.pose) == ("base", message.pose)
