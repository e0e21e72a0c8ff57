import functools

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from standin import load_standin
from std_srvs.srv import SetBool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, ContractError, task_contract
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.geometry import gripper_down, rotation_angle
from onedp_ros.messages.decode import stamp_ns
from onedp_ros.messages.encode import chunk_message, pose_message
from onedp_ros.nodes.action_node import ActionNode
from onedp_ros.nodes.crisp_node import CrispNode
from onedp_ros.nodes.franka_node import FrankaNode
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.policy_node import PolicyNode
from onedp_ros.resources import resource

NODE = "action_node"
CONTRACT = task_contract("pnp_milk")
START = np.array([0.5, 0.0, 0.3])
SPEED = 0.1  # m/s along x


class Arm:
    """A measured pose that stays, and chunks that lead away from it at SPEED."""

    def __init__(self, rig):
        self.rig = rig
        self.targets = rig.listen(PoseStamped, "target_pose")
        self.grips = rig.listen(JointState, "gripper_target")
        self._pose = rig.node.create_publisher(PoseStamped, "current_pose", 10)
        self._chunks = rig.node.create_publisher(MultiDOFJointTrajectory, "action/chunk", 1)
        self._client = rig.node.create_client(SetBool, "action_node/enable")
        self.position, self.zero = START, 0

    def now(self):
        return self.rig.node.get_clock().now().nanoseconds

    def measure(self):
        self._pose.publish(pose_message(self.position, gripper_down(0.0), self.now(), "base"))

    def chunk(self, stamp, spoil=None):
        stamps = CONTRACT.action_stamps(stamp)
        seconds = (stamps - self.zero) / NANOSECONDS
        positions = START + np.outer(SPEED * seconds, [1, 0, 0])
        quaternions = np.array([gripper_down(0.3 * s) for s in seconds])
        fields = {"positions": positions, "quaternions": quaternions, "openings": np.full(16, 0.03)}
        if spoil is not None:
            spoil(fields)
        self._chunks.publish(chunk_message(ActionChunk(stamp, stamps, **fields), "base"))

    def enable(self, wanted=True):
        self.rig.until(self._client.service_is_ready, "the service")
        call = self._client.call_async(SetBool.Request(data=wanted))
        self.rig.until(lambda: self.measure() or call.done(), "an answer")
        return call.result()

    def drive(self, condition, what):
        """Send chunks, each 20 ms old, until the condition holds."""
        if not self.zero:
            self.zero = self.now()

        def step():
            self.measure()
            self.chunk(self.now() - 20_000_000)
            return condition()

        return self.rig.until(step, what)


@pytest.fixture
def arm(rig):
    made = Arm(rig)
    rig.add(ActionNode, lead=0.0)
    return made


@pytest.mark.parametrize("make", [ActionNode, CrispNode, FrankaNode])
def test_a_node_that_drives_one_arm_refuses_the_contract_of_two(rig, tmp_path, make):
    task = yaml.safe_load(resource("config", "tasks", "pnp_milk.yaml").read_text())
    left = [{**feature, "name": f"left_{feature['name']}", "topic": f"left/{feature['topic']}"} for feature in task["action"]]
    path = tmp_path / "two_arms.yaml"
    path.write_text(yaml.safe_dump({**task, "action": [*task["action"], *left]}))
    with pytest.raises(ContractError, match=r"is not of one arm with a gripper: its action has 2 positions"):
        rig.add(make, task=str(path))


def test_begins_at_the_measured_pose_and_samples_chunks_by_time(rig, arm):
    assert arm.enable().success
    first = rig.until(lambda: arm.targets, "a target")[0]
    np.testing.assert_allclose([first.pose.position.x, first.pose.position.y, first.pose.position.z], START)
    assert first.header.frame_id == "base"
    assert not arm.grips, "the hand is told nothing before a chunk says what"

    def since():
        return [t for t in arm.targets if stamp_ns(t) > arm.zero + 0.3 * NANOSECONDS]

    arm.drive(lambda: len(since()) > 60 and arm.grips, "targets")
    followed = since()
    away = []
    for target in followed:
        seconds = (stamp_ns(target) - arm.zero) / NANOSECONDS
        q = target.pose.orientation
        turned = rotation_angle(np.array([q.x, q.y, q.z, q.w]), gripper_down(0.3 * seconds))
        away.append((abs(target.pose.position.x - START[0] - SPEED * seconds), turned))
    # sampled just before it is stamped: at most some milliseconds behind the line
    assert np.all(np.max(away, axis=0) < [SPEED * 0.03, 0.01])
    assert len({t.pose.position.x for t in followed}) == len(followed), "interpolated: every target is another"
    assert list(arm.grips[-1].name) == ["gripper"]
    assert arm.grips[-1].position[0] == pytest.approx(0.03)
    rig.until(lambda: rig.value(NODE, "latency_ms_p50") >= 20.0, "the measured latency")
    assert {v.key: v.value for v in rig.status[NODE].values}["handover"] == "ensemble"
    assert rig.value(NODE, "latency_ms_p99") >= rig.value(NODE, "latency_ms_p95") >= rig.value(NODE, "latency_ms_p50")


