import dataclasses
import hashlib
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from onedp_ros.contract import ContractError
from onedp_ros.policy.checkpoint import (
    CONFIG,
    WEIGHTS,
    DamagedCheckpointError,
    IncompatibleCheckpointError,
    _check_header,
    config_digest,
    load_policy,
    load_sampler,
    read_config,
    save_policy,
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
    """Fields of config.json, with a digest that agrees."""
    config = json.loads((path / CONFIG).read_text())
    config = {k: v for k, v in {**config, **values}.items() if v is not None}
    (path / CONFIG).write_text(json.dumps({**config, "config_sha256": config_digest(config)}))


def test_a_policy_comes_back_as_it_was(checkpoint, small_contract, normalizer):
    torch.manual_seed(0)
    policy, loaded = Policy(small_contract, SMALL, normalizer), load_policy(checkpoint)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert (loaded.contract, loaded.config, loaded.method.name) == (small_contract, SMALL, "dp_ddpm100")
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


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"x"', '{"format": 1}', "\x00\xff", '{"a":' * 10_000, '{"a": ' + "[]," * 3_000_000]
)
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
    for number in (4, 0, "1", True, 1.0, [1]):
        change(checkpoint, format=number)
        with pytest.raises(IncompatibleCheckpointError, match=r"has format .* this program reads 1 to 3"):
            load_policy(checkpoint)


def test_a_changed_config_is_found(checkpoint):
    """Whatever it is of: the normaliser moves the arm elsewhere, without that the weights tell."""
    config = json.loads((checkpoint / CONFIG).read_text())
    (checkpoint / CONFIG).write_text(json.dumps(config))  # another layout says the same
    load_policy(checkpoint)
    config["normalizer"]["action_offset"][2] += 0.1
    (checkpoint / CONFIG).write_text(json.dumps(config))
    with pytest.raises(DamagedCheckpointError, match=r"config\.json was modified after it was written"):
        load_policy(checkpoint)
    del config["config_sha256"]
    (checkpoint / CONFIG).write_text(json.dumps(config))
    with pytest.raises(DamagedCheckpointError, match=r"does not match its config_sha256"):
        load_sampler(checkpoint)


def test_the_first_format_is_read(checkpoint):
    """Released policies are of it: their configuration has no digest."""
    config = json.loads((checkpoint / CONFIG).read_text())
    del config["config_sha256"]
    (checkpoint / CONFIG).write_text(json.dumps({**config, "format": 1}))
    assert load_policy(checkpoint).method.name == "dp_ddpm100"


@pytest.mark.parametrize("field", ["state_offset", "state_scale", "action_offset", "action_scale"])
def test_an_implausible_normaliser_is_named(checkpoint, normalizer, field):
    values = normalizer.to_dict()[field]
    wrong = [math.nan, math.inf, 1e30, "1", True, None, [1.0]]
    for value in [*wrong, 0.0, -0.1, 1e-30] if "scale" in field else wrong:
        change(checkpoint, normalizer={**normalizer.to_dict(), field: [*values[:-1], value]})
        with pytest.raises(DamagedCheckpointError, match=rf"config\.json: normalizer\.{field} holds .*, expected numbers from"):
            load_policy(checkpoint)
    for other in (values[:-1], [*values, 1.0], 1.0, "012345678"):
        change(checkpoint, normalizer={**normalizer.to_dict(), field: other})
        with pytest.raises(DamagedCheckpointError, match=rf"normalizer\.{field} "):
            load_policy(checkpoint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_width", 10**9),
        ("encoder_width", "16"),
        ("kernel", 5.0),
        ("features", True),
        ("unet_channels", [8] * 99),
        ("unet_channels", 8),
        ("unet_channels", [8, None]),
        ("step_dim", 2),
        ("keypoints", -1),
    ],
)
def test_an_implausible_network_is_named(checkpoint, field, value):
    change(checkpoint, network={**SMALL.to_dict(), field: value})
    with pytest.raises(DamagedCheckpointError, match=rf"config\.json: .*{field}"):
        load_policy(checkpoint)


@pytest.mark.parametrize("field", ["encoder_width", "features", "keypoints", "step_dim", "unet_channels"])
def test_a_network_that_is_larger_than_its_weights_is_not_made(checkpoint, field):
    """It would take a hundred gigabytes."""
    change(checkpoint, network={**SMALL.to_dict(), field: [16384] * 8 if field == "unet_channels" else 16384})
    with pytest.raises(IncompatibleCheckpointError, match=r"holds \d+ values, the network in config\.json has more than \d+"):
        load_policy(checkpoint)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_named(checkpoint, kind):
    weights = {name: tensor.to(kind) for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    save_file(weights, checkpoint / WEIGHTS)
    change(checkpoint, weights_sha256=hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors: '.*' is of type '.*', expected one of F16, BF16, F32"):
        load_policy(checkpoint)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_of_a_training_that_diverged_are_named(checkpoint, value):
    weights = load_file(checkpoint / WEIGHTS)
    weights["unet.final.1.bias"][0] = value
    save_file(weights, checkpoint / WEIGHTS)
    change(checkpoint, weights_sha256=hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(DamagedCheckpointError, match=r"'unet\.final\.1\.bias' holds NaN or infinity"):
        load_policy(checkpoint)


@pytest.mark.parametrize(
    "begin",
    [b"\xff" * 8, (2**40).to_bytes(8, "little"), (10).to_bytes(8, "little") + b"{" * 10, (2).to_bytes(8, "little") + b"[]"],
)
def test_a_header_that_is_none_is_named(checkpoint, begin):
    (checkpoint / WEIGHTS).write_bytes(begin + b"\0" * 100)
    with pytest.raises(DamagedCheckpointError, match=WEIGHTS):
        load_policy(checkpoint)


def test_weights_that_lie_over_each_other_are_refused(checkpoint):
    tensors = {f"unet.{i}": {"dtype": "F32", "shape": [25], "data_offsets": [0, 100]} for i in range(1000)}
    header = json.dumps(tensors).encode()
    (checkpoint / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 100)
    with pytest.raises(DamagedCheckpointError, match=r"has the shape .*, which does not match its data"):
        load_policy(checkpoint)


@given(st.data())
def test_any_damage_of_weights_is_found(tmp_path_factory, data):
    """Of the header above all: its digest agrees, as in a file that somebody made."""
    path = tmp_path_factory.getbasetemp() / WEIGHTS
    whole = bytearray(save({"a": torch.zeros(3, 2), "b": torch.ones(4, dtype=torch.float16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        assert _check_header(path) < 1000
    except DamagedCheckpointError as error:
        assert str(path) in str(error)


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
    weights = load_file(checkpoint / WEIGHTS)
    change_weights(weights)
    save_file(weights, checkpoint / WEIGHTS)
    change(checkpoint, weights_sha256=hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(IncompatibleCheckpointError, match=r"unet\.final\.1\.bias|extra"):
        load_policy(checkpoint)
