"""policy_node with a real, randomly initialised policy instead of a stand-in."""

import json

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode
from onedp_ros.policy.checkpoint import config_digest

pytestmark = pytest.mark.concurrent

NODE = "policy_node"
ROTATION = np.array([1, 0, 0, 0, -1, 0], dtype=np.float32)


def test_a_real_policy_runs_in_the_graph(rig, bundle):
    rig.source()
    chunks = rig.listen(MultiDOFJointTrajectory, "action/chunk")
    rig.add(ObservationNode)
    node = rig.add(PolicyNode, model=str(bundle), engine="torch", threads=1)
    assert rig.transition(node, "configure") == TransitionCallbackReturn.SUCCESS
    assert rig.transition(node, "activate") == TransitionCallbackReturn.SUCCESS
    rig.until(lambda: len(chunks) >= 5, "chunks")
    hand = chunks[0].points[5].transforms[0]
    np.testing.assert_allclose([hand.translation.x, hand.translation.y, hand.translation.z], [0.5, 0, 0.3], atol=0.011)
    rig.until(lambda: rig.value(NODE, "policy_hz") > 0, "the rate")
    facts = {v.key: v.value for v in rig.status[NODE].values}
    assert (facts["engine"], facts["method"], facts["nfe"]) == ("torch", "onedp_s", "1")


def change_contract(path):
    config = json.loads((path / "config.json").read_text())
    config["contract"]["slop"] = 0.001
    (path / "config.json").write_text(json.dumps({**config, "config_sha256": config_digest(config)}))


def truncate(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def change_network(path):
    config = json.loads((path / "config.json").read_text())
    config["network"]["unet_channels"] = [16, 64]
    (path / "config.json").write_text(json.dumps({**config, "config_sha256": config_digest(config)}))


@pytest.mark.parametrize(
    ("spoil", "words"), [(change_contract, "'slop'"), (truncate, "truncated"), (change_network, "unet."), (None, "does not exist")]
)
def test_a_policy_that_does_not_fit_is_refused_with_the_reason(rig, bundle, tmp_path, spoil, words):
    if spoil is not None:
        for file in bundle.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        spoil(tmp_path)
    node = rig.add(PolicyNode, model=str(tmp_path), engine="torch")
    assert rig.transition(node, "configure") == TransitionCallbackReturn.FAILURE
    rig.until(lambda: rig.error(NODE, words), "the error")
    assert str(tmp_path) in rig.status[NODE].message
