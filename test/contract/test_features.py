"""State and action as features: what a task file may say, vectors to and from what is measured, normalisation, one arm or not."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, Normalizer, ObservationAssembler, task_contract
from onedp_ros.geometry import gripper_down, rotation_angle

MILK = task_contract("pnp_milk")
MS = NANOSECONDS // 1000


def contract(state: list[dict[str, Any]], action: list[dict[str, Any]], **changes: Any) -> Contract:
    return Contract.from_dict({**MILK.to_dict(), "state": state, "action": action, **changes})


def arm(side: str = "", rotation: str = "rotation_6d") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    at = f"{side}/" if side else ""
    of = f"{side}_" if side else ""
    joints = [f"{of}finger_joint1", f"{of}finger_joint2"]
    state = [
        {"name": f"{of}position", "kind": "position", "topic": f"{at}current_pose"},
        {"name": f"{of}orientation", "kind": rotation, "topic": f"{at}current_pose"},
        {"name": f"{of}finger", "kind": "opening", "topic": f"{at}joint_states", "joints": joints, "range": [0.0, 0.04]},
    ]
    action = [
        {"name": f"{of}position", "kind": "position", "topic": f"{at}target_pose"},
        {"name": f"{of}rotation", "kind": "rotation_6d", "topic": f"{at}target_pose"},
        {"name": f"{of}opening", "kind": "opening", "topic": f"{at}gripper_target", "range": [0.0, 0.08]},
    ]
    return state, action


def one_finger(joint_range: list[float], target_range: list[float]) -> Contract:
    state, action = arm()
    state[2] = {"name": "knuckle", "kind": "opening", "topic": "joint_states", "joints": ["knuckle"], "range": joint_range}
    action[2] |= {"range": target_range}
    return contract(state, action)


POINT = {"name": "point", "kind": "plain", "topic": "point", "size": 2}
PLANE = contract([POINT], [{**POINT, "name": "goal", "topic": "goal"}], cameras={}, crop=[])


def test_contracts_from_before_there_were_features_are_the_same() -> None:
    earlier = {name: value for name, value in MILK.to_dict().items() if name not in ("state", "action")}
    earlier |= {"joint_states_topic": "joint_states", "pose_topic": "current_pose"}
    earlier |= {"finger_joints": ["fr3_finger_joint1", "fr3_finger_joint2"]}
    assert Contract.from_dict(earlier) == MILK
    del earlier["pose_topic"]
    with pytest.raises(ContractError, match=r"lacks the fields \['pose_topic'\]"):
        Contract.from_dict(earlier)
    with pytest.raises(ContractError, match=r"finger_joints is \['one'\].*list the features of state"):
        Contract.from_dict({**earlier, "pose_topic": "current_pose", "finger_joints": ["one"]})


def test_sizes_and_names_follow_from_the_features() -> None:
    assert (MILK.state_dim, MILK.action_dim, MILK.padding) == (9, 10, (1, 7))
    assert MILK.state_names[:4] == ("position.x", "position.y", "position.z", "orientation.x")
    assert MILK.state_names[7:] == ("finger.1", "finger.2") and MILK.action_names[9] == "opening"
    assert (PLANE.state_dim, PLANE.action_names, PLANE.action_dim) == (2, ("goal.0", "goal.1"), 2)
    longer = dataclasses.replace(PLANE, n_obs_steps=3, n_action_steps=4)
    assert longer.padding == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "velocity"},
            "point is of the kind 'velocity', expected one of position, quaternion, rotation_6d, opening, joint, plain",
        ),
        ({"size": 0}, "point needs either its size or the names of its joints"),
        ({"size": 2.5}, "size is 2.5, expected a whole number"),
        ({"size": 10**6}, "size is 1000000, expected a whole number, 64 at most"),
        ({"joints": ["a", "b"]}, "point needs either its size or the names"),
        ({"size": 0, "joints": ["a", "a"]}, "names a joint twice"),
        ({"size": 0, "joints": [1]}, "joints is .1,., expected a list of joint names"),
        ({"range": [0, 1]}, "a plain has no 'range'; remove it"),
        ({"kind": "opening", "size": 0, "joints": ["a"]}, "range is None, expected the two values that mean closed and open"),
        ({"kind": "opening", "size": 0, "joints": ["a"], "range": [0.1, 0.1]}, r"range is \(0.1, 0.1\), expected the two values"),
        ({"kind": "opening", "size": 0, "joints": ["a"], "range": [0.0, float("nan")]}, "range is .*, expected the two values"),
        ({"kind": "opening", "size": 0, "range": [0.0, 1.0]}, "point names no joints; list them as in point"),
        ({"kind": "joint", "size": 0}, "point names no joints"),
        ({"topic": "no topic"}, "topic of the feature point 'no topic' is no name of a ROS topic"),
        ({"name": "a/b"}, "feature name 'a/b' cannot"),
        ({"unit": "m"}, r"'point' has unknown fields \['unit'\]; known are"),
    ],
)
def test_a_feature_that_is_none_is_named_with_what_is_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        contract([{**POINT, **change}], [POINT])


def test_lists_of_features_are_checked() -> None:
    with pytest.raises(ContractError, match=r"state has two features named 'point'"):
        contract([POINT, {**POINT, "topic": "other"}], [POINT])
    with pytest.raises(ContractError, match="point is used both as a pose and as a joint state"):
        contract([POINT, {"name": "tool", "kind": "position", "topic": "/point"}], [POINT])
    for wrong in ([], "position", [{"name": "a"}], {"name": "a"}, [POINT] * 100):
        with pytest.raises(ContractError, match=r"action (is|holds)"):
            contract([POINT], wrong)  # type: ignore[arg-type]


def test_a_difference_is_that_of_the_feature() -> None:
    other = contract([POINT], [{**POINT, "name": "goal", "topic": "elsewhere"}], cameras={}, crop=[])
    with pytest.raises(ContractError, match=r"differ in 'action': \{'name': 'goal'.*'topic': 'goal'.*against .*'elsewhere'"):
        PLANE.require_same(other, "the task", "the data")


def test_rotation_6d_has_no_seam_where_the_quaternion_has_one() -> None:
    """Two orientations, a degree to either side of where the quaternion turns its sign."""
    tools = [np.array([x, np.sqrt(1 - x * x), 0.0, 0.0]) for x in (-0.01, 0.01)]
    apart = {}
    for kind in ("quaternion", "rotation_6d"):
        one = contract(*arm(rotation=kind)).arm
        states = [one.encode_state(np.zeros(3), q, [0.02, 0.02]) for q in tools]
        apart[kind] = float(np.linalg.norm(states[0] - states[1]))
        for state, tool in zip(states, tools, strict=True):
            assert rotation_angle(one.poses(state)[1], tool) < 1e-3
    assert apart["quaternion"] > 1.9 and apart["rotation_6d"] < 0.1


@pytest.mark.parametrize(
    ("joint_range", "target_range", "measured", "opening"),
    [
        ([0.0, 0.04], [0.0, 0.04], [0.03], 0.03),  # metres of the one finger that moves
        ([0.8, 0.0], [0.0, 0.085], [0.4], 0.0425),  # radians of a knuckle, commanded in metres
        ([0.8, 0.0], [0.0, 1.0], [0.8], 0.0),  # commanded as a fraction
        ([0.0, 1.0], [0.8, 0.0], [1.0], 0.0),  # measured as a fraction, commanded in radians
    ],
)
def test_grippers_of_one_joint(joint_range: list[float], target_range: list[float], measured: list[float], opening: float) -> None:
    cell = one_finger(joint_range, target_range)
    assert cell.arm.opening(measured) == pytest.approx(opening)
    assert cell.arm.opening_range == tuple(target_range)
    rng = np.random.default_rng(0)
    normalizer = Normalizer.fit(cell, rng.random((50, cell.state_dim)), rng.random((50, cell.action_dim)))
    ends = (np.array(joint_range) - normalizer.state_offset[-1]) / normalizer.state_scale[-1]
    np.testing.assert_allclose(sorted(ends), [-1, 1], atol=1e-6)
    ends = (np.array(target_range) - normalizer.action_offset[-1]) / normalizer.action_scale[-1]
    np.testing.assert_allclose(sorted(ends), [-1, 1], atol=1e-6)


def test_two_fingers_open_by_their_sum() -> None:
    assert MILK.arm.opening([0.01, 0.02]) == 0.01 + 0.02


def test_plain_values_are_normalised_by_their_range_and_constants_stay() -> None:
    data = np.array([[0.0, 3.0], [512.0, 3.0]])
    normalizer = Normalizer.fit(PLANE, data, data)
    np.testing.assert_allclose((data - normalizer.state_offset) / normalizer.state_scale, [[-1, 0], [1, 0]])


def test_what_is_not_one_arm_is_refused_by_what_drives_one() -> None:
    (left, to_left), (right, to_right) = arm("left"), arm("right")
    two = contract(left + right, to_left + to_right)
    assert (two.state_dim, two.action_dim) == (22, 20)
    with pytest.raises(ContractError, match="not of one arm with a gripper: its state has 2 positions, 2 orientations, 2 openings"):
        _ = two.arm
    with pytest.raises(ContractError, match="its state has 0 positions"):
        _ = PLANE.arm
    with pytest.raises(ContractError, match="NaN"):
        two.check_action(np.full(20, np.nan))
    with pytest.raises(ContractError, match=r"shape \(19,\), expected \(..., 20\)"):
        two.check_action(np.zeros(19))
    with pytest.raises(ContractError, match=r"left_rotation: not a rotation"):
        two.check_action(np.zeros(20))


def test_two_arms_are_paired_at_the_stamp_of_three_cameras() -> None:
    (left, to_left), (right, to_right) = arm("left"), arm("right")
    cameras = {n: {"topic": f"{n}/image", "height": 8, "width": 8} for n in ("left", "right", "top")}
    two = contract(left + right, to_left + to_right, cameras=cameras, crop=[8, 8])
    assembler = ObservationAssembler(two)
    for name in cameras:
        assembler.add_image(name, 15 * MS, np.zeros((8, 8, 3), np.uint8))
    for i, side in enumerate(("left", "right")):
        for stamp in (10, 20):
            assembler.add_pose(f"{side}/current_pose", stamp * MS, [i, 0.001 * stamp, 0], gripper_down(0.0))
            assert not assembler.pop()
            assembler.add_joints(
                f"{side}/joint_states", stamp * MS, [f"{side}_finger_joint2", f"{side}_finger_joint1"], [0.02, 0.01]
            )
    (observation,) = assembler.pop()
    np.testing.assert_allclose(observation.state[[0, 1, 9, 10]], [0, 0.015, 0.01, 0.02], atol=1e-7)
    np.testing.assert_allclose(observation.state[[11, 12, 20, 21]], [1, 0.015, 0.01, 0.02], atol=1e-7)


def test_without_cameras_each_measurement_of_the_first_topic_is_an_observation() -> None:
    other = {"name": "speed", "kind": "plain", "topic": "speed", "size": 1}
    assembler = ObservationAssembler(contract([POINT, other], [POINT], cameras={}, crop=[]))
    assembler.add_joints("speed", 0, ["speed"], [1.0])
    assembler.add_joints("point", 5 * MS, ["point.1", "point.0"], [2.0, 3.0])
    assert not assembler.pop()  # the speed at that time is not known yet
    assembler.add_joints("speed", 10 * MS, ["speed"], [2.0])
    (observation,) = assembler.pop()
    assert observation.stamp == 5 * MS and observation.images == {}
    np.testing.assert_allclose(observation.state, [3.0, 2.0, 1.5])
