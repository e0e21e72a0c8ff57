"""What ``ros2 param set`` may change, and when, over the real services."""

import pytest
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from onedp_ros.nodes.lib.lifecycle import LifecycleNode
from onedp_ros.nodes.lib.parameters import declare, declare_dynamic, declare_unconfigured

pytestmark = pytest.mark.concurrent

KINDS = {float: ("double_value", ParameterType.PARAMETER_DOUBLE), str: ("string_value", ParameterType.PARAMETER_STRING)}


class Tuned(LifecycleNode):
    def __init__(self, **kwargs):
        super().__init__("tuned", namespace="left", **kwargs)
        self.fixed = declare(self, "fixed", 0.5, "Read once", 0.0, 1.0)
        self.lead = declare_dynamic(self, "lead", 0.18, "Ahead of the clock, s", 0.0, 0.5)
        self.model = declare_unconfigured(self, "model", "first", "What to load")


def set_parameter(rig, node, name, value):
    """The result of the node's service."""
    client = rig.node.create_client(SetParameters, f"{node}/set_parameters")
    rig.until(client.service_is_ready, f"{node}'s parameters")
    field, kind = KINDS[type(value)]
    message = ParameterMessage(name=name, value=ParameterValue(type=kind, **{field: value}))
    future = client.call_async(SetParameters.Request(parameters=[message]))
    rig.until(future.done, "the answer")
    rig.node.destroy_client(client)
    return future.result().results[0]


def test_a_dynamic_number_changes_within_its_range_at_any_time(rig):
    node = rig.add(Tuned)
    assert node.lead() == 0.18
    rig.transition(node, "configure"), rig.transition(node, "activate")
    assert set_parameter(rig, "/left/tuned", "lead", 0.3).successful
    assert node.lead() == 0.3
    for bad in (0.6, -0.1, float("nan"), float("inf")):
        refused = set_parameter(rig, "/left/tuned", "lead", bad)
        assert not refused.successful
        assert "lead out of range" in refused.reason and "0.5" in refused.reason
    assert not set_parameter(rig, "/left/tuned", "lead", "fast").successful
    assert node.lead() == 0.3


def test_what_is_loaded_at_configure_changes_only_while_unconfigured(rig):
    node = rig.add(Tuned)
    assert set_parameter(rig, "/left/tuned", "model", "second").successful
    assert node.model() == "second"
    rig.transition(node, "configure")
    for state, remedy in (("inactive", "lifecycle set /left/tuned cleanup"), ("active", "/left/tuned deactivate and cleanup")):
        if state == "active":
            rig.transition(node, "activate")
        refused = set_parameter(rig, "/left/tuned", "model", "third")
        assert not refused.successful
        assert f"it is {state}" in refused.reason and remedy in refused.reason
        assert set_parameter(rig, "/left/tuned", "lead", 0.2).successful, "the others are free"
    assert node.model() == "second"
    rig.transition(node, "deactivate"), rig.transition(node, "cleanup")
    assert set_parameter(rig, "/left/tuned", "model", "third").successful
    assert node.model() == "third"


def test_what_is_read_once_is_refused_always(rig):
    node = rig.add(Tuned)
    refused = set_parameter(rig, "/left/tuned", "fixed", 0.6)
    assert not refused.successful and "read-only" in refused.reason
    assert node.fixed == pytest.approx(0.5)