def test_without_chunks_it_slows_to_a_stop_holds_and_goes_on_with_the_next(rig, arm):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 60, "targets")
    rig.until(lambda: arm.measure() or rig.error(NODE, "holding"), "the hold to be reported")
    held = arm.targets[-1].pose.position
    before = len(arm.targets)
    rig.until(lambda: len(arm.targets) > before + 20, "targets that hold")
    assert {t.pose.position.x for t in arm.targets[before:]} == {held.x}
    assert held.x == pytest.approx(START[0]), "where the arm is"
    assert rig.value(NODE, "holds") == 1
    steps = np.diff([t.pose.position.x for t in arm.targets])
    assert steps.max() <= 0.8 * 0.05 + 1e-9, "no step beyond the speed limit, but the one back to the arm"
    arm.drive(lambda: rig.level(NODE, DiagnosticStatus.OK, "following"), "following again")


def test_an_arm_that_stood_still_for_long_does_not_start_by_itself(rig, arm, monkeypatch):
    monkeypatch.setattr("onedp_ros.nodes.action_node.LONGEST_HOLD", 0.5)
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 30, "targets")
    rig.until(lambda: arm.measure() or rig.error(NODE, "disabled itself"), "the end of the hold")
    before = len(arm.targets)
    chunks = rig.value(NODE, "chunks")
    arm.drive(lambda: rig.value(NODE, "chunks") > chunks + 20, "chunks")
    assert len(arm.targets) == before, "nothing is published until ~/enable"
    arm.enable()
    arm.drive(lambda: rig.level(NODE, DiagnosticStatus.OK, "following"), "following again")


def test_enabled_in_vain_it_does_not_start_when_the_policy_comes_back(rig, arm, monkeypatch):
    monkeypatch.setattr("onedp_ros.nodes.action_node.LONGEST_HOLD", 0.5)
    arm.enable()
    rig.until(lambda: arm.measure() or rig.error(NODE, "disabled itself"), "the end of the wait")
    before, chunks = len(arm.targets), rig.value(NODE, "chunks")
    arm.drive(lambda: rig.value(NODE, "chunks") > chunks + 10, "chunks")
    assert len(arm.targets) == before


def test_disabled_it_publishes_nothing(rig, arm):
    rig.until(lambda: NODE in rig.status, "a status")
    arm.drive(lambda: rig.value(NODE, "chunks") > 10, "chunks to arrive")
    assert not arm.targets
    arm.enable()
    arm.drive(lambda: len(arm.targets) > 10, "targets")
    assert arm.enable(False).success
    rig.status.clear()
    rig.until(lambda: arm.measure() or rig.level(NODE, DiagnosticStatus.OK, "disabled"), "the state")
    disabled = arm.now()
    chunks = rig.value(NODE, "chunks")
    arm.drive(lambda: rig.value(NODE, "chunks") > chunks + 10, "more chunks")
    assert max(stamp_ns(t) for t in arm.targets) < disabled
    last = arm.targets[-1].pose.position
    np.testing.assert_allclose([last.x, last.y, last.z], START, atol=1e-6, err_msg="not where the arm is")


def test_refuses_to_be_enabled_without_a_measured_pose_or_outside_the_workspace(rig, arm):
    client = arm._client
    rig.until(client.service_is_ready, "the service")
    call = client.call_async(SetBool.Request(data=True))
    rig.until(call.done, "an answer")
    assert not call.result().success
    assert "current_pose" in call.result().message
    arm.position = np.array([0.5, 0.0, 0.9])
    arm.measure()
    rig.until(lambda: not arm.enable().success and "outside the workspace" in arm.enable().message, "the refusal")
    assert not arm.targets


def spoiled(name, value):
    def spoil(fields):
        fields[name] = fields[name].copy()
        fields[name][5] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "age", "reason"),
    [
        (spoiled("positions", np.nan), 0.02, "not_finite"),
        (spoiled("openings", np.inf), 0.02, "not_finite"),
        (spoiled("quaternions", 0.0), 0.02, "not_a_rotation"),
        (None, 3.0, "too_old"),
        (None, -3.0, "from_the_future"),
    ],
)
def test_bad_chunks_are_counted_and_the_arm_held(rig, arm, spoil, age, reason):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 20, "targets")

    def send():
        arm.measure()
        arm.chunk(arm.now() - round(age * NANOSECONDS), spoil)
        return rig.value(NODE, f"rejected.{reason}") > 0 and rig.error(NODE, "holding")

    rig.until(send, "rejection and hold")
    assert all(np.isfinite([t.pose.position.x, t.pose.position.y, t.pose.position.z]).all() for t in arm.targets)


