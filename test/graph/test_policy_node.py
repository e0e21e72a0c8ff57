import dataclasses
import functools
import threading

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from standin import STEP, StandinPredictor, load_standin
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, Contract, task_contract
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import header, image_message
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode

NODE = "policy_node"
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class Loader:
    """Remembers what it loaded and how it was asked to."""

    def __init__(self, **options):
        self.options = options

    def __call__(self, path, **asked):
        self.asked = asked
        self.predictor = load_standin(path, **{**asked, **self.options})
        return self.predictor


def active(rig, loader, **parameters):
    node = rig.add(functools.partial(PolicyNode, loader), **parameters)
    assert rig.transition(node, "configure") == SUCCESS
    assert rig.transition(node, "activate") == SUCCESS
    return node


def test_predicts_from_observations_spaced_by_dt_under_the_stamp_of_the_newest(rig):
    source, loader = rig.source(), Loader()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    active(rig, loader, seed=5, method="onedp_s")

    def spaced_windows():
        """Those with a history, by the stamp of their newest observation; several chunks may be of one."""
        return {w[-1].stamp: w for w in list(loader.predictor.windows) if w[0].stamp != w[1].stamp}

    rig.until(lambda: len(spaced_windows()) >= 25 and len(chunks) >= 40, "forty chunks, many with a history")
    assert loader.asked["seed"] == 5
    assert loader.asked["method"] == "onedp_s"

    dt = task_contract("pnp_milk").dt_ns
    windows = spaced_windows()
    spaced = list(windows.values())
    for window in spaced:
        assert abs(window[1].stamp - window[0].stamp - dt) <= dt // 2
        np.testing.assert_allclose(window[0].state[:3], source.position(window[0].stamp), atol=2e-5)
    gaps = np.array([w[1].stamp - w[0].stamp for w in spaced])
    assert abs(np.median(gaps) - dt) < 0.01 * NANOSECONDS, "dt, and not one tick"

    chunk = next(c for c in chunks if stamp_ns(c) in windows)
    state = windows[stamp_ns(chunk)][-1].state
    assert list(chunk.joint_names) == ["end_effector", "gripper"]
    assert chunk.header.frame_id == "base"
    times = [p.time_from_start.sec * NANOSECONDS + p.time_from_start.nanosec for p in chunk.points]
    assert times == [(i - 1) * dt for i in range(16)]
    assert chunk.points[0].time_from_start.sec == -1
    hand = np.array([p.transforms[0].translation.x for p in chunk.points])
    np.testing.assert_allclose(hand, state[0] + STEP * (np.arange(16) - 1), atol=1e-6)
    assert chunk.points[3].transforms[1].translation.x == pytest.approx(0.04, abs=1e-6)


def test_warm_up_is_not_counted_and_only_active_it_predicts(rig):
    rig.source()
    loader = Loader()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    node = rig.add(functools.partial(PolicyNode, loader))
    assert rig.transition(node, "configure") == SUCCESS
    warmed = len(loader.predictor.windows)
    assert warmed > 0
    rig.until(lambda: rig.value("observation_node", "observations") > 20, "observations")
    assert len(loader.predictor.windows) == warmed
    rig.until(lambda: NODE in rig.status, "a status")
    assert rig.value(NODE, "chunks") == 0
    assert rig.value(NODE, "nfe") == 1

    assert rig.transition(node, "activate") == SUCCESS
    rig.more(chunks, 3, "chunks when active")
    assert rig.transition(node, "deactivate") == SUCCESS
    stopped = len(loader.predictor.windows)
    seen = rig.value("observation_node", "observations")
    rig.until(lambda: rig.value("observation_node", "observations") > seen + 20, "more observations")
    assert len(loader.predictor.windows) == stopped
    assert rig.transition(node, "cleanup") == SUCCESS
    assert rig.transition(node, "configure") == SUCCESS
    assert rig.transition(node, "activate") == SUCCESS
    rig.more(chunks, 3, "chunks when configured again")


def test_ticks_during_a_prediction_are_skipped_and_counted_never_queued(rig):
    rig.source()
    loader = Loader()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    node = active(rig, loader)
    rig.more(chunks, 3, "chunks before")
    loader.predictor.hold = threading.Event()
    skipped = rig.value(NODE, "ticks_skipped")
    rig.until(lambda: rig.value(NODE, "ticks_skipped") > skipped + 20, "skipped ticks")
    begun = len(loader.predictor.windows)
    loader.predictor.hold.set()
    rig.more(chunks, 5, "chunks after it")
    stale, fresh = loader.predictor.windows[begun - 1][-1].stamp, loader.predictor.windows[begun][-1].stamp
    assert fresh - stale > 0.2 * NANOSECONDS, "the next prediction is of the newest observation"
    assert rig.transition(node, "deactivate") == SUCCESS


