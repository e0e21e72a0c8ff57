"""Names of methods, what they share, and how they differ."""

import subprocess
import sys

import pytest
import torch

from onedp_ros.policy.checkpoint import find_released
from onedp_ros.policy.methods import METHODS, describe_methods, find_method, split_name
from onedp_ros.policy.methods.base import distilled_methods
from onedp_ros.policy.methods.onedp_s import OneDPS
from onedp_ros.registry import UnknownNameError


@pytest.mark.parametrize(
    ("name", "nfe", "weights"),
    [
        ("dp_ddpm100", 100, "teacher"),
        ("dp_ddim10", 10, "teacher"),
        ("dp_ddim1", 1, "teacher"),
        ("onedp_s", 1, "onedp_s"),
        ("onedp_d", 1, "onedp_d"),
    ],
)
def test_a_method_states_its_evaluations_and_whose_weights_it_uses(name, nfe, weights):
    method = find_method(name)
    assert (method.name, method.nfe, method.weights) == (name, nfe, weights)
    assert find_released("pnp_milk", name).parts[-2:] == ("pnp_milk", weights)


def test_what_is_not_released_is_named():
    with pytest.raises(FileNotFoundError, match="no policy is released for stack, onedp_s"):
        find_released("stack", "onedp_s")


def test_what_sampling_begins_from():
    shape, device = (2, 16, 10), torch.device("cpu")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for name, expected in (
        ("dp_ddim10", noise),
        ("onedp_s", OneDPS.z_scale * noise),
        ("onedp_d", torch.zeros(shape)),
        ("onedp_s_edm", noise),
    ):
        assert torch.equal(find_method(name).start(shape, torch.Generator().manual_seed(0), device), expected)


@pytest.mark.parametrize("name", ["onedp", "", "ddim10", "dp_ddim0", "dp_ddim010", "dp_magic"])
def test_an_unknown_method_is_named_with_those_that_there_are(name):
    with pytest.raises(
        UnknownNameError,
        match=f"'{name}', expected one of cp, dp_ddim, dp_ddpm, dp_edm, onedp_d, onedp_d_edm, onedp_s, onedp_s_edm; to add",
    ):
        split_name(name)
    with pytest.raises(UnknownNameError, match=f"'{name}'"):
        find_method(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dp_ddim101", "dp_ddimN with N from 1 to 100"),
        ("dp_ddim", "dp_ddimN"),
        ("dp_ddpm10", "dp_ddpm100"),
        ("dp_edm", "dp_edmN with N from 1 to 100"),
        ("cp2", "cp1 or cp3"),
        ("onedp_s2", "onedp_s"),
    ],
)
def test_a_number_that_is_not_allowed_is_named(name, expected):
    with pytest.raises(UnknownNameError, match=f"'{name}', expected {expected}"):
        find_method(name)


def test_names_are_known_without_pytorch():
    """As launch files need them."""
    program = (
        "import sys; from onedp_ros.policy.methods import describe_methods, split_name; "
        "from onedp_ros.policy.engines import describe_engines; "
        "print(describe_methods(), describe_engines(), split_name('dp_ddim10')); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for word in (*METHODS.names(), "auto", "openvino_bf16", "('dp_ddim', 10)"):
        assert word in done.stdout
    assert "onedp_s" in describe_methods() and distilled_methods() == ["cp", "onedp_d", "onedp_d_edm", "onedp_s", "onedp_s_edm"]
