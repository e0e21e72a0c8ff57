"""Consistency Policy against the known trajectories of a Gaussian."""

import pytest
import torch
from torch import nn

from onedp_ros.policy.edm import EDM, SIGMA_DATA, SIGMA_MAX
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.cp import CPSettings, denoising_loss, jump, trajectory_loss
from onedp_ros.policy.networks import NetworkConfig, UNet

MEAN, STD, NOTHING = 0.3, 0.2, torch.zeros(4096, 0)


def condition(x, step, clean):
    """What a network must output for the preconditioned output ``clean(noisy, t)`` at its input x."""
    t = (step / 250).exp().view(-1, 1, 1)
    total = (t**2 + SIGMA_DATA**2).sqrt()
    noisy = x * total
    return (clean(noisy, t) - (SIGMA_DATA / total) ** 2 * noisy) * total / (t * SIGMA_DATA)


def teacher(x, step, _):
    """The exact denoiser."""
    return condition(x, step, lambda noisy, t: (STD**2 * noisy + t**2 * MEAN) / (STD**2 + t**2))


def student(x, steps, _):
    """The exact jump along the trajectory ``x_s = mean + (x_t - mean) sqrt((s^2 + std^2) / (t^2 + std^2))``."""
    s = (steps[:, 1] / 250).exp().view(-1, 1, 1)

    def clean(noisy, t):
        reached = MEAN + (noisy - MEAN) * ((s**2 + STD**2) / (t**2 + STD**2)).sqrt()
        ratio = s / t
        return torch.where(ratio < 1, (reached - ratio * noisy) / (1 - ratio).clamp(min=1e-6), noisy)

    return condition(x, steps[:, 0], clean)


def wrong(x, steps, _):
    """Jumps to the mean of the clean action, as the denoiser does: no trajectory of the teacher's."""
    return teacher(x, steps[:, 0], _)


def random():
    return torch.Generator().manual_seed(0)


def test_the_exact_jump_has_no_trajectory_loss_but_that_of_the_teachers_step():
    clean = MEAN + STD * torch.randn(len(NOTHING), 1, 1, generator=random())
    exact, other = (trajectory_loss(EDM(), teacher, s, s, clean, NOTHING, random()).item() for s in (student, wrong))
    assert exact < 1e-4 and other > 20 * exact


def test_the_denoising_loss_is_least_at_the_mean_of_the_clean_action():
    clean = MEAN + STD * torch.randn(len(NOTHING), 1, 1, generator=random())

    def shifted(by):
        return lambda x, steps, _: wrong(x, steps, _) + by

    at, above, below = (denoising_loss(EDM(), shifted(by), clean, NOTHING, random()).item() for by in (0.0, 0.3, -0.3))
    assert at < above and at < below


@pytest.mark.parametrize(("name", "evaluations"), [("cp1", 1), ("cp3", 3)])
def test_sampling_jumps_to_the_data(name, evaluations):
    method, calls = find_method(name), []
    start = method.start((len(NOTHING), 1, 1), random(), torch.device("cpu"))
    assert start.std().item() == pytest.approx(SIGMA_MAX, rel=0.05)

    def denoise(x, steps, c):
        calls.append(steps[0, 0].item())
        return student(x, steps, c)

    sample = method.sample(EDM(), denoise, start, NOTHING, random())
    assert len(calls) == method.nfe == evaluations
    assert calls == sorted(calls, reverse=True), "from the highest level to the lowest"
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.02) and sample.std().item() == pytest.approx(STD, rel=0.05)


def test_the_student_begins_as_the_teacher_and_learns():
    torch.manual_seed(0)
    config = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)
    network, copy = UNet(2, 3, config), UNet(2, 3, config, stops=True)
    missing, unexpected = copy.load_state_dict(network.state_dict(), strict=False)
    assert all(name.startswith("stop.") for name in missing) and not unexpected
    settings = CPSettings(steps=20, batch_size=8, warmup_steps=1, learning_rate=1e-3)
    distillation = find_method("cp1").begin_distillation(EDM(), network, copy, [], settings, lambda parameters: None)
    noisy, level, c = torch.randn(4, 16, 2), torch.tensor([0.1, 1.0, 5.0, 60.0]), torch.randn(4, 3)
    stop = torch.full_like(level, 0.002)
    clean = EDM().denoise(network, noisy, level, c)
    ratio = (stop / level).view(-1, 1, 1)
    torch.testing.assert_close(jump(EDM(), copy, noisy, level, stop, c), ratio * noisy + (1 - ratio) * clean)

    chunks, losses = 0.5 * torch.randn(8, 16, 2), []
    for step in range(20):
        figures = distillation.update(step, chunks, chunks, torch.zeros(8, 3), torch.zeros(8, 3), random())
        losses.append(float(figures["dsm_loss"]))
    assert losses[-1] < losses[0]
    assert isinstance(copy.stop, nn.Module) and copy.stop.mlp[-1].weight.abs().sum() > 0