def test_a_slow_policy_still_sees_observations_spaced_by_dt(rig):
    rig.source()
    loader = Loader(seconds=0.2)
    rig.add(ObservationNode)
    active(rig, loader)
    rig.until(lambda: rig.value(NODE, "chunks") > 5, "slow chunks")
    dt = task_contract("pnp_milk").dt_ns
    gaps = [w[1].stamp - w[0].stamp for w in loader.predictor.windows if w[-1].stamp][1:]
    assert gaps and all(abs(gap - dt) <= dt // 2 for gap in gaps)


def test_an_old_observation_is_not_acted_upon(rig):
    source = rig.source()
    source.offset = -NANOSECONDS // 2
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    active(rig, Loader())
    rig.until(lambda: rig.value(NODE, "ticks_starved") > 20, "starved ticks")
    assert not chunks
    source.offset = 0
    rig.more(chunks, 3, "chunks from observations of now")


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (0.0, "rotation")])
def test_a_chunk_that_is_none_is_not_published_but_counted(rig, value, words):
    rig.source()
    loader = Loader()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    active(rig, loader)
    rig.more(chunks, 3, "chunks before")

    def spoil(chunk):
        chunk[0, 4, 3:9] = value

    loader.predictor.spoil = spoil
    rig.until(lambda: rig.error(NODE, words), "the error")
    published = rig.value(NODE, "chunks")
    counted = rig.value(NODE, "rejected.chunk_against_the_contract")
    rig.until(lambda: rig.value(NODE, "rejected.chunk_against_the_contract") > counted, "more of them")
    assert rig.value(NODE, "chunks") == published
    loader.predictor.spoil = None
    rig.more(chunks, 3, "chunks after it")


def test_an_engine_that_fails_is_reported_and_tried_again(rig):
    rig.source()
    loader = Loader()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    active(rig, loader)
    rig.more(chunks, 3, "chunks before")

    def fail(chunk):
        raise OSError("out of memory")

    loader.predictor.spoil = fail
    rig.until(lambda: rig.error(NODE, "inference failed: out of memory"), "the error")
    loader.predictor.spoil = None
    rig.more(chunks, 3, "chunks after it")


@pytest.mark.parametrize(("change", "field"), [({"control_hz": 10.0}, "control_hz"), ({"n_action_steps": 4}, "n_action_steps")])
def test_a_policy_of_another_contract_is_refused_and_the_field_named(rig, change, field):
    other = dataclasses.replace(task_contract("pnp_milk"), **change)
    node = rig.add(functools.partial(PolicyNode, lambda path, **_: StandinPredictor(other)))
    assert rig.transition(node, "configure") == FAILURE
    rig.until(lambda: rig.error(NODE, f"'{field}'"), "the error")
    assert rig.transition(node, "configure") == FAILURE, "it stays unconfigured and may be tried again"


def test_a_policy_that_does_not_load_ends_an_autostarted_node_with_the_reason(rig):
    def load(path, **_):
        raise ValueError(f"{path}/config.json does not exist")

    made = []

    def make(**kwargs):
        made.append(PolicyNode(load, **kwargs))
        return made[0]

    rig.add(make, model="nowhere")
    with pytest.raises(RuntimeError, match=r"nowhere/config\.json does not exist"):
        made[0].start()


def test_observations_that_stop_or_never_come_are_named(rig):
    loader = Loader()
    active(rig, loader)
    rig.until(lambda: rig.error(NODE, "observation/state"), "the error")
    assert rig.value(NODE, "ticks_starved") > 0


@pytest.mark.parametrize("spoil", ["nan", "bytes", "second publisher"])
def test_nan_in_the_observed_state_images_cut_short_and_a_second_publisher_are_refused(rig, spoil):
    contract: Contract = task_contract("pnp_milk")
    images = {n: rig.node.create_publisher(Image, f"observation/{n}/image", qos_profile_sensor_data) for n in contract.cameras}
    states = rig.node.create_publisher(JointState, "observation/state", qos_profile_sensor_data)
    reason = "observation_against_the_contract"
    if spoil == "second publisher":
        reason = "several_publishers"
        rig.node.create_publisher(JointState, "observation/state", qos_profile_sensor_data)
    loader = Loader()
    active(rig, loader)
    warmed = len(loader.predictor.windows)

    def publish():
        stamp = rig.node.get_clock().now().nanoseconds
        for publisher in images.values():
            image = image_message(np.zeros((120, 160, 3), np.uint8), stamp)
            if spoil == "bytes":
                image.data = bytes(100)
            publisher.publish(image)
        bad = float("nan") if spoil == "nan" else 0.0
        states.publish(JointState(header=header(stamp), name=list(contract.state_names), position=[0.4, bad, *[0.0] * 7]))
        return rig.value(NODE, f"rejected.{reason}") > 0

    rig.until(publish, "the refusal to be counted")
    assert len(loader.predictor.windows) == warmed
