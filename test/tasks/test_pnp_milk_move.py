"""The task pnp_milk_move: how the carton is moved, and whose policy does it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from onedp_ros.contract import Contract, ContractError, task_contract
from onedp_ros.graph.processes import task_graph
from onedp_ros.policy.checkpoint import find_released, load_sampler
from onedp_ros.resources import resource
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.pick_and_place import AREA_CENTRE, AREA_SIZE, BOX
from onedp_ros.tasks.pnp_milk_move import JITTER, NEAR, TRAJECTORIES, Options, PnpMilkMove
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk_move")


def begin(number: int, seed: int = 0) -> tuple[SteppedCell, PnpMilkMove]:
    """An episode of a trajectory, driven by the expert until the first shove begins."""
    scene = PnpMilkMove(Options(trajectory=number))
    stepped = SteppedCell(CONTRACT, scene)
    stepped.reset(np.random.default_rng(seed))
    while not moving(scene):
        stepped.step(stepped.expert_action())
        assert stepped.time < 4
    return stepped, scene


def moving(scene: PnpMilkMove) -> bool:
    return scene._hand is not None


def test_starts_are_those_of_the_trajectories() -> None:
    task = TASKS.get("pnp_milk_move")
    environment = task.make(CONTRACT)
    numbers = set()
    for seed in range(60):
        environment.reset(np.random.default_rng(seed))
        x, y, _, number = environment.start()
        trajectory = TRAJECTORIES[int(number) - 1]
        assert np.all(np.abs([x - trajectory.x, y - trajectory.y]) <= JITTER + 1e-6)
        numbers.add(number)
    assert numbers == {*range(1, 11)} and sum(len(t.shoves) == 2 for t in TRAJECTORIES) >= 3
    assert all(0.06 <= abs(s.distance) <= 0.12 and 0.1 <= s.speed <= 0.2 for t in TRAJECTORIES for s in t.shoves)
    assert environment.scene.box(environment.cell).tolist() == BOX.tolist()
    with pytest.raises(ValueError, match=r"option\.trajectory is 2\.5, expected a whole number"):
        task.make(CONTRACT, trajectory=2.5)
    with pytest.raises(ValueError, match=r"option\.trajectory is 11, expected a number from 0 to 10"):
        task.make(CONTRACT, trajectory=11)


@pytest.mark.parametrize("number", [2, 4])
def test_a_gripper_that_does_not_react_closes_on_nothing(number: int) -> None:
    stepped, scene = begin(number)
    cell, shove = stepped.cell, TRAJECTORIES[number - 1].shoves[0]
    begun, time = scene.pose(cell)[0], stepped.time
    assert np.linalg.norm((cell.position - begun)[:2]) < NEAR and cell.touching("milk") == 0
    grasp, quaternion = begun + np.array([0.0, 0.0, scene.thing.grasp_height]), cell.quaternion
    fastest = tilt = 0.0
    while moving(scene):
        stepped.command(grasp, quaternion, 0.0)
        stepped.advance()
        fastest = max(fastest, float(np.linalg.norm(cell.data.joint("milk").qvel[:2])))
        tilt = max(tilt, scene.pose(cell)[2])
    took = stepped.time - time
    for _ in range(100):
        stepped.advance()
    moved = scene.pose(cell)[0] - begun
    assert abs(moved[2]) < 1e-3 and tilt < 0.15, "upright, and back on the table"
    assert 0.9 * abs(shove.distance) < np.linalg.norm(moved) < abs(shove.distance) + 0.01
    assert abs(shove.distance) / took < fastest < 1.3 * shove.speed
    assert np.all(np.abs(scene.pose(cell)[0][:2] - AREA_CENTRE) < AREA_SIZE / 2 + 0.02)
    assert cell.touching("milk") == 0 and cell.fingers.sum() < 0.01
    assert stepped.failure() == "missed grasp"


def test_the_expert_follows_a_carton_that_is_moved_twice_and_a_seed_gives_the_same_again() -> None:
    stepped, scene = begin(10)
    shoves, before, trace = 1, True, []
    while not stepped.success() and stepped.time < 12:
        stepped.step(stepped.expert_action())
        shoves += moving(scene) and not before
        before = moving(scene)
        trace.append(scene.pose(stepped.cell)[0])
    assert stepped.success() and shoves == 2, stepped.failure()
    again, scene = begin(10)
    for position in trace[:40]:
        again.step(again.expert_action())
        np.testing.assert_array_equal(scene.pose(again.cell)[0], position)


def test_a_carton_that_is_held_is_not_moved() -> None:
    stepped, scene = begin(7)
    scene._hand = None
    cell = stepped.cell
    cell.data.xfrc_applied[:] = 0.0
    scene._shoves[:] = [TRAJECTORIES[0].shoves[0]]
    scene._approaching = False  # as if it were still the first approach
    grasp = np.array([0.0, 0.0, scene.thing.grasp_height])
    while cell.touching("milk") < 2:
        stepped.command(scene.pose(cell)[0] + grasp, cell.quaternion, 0.0)
        stepped.advance()
    scene._approaching = True
    for _ in range(40):
        stepped.advance()
        assert not moving(scene)


def test_the_policy_that_its_task_file_names_is_found_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "moved.yaml"
    path.write_text(yaml.safe_dump({**CONTRACT.to_dict(), "policy": "pnp_milk"}), encoding="utf-8")
    model = find_released(str(path), "onedp_s")
    assert model == resource("models", "pnp_milk", "onedp_s")
    assert load_sampler(model, contract=task_contract(str(path)))[0].contract == task_contract("pnp_milk")
    assert task_graph(str(path))[0].parameters["task"] == str(path), "what is released for pnp_milk does it"
    with pytest.raises(ContractError, match="of the task pnp_milk, but pnp_milk_move needs one of pnp_anything"):
        load_sampler(model, contract=CONTRACT)
    assert Contract.from_dict(CONTRACT.to_dict()) == CONTRACT and "policy" not in task_contract("pnp_milk").to_dict()


def test_it_is_done_with_policies_of_pnp_anything_only() -> None:
    assert CONTRACT.policy_task == "pnp_anything"
    anything, milk = task_contract("pnp_anything"), task_contract("pnp_milk")
    CONTRACT.require_policy(anything, "out/policy")
    anything.require_policy(anything, "out/policy")
    expected = (
        "out/policy is a policy of the task pnp_milk, but pnp_milk_move needs one of pnp_anything; use such a policy, or "
        "the task file of pnp_milk"
    )
    with pytest.raises(ValueError, match=expected):
        CONTRACT.require_policy(milk, "out/policy")
    with pytest.raises(ValueError, match="of the task pnp_milk_move, but pnp_milk needs one of pnp_milk"):
        milk.require_policy(CONTRACT, "out/policy")
    with pytest.raises(ValueError, match="the task and out/policy differ in 'slop'"):
        CONTRACT.require_policy(dataclasses.replace(anything, slop=0.01), "out/policy")
