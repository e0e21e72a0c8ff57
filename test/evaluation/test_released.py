"""The policies in models/: they load under today's contract, are small, and do the task."""

import numpy as np
import pytest

from onedp_ros.contract import task_contract
from onedp_ros.evaluation.rollout import rollout
from onedp_ros.policy.checkpoint import find_released
from onedp_ros.policy.predictor import load_predictor
from onedp_ros.resources import resource
from onedp_ros.tasks.base import EVALUATION_SEEDS
from onedp_ros.tasks.pnp_milk import PnpMilk
from onedp_ros.twin.stepped import SteppedCell

CONTRACT = task_contract("pnp_milk")
METHODS = ("dp_ddim10", "onedp_s", "onedp_d")
RELEASED = sorted({path.parents[1].name for path in resource("models").glob("*/*/config.json")})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", RELEASED)
def test_bundle_is_whole_and_small(task: str, method: str) -> None:
    path = find_released(task, method)
    assert sum(f.stat().st_size for f in path.iterdir()) <= 20_000_000
    card = (path / "MODEL_CARD.md").read_text()
    assert "How it was made" in card and "onedp" in card
    predictor = load_predictor(path, method=method, engine="torch", contract=task_contract(task))
    assert predictor.network == "compact"
    assert predictor.nfe == (10 if method == "dp_ddim10" else 1)


@pytest.mark.parametrize("method", ("onedp_s", "onedp_d"))
def test_released_policy_picks_the_milk(method: str) -> None:
    predictor = load_predictor(find_released("pnp_milk", method), engine="torch", contract=CONTRACT)
    stepped = SteppedCell(CONTRACT, PnpMilk())
    episodes = [rollout(predictor, stepped, EVALUATION_SEEDS + i, CONTRACT.n_action_steps, 20.0) for i in range(4)]
    stepped.close()
    assert sum(e.success for e in episodes) >= 3, episodes


def test_one_step_agrees_with_itself_and_varies_with_noise() -> None:
    stepped = SteppedCell(CONTRACT, PnpMilk())
    stepped.reset(np.random.default_rng(0))
    window = [stepped.observe()] * 2
    stepped.close()
    predictor = load_predictor(find_released("pnp_milk", "onedp_s"), engine="torch")
    first = predictor.predict([window])
    predictor.reset(1)
    assert not np.array_equal(first, predictor.predict([window]))
    predictor.reset(0)
    assert np.array_equal(first, predictor.predict([window]))
    deterministic = load_predictor(find_released("pnp_milk", "onedp_d"), engine="torch")
    assert np.array_equal(deterministic.predict([window]), deterministic.predict([window]))
