import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from onedp_ros.contract import ContractError
from onedp_ros.policy.checkpoint import (
    CONFIG,
    WEIGHTS,
    DamagedCheckpointError,
    IncompatibleCheckpointError,
    load_policy,
    read_config,
    save_policy,
    write_atomically,
)
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)


@pytest.fixture
def checkpoint(tmp_path, small_contract, normalizer):
    torch.manual_seed(0)
    save_policy(tmp_path / "c", Policy(small_contract, SMALL, normalizer), {"gradient_steps": 7}, torch.float32)
    return tmp_path / "c"


def change(path, **values):
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v is not None}))


def test_a_policy_comes_back_as_it_was(checkpoint, small_contract, normalizer):
    torch.manual_seed(0)
    policy, loaded = Policy(small_contract, SMALL, normalizer), load_policy(checkpoint)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert (loaded.contract, loaded.config, loaded.method) == (small_contract, SMALL, "dp_ddpm100")
    assert loaded.normalizer.to_dict() == normalizer.to_dict()
    assert not loaded.training
    assert read_config(checkpoint)["training"] == {"gradient_steps": 7}


def test_half_precision_halves_the_file_and_loads_as_float32(checkpoint, tmp_path):
    policy = load_policy(checkpoint)
    save_policy(tmp_path / "half", policy, {})
    sizes = [(path / WEIGHTS).stat().st_size for path in (checkpoint, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    for name, tensor in load_policy(tmp_path / "half").state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, policy.state_dict()[name], rtol=2e-3, atol=1e-6)


def test_another_sampler_of_the_same_weights(checkpoint):
    assert load_policy(checkpoint, "dp_ddim10").nfe == 10
    with pytest.raises(IncompatibleCheckpointError, match="onedp_s"):
        load_policy(checkpoint, "onedp_s")


def test_a_generator_is_no_teacher(tmp_path, small_contract, normalizer):
    save_policy(tmp_path, Policy(small_contract, SMALL, normalizer, "onedp_d"), {})
    for method in ("onedp_s", "dp_ddim10"):
        with pytest.raises(IncompatibleCheckpointError, match=method):
            load_policy(tmp_path, method)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_named(checkpoint, keep):
    data = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(DamagedCheckpointError, match=WEIGHTS):
        load_policy(checkpoint)


def test_an_altered_weight_is_found(checkpoint):
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="not the file"):
        load_policy(checkpoint)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=name):
        load_policy(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"format": 1}', "\x00\xff"])
def test_a_broken_config_is_named(checkpoint, text):
    (checkpoint / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedCheckpointError, match=CONFIG):
        load_policy(checkpoint)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"method": None}, "method"),
        ({"method": "dp_magic"}, "dp_magic"),
        ({"contract": {"task": "x"}}, "lacks the fields"),
        ({"network": {"kernel": 5}}, "network"),
        ({"normalizer": {}}, "state_offset"),
    ],
)
def test_a_config_with_wrong_content_is_named(checkpoint, values, named):
    change(checkpoint, **values)
    with pytest.raises(DamagedCheckpointError, match=named):
        load_policy(checkpoint)


def test_another_format_is_refused(checkpoint):
    change(checkpoint, format=2)
    with pytest.raises(IncompatibleCheckpointError, match="format 2"):
        load_policy(checkpoint)


def test_another_contract_is_refused_and_the_field_named(checkpoint, small_contract):
    with pytest.raises(ContractError, match="'control_hz'"):
        load_policy(checkpoint, contract=dataclasses.replace(small_contract, control_hz=10.0))
    load_policy(checkpoint, contract=small_contract)


def test_another_network_is_refused_and_the_field_named(checkpoint):
    with pytest.raises(IncompatibleCheckpointError, match="unet_channels"):
        load_policy(checkpoint, network=NetworkConfig(16, (16, 32, 64), step_dim=8))
    load_policy(checkpoint, network=SMALL)


@pytest.mark.parametrize("change_weights", [lambda w: w.pop("unet.final.1.bias"), lambda w: w.update(extra=torch.zeros(1))])
def test_weights_of_another_network_are_refused(checkpoint, change_weights):
    import hashlib

    weights = load_file(checkpoint / WEIGHTS)
    change_weights(weights)
    save_file(weights, checkpoint / WEIGHTS)
    change(checkpoint, weights_sha256=hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(IncompatibleCheckpointError, match=r"unet\.final\.1\.bias|extra"):
        load_policy(checkpoint)


def test_a_crash_while_writing_leaves_the_old_checkpoint(checkpoint, monkeypatch):
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(checkpoint / CONFIG, b"new")
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir() if not p.name.startswith(".")} == before
