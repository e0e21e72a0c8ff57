"""A trained checkpoint becomes a bundle."""

import json

import pytest
import torch

from onedp_ros.cli.release import main
from onedp_ros.contract import Normalizer
from onedp_ros.learning import release as module
from onedp_ros.policy.checkpoint import load_policy, save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy

RESULT = {
    "task": "pnp_milk",
    "options": {"variation": "mild"},
    "method": "onedp_s",
    "nfe": 1,
    "action_steps": 8,
    "lead_s": 0.0,
    "success_rate": 0.97,
    "ci95": [0.9, 0.99],
    "mean_time_s": 4.2,
    "episodes": 100,
    "seed": 100000,
}


@pytest.fixture
def checkpoint(tmp_path, small_contract):
    normalizer = Normalizer(*(torch.zeros(n).numpy() + v for n, v in ((9, 0), (9, 1), (10, 0), (10, 1))))
    policy = Policy(small_contract, NetworkConfig(16, (8, 16)), normalizer, "onedp_s")
    training = {"gradient_steps": 30, "pretraining_steps": 1000, "wall_clock_s": 120.0}
    save_policy(tmp_path / "trained", policy, training, torch.float32)
    return tmp_path / "trained"


def test_a_bundle_is_half_the_size_and_its_card_says_what_was_measured_and_how_it_was_made(checkpoint, tmp_path, capsys):
    (tmp_path / "s.json").write_text(json.dumps(RESULT))
    out = tmp_path / "bundle"
    arguments = ["--evaluation", str(tmp_path / "s.json"), "--command", "onedp distill pnp_milk"]
    assert main([str(checkpoint), "--out", str(out), *arguments]) == 0
    trained, bundle = load_policy(checkpoint).state_dict(), load_policy(out).state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(bundle[name], tensor, rtol=1e-3, atol=1e-4)
    sizes = [(path / "model.safetensors").stat().st_size for path in (checkpoint, out)]
    assert sizes[1] < 0.6 * sizes[0]
    card = (out / "MODEL_CARD.md").read_text()
    for words in (
        "| pnp_milk, variation mild | onedp_s | 1 |",
        "0.97 | 0.90 to 0.99 | 4.2 s",
        "seeds from 100000",
        "onedp distill pnp_milk",
        "0.030 of the gradient steps",
    ):
        assert words in card
    assert str(out) in capsys.readouterr().out


def test_a_bundle_too_large_for_a_repository_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="smaller network"):
        module.release(checkpoint, tmp_path / "bundle", [], [])
    assert not (tmp_path / "bundle").exists()