def test_a_second_publisher_of_chunks_is_refused_with_the_first_and_the_arm_held(rig, arm):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 20, "targets")
    other = rig.node.create_publisher(MultiDOFJointTrajectory, "action/chunk", 1)
    arm.drive(lambda: rig.value(NODE, "rejected.several_publishers") > 20 and rig.error(NODE, "holding"), "the hold")
    assert rig.error(NODE, "2 nodes publish action/chunk (/test_rig, /test_rig)")
    before = len(arm.targets)
    arm.drive(lambda: len(arm.targets) > before + 20, "targets that hold")
    assert len({t.pose.position.x for t in arm.targets[before:]}) == 1
    rig.node.destroy_publisher(other)
    arm.drive(lambda: rig.level(NODE, DiagnosticStatus.OK, "following"), "following again")


def test_lead_changes_in_motion_without_a_jump_and_within_its_range(rig, arm):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 20, "targets")
    before = len(arm.targets)
    assert rig._nodes[0].set_parameters([rig.parameter("lead", 0.4)])[0].successful

    def ahead():
        target = arm.targets[-1]
        return target.pose.position.x - START[0] > SPEED * ((stamp_ns(target) - arm.zero) / NANOSECONDS + 0.3)

    arm.drive(ahead, "targets that are 0.4 s ahead")
    steps = np.abs(np.diff([t.pose.position.x for t in arm.targets[before - 1 :]]))
    assert steps.max() <= 0.8 * 0.05 + 1e-9
    for wrong in (0.6, -0.1, float("nan")):
        assert not rig._nodes[0].set_parameters([rig.parameter("lead", wrong)])[0].successful
    arm.drive(ahead, "going on")


def test_a_measured_pose_that_jumps_disables(rig, arm):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 20, "targets")
    arm.position = START + np.array([0.0, 0.3, 0.0])
    arm.drive(lambda: rig.error(NODE, "current_pose jumped by 0.30 m"), "the error")
    y = np.array([t.pose.position.y for t in arm.targets])
    assert np.abs(y).max() < 0.001, "the false pose was not gone to"
    before = len(arm.targets)
    chunks = rig.value(NODE, "chunks")
    arm.drive(lambda: rig.value(NODE, "chunks") > chunks + 20, "chunks")
    assert len(arm.targets) == before


def test_without_a_measured_pose_the_arm_is_held(rig, arm):
    arm.enable()
    arm.drive(lambda: len(arm.grips) > 20, "targets")
    rig.until(lambda: arm.chunk(arm.now() - 20_000_000) or rig.error(NODE, "without current_pose"), "the hold")


def test_with_two_publishers_of_the_measured_pose_it_is_not_enabled(rig, arm):
    other = rig.node.create_publisher(PoseStamped, "current_pose", 10)
    rig.until(lambda: arm.measure() or rig.error(NODE, "2 nodes publish current_pose"), "the error")
    assert not arm.enable().success
    rig.node.destroy_publisher(other)
    rig.until(lambda: arm.enable().success, "one publisher again")


def test_a_jump_is_limited_and_counted(rig, arm):
    def far(fields):
        fields["positions"] = fields["positions"] + np.array([0.0, 0.3, -0.6])

    arm.enable()
    arm.zero = arm.now()
    rig.until(
        lambda: arm.measure() or arm.chunk(arm.now() - 20_000_000, far) or rig.value(NODE, "limited.workspace") > 10, "limits"
    )
    assert rig.value(NODE, "limited.linear_speed") > 0
    rig.until(lambda: arm.targets, "targets")
    z = np.array([t.pose.position.z for t in arm.targets])
    assert z.min() >= 0.02
    assert np.abs(np.diff(z)).max() <= 0.8 * 0.05 + 1e-9


def test_whole_graph_from_frames_to_targets_and_held_while_a_camera_is_gone(rig):
    source = rig.source()
    targets = rig.listen(PoseStamped, "target_pose")
    rig.add(ObservationNode)
    policy = rig.add(functools.partial(PolicyNode, load_standin))
    rig.add(ActionNode, enabled=True)
    assert rig.transition(policy, "configure").name == "SUCCESS"
    assert rig.transition(policy, "activate").name == "SUCCESS"
    rig.until(lambda: rig.value(NODE, "latency_ms_p50") > 0, "a latency from frame to target")
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.OK, "following"), "following")
    before = len(targets)
    rig.until(lambda: len(targets) > before + 30, "targets")
    for key in ("policy_hz", "inference_ms_p50", "chunk_latency_ms_p50"):
        assert rig.value("policy_node", key) > 0
    source.silent.add("wrist")
    rig.until(lambda: rig.error("observation_node", "wrist_camera/color/image_raw: no message for"), "the camera to be named")
    rig.until(lambda: rig.error(NODE, "holding"), "the arm to be held")
    source.silent.clear()
    rig.until(lambda: rig.level(NODE, DiagnosticStatus.OK, "following"), "following again")
