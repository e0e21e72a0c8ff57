"""policy_node while it loads, when its model is swapped, and after a pause: real nodes, over the real services."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import ListParameters
from rclpy.lifecycle import TransitionCallbackReturn
from standin import load_standin
from test_parameters import set_parameter
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, task_contract
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.nodes.lib.policy_bundle import suggest_faster_policy
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode

NODE = "policy_node"
SUCCESS = TransitionCallbackReturn.SUCCESS


class SlowLoad:
    """Loads what it is told to only when ``go`` is set."""

    def __init__(self):
        self.go, self.loaded = threading.Event(), []

    def __call__(self, path, *, progress, **options):
        progress("reading a large file")
        assert self.go.wait(20.0)
        self.loaded.append((path, options["seed"]))
        if path == "bad":
            raise ValueError("bad/config.json does not exist")
        return load_standin(path, **options)


def call(rig, kind, name, request):
    """The answer of a service, as soon as it comes."""
    client = rig.node.create_client(kind, f"{NODE}/{name}")
    rig.until(client.service_is_ready, name)
    future = client.call_async(request)
    return future


def ask(rig, kind, name, request):
    future = call(rig, kind, name, request)
    rig.until(future.done, f"the answer of {name}")
    return future.result()


def change(rig, transition):
    return call(rig, ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition)))


def changed(rig, transition):
    future = change(rig, transition)
    rig.until(future.done, "the transition")
    return future.result().success


def state(rig):
    return ask(rig, GetState, "get_state", GetState.Request()).current_state.id


def test_it_answers_while_it_loads_and_says_what_it_does(rig):
    loader = SlowLoad()
    rig.add(functools.partial(PolicyNode, loader), model="first")
    configured = change(rig, Transition.TRANSITION_CONFIGURE)
    rig.until(lambda: rig.level(NODE, b"\0", "loading first: reading a large file"), "what it does, in /diagnostics")
    seconds = float(rig.status[NODE].message.split(", ")[1].split(" s ")[0])
    rig.until(lambda: float(rig.status[NODE].message.split(", ")[1].split(" s ")[0]) > seconds, "the time going on")
    assert state(rig) == State.TRANSITION_STATE_CONFIGURING
    assert "rate" in ask(rig, ListParameters, "list_parameters", ListParameters.Request()).result.names
    refused = set_parameter(rig, NODE, "model", "second")
    assert not refused.successful and "configuring" in refused.reason
    assert not changed(rig, Transition.TRANSITION_ACTIVATE), "refused, and at once"
    assert not changed(rig, Transition.TRANSITION_CONFIGURE)
    assert not configured.done()
    loader.go.set()
    rig.until(configured.done, "the end")
    assert configured.result().success and state(rig) == State.PRIMARY_STATE_INACTIVE
    assert changed(rig, Transition.TRANSITION_ACTIVATE) and state(rig) == State.PRIMARY_STATE_ACTIVE


def test_cleanup_and_configure_swap_the_model_and_a_bad_one_may_be_mended(rig):
    rig.source()
    loader = SlowLoad()
    loader.go.set()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    rig.add(functools.partial(PolicyNode, loader), model="first", seed=1)
    assert changed(rig, Transition.TRANSITION_CONFIGURE) and changed(rig, Transition.TRANSITION_ACTIVATE)
    rig.more(chunks, 3, "chunks of the first")
    refused = set_parameter(rig, NODE, "model", "second")
    assert not refused.successful and "deactivate and cleanup" in refused.reason
    assert changed(rig, Transition.TRANSITION_DEACTIVATE) and changed(rig, Transition.TRANSITION_CLEANUP)

    assert set_parameter(rig, NODE, "model", "bad").successful
    assert not changed(rig, Transition.TRANSITION_CONFIGURE)
    assert state(rig) == State.PRIMARY_STATE_UNCONFIGURED
    rig.until(lambda: rig.error(NODE, "bad/config.json does not exist"), "the reason")

    assert set_parameter(rig, NODE, "model", "second").successful
    assert changed(rig, Transition.TRANSITION_CONFIGURE) and changed(rig, Transition.TRANSITION_ACTIVATE)
    rig.more(chunks, 3, "chunks of the second")
    assert loader.loaded == [("first", 1), ("bad", 1), ("second", 1)]
    rig.until(lambda: "second" in [v.value for v in rig.status[NODE].values if v.key == "model"], "the second in /diagnostics")


def test_swapping_models_does_not_add_up_in_memory(rig, bundle):
    pytest.importorskip("openvino")
    node = rig.add(PolicyNode, model=str(bundle), engine="openvino", threads=1)
    used = []
    for _ in range(6):
        assert rig.transition(node, "configure") == SUCCESS
        assert rig.transition(node, "cleanup") == SUCCESS
        used.append(psutil.Process().memory_info().rss)
    assert used[-1] - used[1] < 20e6, [round(u / 1e6) for u in used]


def test_the_rate_may_change_in_motion(rig):
    node = rig.add(functools.partial(PolicyNode, load_standin), rate=2.0)
    assert rig.transition(node, "configure") == SUCCESS and rig.transition(node, "activate") == SUCCESS
    rig.until(lambda: rig.value(NODE, "ticks") > 1, "ticks")
    assert set_parameter(rig, NODE, "rate", 200.0).successful
    ticks = rig.value(NODE, "ticks")
    rig.until(lambda: rig.value(NODE, "ticks") > ticks + 200, "many more", 10.0)
    assert not set_parameter(rig, NODE, "rate", 0.0).successful


def test_a_prediction_whose_actions_are_all_past_is_not_published(rig):
    rig.source()
    held = []

    def load(path, **options):
        held.append(load_standin(path, **options))
        return held[-1]

    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    node = rig.add(functools.partial(PolicyNode, load))
    assert rig.transition(node, "configure") == SUCCESS and rig.transition(node, "activate") == SUCCESS
    rig.more(chunks, 3, "chunks")
    begun = len(held[0].windows)
    held[0].hold = threading.Event()
    rig.until(lambda: len(held[0].windows) > begun, "a prediction that is held up")
    stamp = held[0].windows[-1][-1].stamp
    horizon = int(task_contract("pnp_milk").action_stamps(0)[-1])
    rig.until(lambda: time.time_ns() > stamp + horizon, "the end of its actions")
    published = len(chunks)  # the same observation may have been predicted from before
    hold, held[0].hold = held[0].hold, None
    hold.set()
    rig.until(lambda: rig.value(NODE, "rejected.chunk_past") == 1, "the count")
    rig.more(chunks, 3, "chunks after it")
    assert stamp not in {stamp_ns(c) for c in chunks[published:]}


@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_after_a_pause_of_the_process_it_acts_on_no_old_observation(rig, seconds):
    rig.source()
    late = []
    rig.add(ObservationNode)
    rig.node.create_subscription(
        MultiDOFJointTrajectory, "action/chunk", lambda m: late.append((time.time_ns() - stamp_ns(m)) / NANOSECONDS), 10
    )
    environment = os.environ | {"ROS_DOMAIN_ID": str(rig.domain)}
    standin = Path(__file__).with_name("standin.py")
    with subprocess.Popen(
        [sys.executable, standin, "--ros-args", "-p", "autostart:=true", "-p", "task:=pnp_milk"], env=environment
    ) as process:
        try:
            rig.until(lambda: len(late) > 20, "chunks")
            process.send_signal(signal.SIGSTOP)
            end = time.monotonic() + seconds
            rig.until(lambda: time.monotonic() > end, "the end of the pause")
            late.clear()
            process.send_signal(signal.SIGCONT)
            rig.until(lambda: len(late) > 40, "chunks after it")
        finally:
            process.kill()
    # 0.2 s are allowed, and what was under way may be done, whose actions are ahead
    assert max(late) < 0.75 and max(late[1:]) < 0.4, [round(t, 2) for t in late]


@pytest.mark.parametrize(
    ("nfe", "engine", "words"),
    [
        (10, "openvino", "use onedp_s, which evaluates the network once instead of 10"),
        (1, "torch", "engine auto"),
        (1, "openvino", "threads"),
    ],
)
def test_a_slow_policy_is_told_what_helps_it(nfe, engine, words):
    class Predictor:
        pass

    predictor = Predictor()
    predictor.nfe, predictor.engine = nfe, engine
    assert words in suggest_faster_policy(predictor)
    assert nfe > 1 or "onedp_s" not in suggest_faster_policy(predictor)


def test_a_onestep_policy_that_is_slow_is_not_told_to_be_one(rig):
    rig.source()
    rig.add(ObservationNode)
    node = rig.add(functools.partial(PolicyNode, functools.partial(load_standin, seconds=0.1)))
    assert rig.transition(node, "configure") == SUCCESS and rig.transition(node, "activate") == SUCCESS
    rig.until(lambda: rig.level(NODE, b"\1", "inference takes"), "the warning")
    assert "onedp_s" not in rig.status[NODE].message and "threads" in rig.status[NODE].message
