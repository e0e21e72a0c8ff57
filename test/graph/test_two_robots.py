"""Two robots in one ROS domain under namespaces: each has the whole graph of a task, twin, cameras and policy, as processes."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from std_srvs.srv import SetBool
from test_parameters import set_parameter

from onedp_ros.graph.processes import placed, task_graph
from onedp_ros.graph.supervisor import Supervisor
from onedp_ros.messages.decode import pose_arrays

PLACES = {"a": (0.5, 0.0, 0.3), "b": (0.42, 0.12, 0.35), "c": (0.45, -0.12, 0.3)}  # m; where each policy wants the hand
NODES = ("twin_node", "observation_node", "policy_node", "action_node")


@pytest.fixture(scope="module")
def bundles(make_bundle):
    return {name: make_bundle(name, place) for name, place in PLACES.items()}


def ask(rig, kind, name, request):
    client = rig.node.create_client(kind, name)
    rig.until(client.service_is_ready, name, 60.0)
    future = client.call_async(request)
    rig.until(future.done, f"the answer of {name}", 60.0)
    return future.result()


def test_each_moves_by_its_own_policy_and_changes_of_one_leave_the_other(rig, bundles, tmp_path):
    poses = {robot: rig.listen(PoseStamped, f"/{robot}/current_pose") for robot in "ab"}

    def at(robot, place):
        """Whether the robot's hand is within 2.5 cm of where a policy wants it."""
        newest = poses[robot][-1:]
        return newest and np.linalg.norm(pose_arrays(newest[0].pose)[0] - PLACES[place]) < 0.025

    def facts(node):
        return {v.key: v.value for v in rig.status[node].values}

    def graph(robot, seed):
        nodes = task_graph("pnp_milk", model=bundles[robot], engine="torch", threads=1, twin_seed=seed)
        environment = {"ROS_DOMAIN_ID": str(rig.domain)}
        return Supervisor(placed(nodes, namespace=robot), tmp_path / robot, environment)

    with graph("a", 1) as first, graph("b", 2) as second:

        def until(condition, what):
            def watched():
                first.check(), second.check()
                return condition()

            rig.until(watched, what, 90.0)

        until(lambda: at("a", "a") and at("b", "b"), "each hand where its own policy wants it")
        until(lambda: {f"/{robot}/{node}" for robot in "ab" for node in NODES} <= set(rig.status), "diagnostics of all")
        assert facts("/a/policy_node")["model"] == str(bundles["a"]) and facts("/b/policy_node")["model"] == str(bundles["b"])
        shared = {topic for topic, _ in rig.node.get_topic_names_and_types() if not topic.startswith(("/a/", "/b/"))}
        assert shared <= {"/diagnostics", "/rosout", "/parameter_events"}

        # a's lead in motion
        assert set_parameter(rig, "/a/action_node", "lead", 0.05).successful
        assert not set_parameter(rig, "/a/action_node", "lead", 5.0).successful
        leads = [
            ask(rig, GetParameters, f"/{robot}/action_node/get_parameters", GetParameters.Request(names=["lead"])) for robot in "ab"
        ]
        assert [lead.values[0].double_value for lead in leads] == [0.05, 0.18]
        assert facts("/a/action_node")["enabled"] == facts("/b/action_node")["enabled"] == "True"

        # b's model, while a goes on
        chunks = rig.value("/a/policy_node", "chunks")

        def change(transition):
            request = ChangeState.Request(transition=Transition(id=transition))
            return ask(rig, ChangeState, "/b/policy_node/change_state", request).success

        assert change(Transition.TRANSITION_DEACTIVATE) and change(Transition.TRANSITION_CLEANUP)
        assert set_parameter(rig, "/b/policy_node", "model", str(bundles["c"])).successful
        assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
        until(lambda: facts("/b/policy_node").get("model") == str(bundles["c"]), "the other model")
        assert ask(rig, SetBool, "/b/action_node/enable", SetBool.Request(data=True)).success  # it gave up after 3 s without chunks
        until(lambda: at("b", "c"), "the second hand where its new policy wants it")
        assert at("a", "a") and facts("/a/policy_node")["model"] == str(bundles["a"])
        until(lambda: rig.value("/a/policy_node", "chunks") > chunks + 20, "the first going on")
        assert rig.value("/a/action_node", "holds") == 0 or facts("/a/action_node")["enabled"] == "True"
