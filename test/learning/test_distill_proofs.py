"""OneDP proved without a robot: one-dimensional actions, and the very loss and updates that distil the released policies.

The teacher's noise predictor is exact (a mixture of Gaussians has one in closed form); generator and score network are small
networks that begin as copies of one trained on the data.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from onedp_ros.policy.diffusion import STEPS, CosineDiffusion
from onedp_ros.policy.edm import EDM, SIGMA_DATA
from onedp_ros.policy.methods.one_step_generator import AlternatingUpdates, CosineOneDPSettings, OneDPSettings, ScoreDifferenceLoss


class Predictor(nn.Module):
    """A small network that predicts the noise in x^k (B, 1, 1), without a condition: a line in x plus a correction.

    Its inputs are x at several scales: between two modes a generator must be all but discontinuous in z.
    """

    scales = (1.0, 4.0, 16.0, 64.0, 256.0)

    def __init__(self, hidden=64):
        super().__init__()
        phase = torch.arange(STEPS)[:, None] / STEPS * math.pi * 2.0 ** torch.arange(-3, 5)
        self.register_buffer("phases", torch.cat([phase.sin(), phase.cos()], -1))
        self.embed = nn.Sequential(nn.Linear(16, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.line = nn.Linear(hidden, 2)
        sizes = hidden + len(self.scales), hidden, hidden
        self.net = nn.Sequential(
            nn.Linear(sizes[0], sizes[1]), nn.SiLU(), nn.Linear(sizes[1], sizes[2]), nn.SiLU(), nn.Linear(sizes[2], 1)
        )

    def forward(self, x, step, condition):
        x = x.flatten(1)
        if step.is_floating_point():  # EDM's 250 ln sigma
            phase = (step[:, None] / 2000 + 0.8) * math.pi * 2.0 ** torch.arange(-3, 5)
            embedding = self.embed(torch.cat([phase.sin(), phase.cos()], -1))
        else:
            embedding = self.embed(self.phases)[step]  # of all steps, which are fewer than those of a batch
        slope, offset = self.line(embedding).split(1, -1)
        features = torch.cat([torch.tanh(scale * x) for scale in self.scales], -1)
        return (slope * x + offset + self.net(torch.cat([features, embedding], -1)))[:, None]


class GaussianMixture:
    """The exact noise predictor of equally likely N(mean, std^2)."""

    def __init__(self, diffusion, means, std):
        self.diffusion, self.means, self.std = diffusion, torch.tensor(means), std

    def __call__(self, x, step, condition):
        alpha, sigma = self.diffusion.alpha[step][:, None], self.diffusion.sigma[step][:, None]
        x = x.flatten(1)
        variance = (alpha * self.std) ** 2 + sigma**2
        distance = x - alpha * self.means.to(x.dtype)
        weight = (-(distance**2) / (2 * variance)).softmax(-1)
        return (sigma * (weight * distance / variance).sum(-1, keepdim=True))[:, None]

    def sample(self, count):
        return (self.means[torch.randint(len(self.means), (count,))] + self.std * torch.randn(count))[:, None, None]


class EDMGaussianMixture(GaussianMixture):
    """The network of EDM whose preconditioned output is the exact mean of the clean action."""

    def __call__(self, x, step, condition):
        sigma = (step / 250).exp()[:, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        noisy = x.flatten(1) * total
        distance, variance = noisy - self.means.to(x.dtype), self.std**2 + sigma**2
        weight = (-(distance**2) / (2 * variance)).softmax(-1)
        clean = noisy - sigma**2 * (weight * distance / variance).sum(-1, keepdim=True)
        return ((clean - (SIGMA_DATA / total) ** 2 * noisy) * total / (sigma * SIGMA_DATA))[:, None]


def learn(diffusion, data, steps=1200, batch=256):
    """A network trained on the data as a diffusion policy is."""
    network = Predictor()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    nothing = torch.zeros(batch, 0)
    for _ in range(steps):
        step, noise = diffusion.draw(batch, None, torch.device("cpu")), torch.randn(batch, 1, 1)
        loss = diffusion.loss(network, data.sample(batch), nothing, step, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


@pytest.fixture(scope="module", params=[GaussianMixture, EDMGaussianMixture])
def gaussian(request):
    """A Gaussian and a network that learned it."""
    torch.manual_seed(0)
    data = request.param(EDM() if request.param is EDMGaussianMixture else CosineDiffusion(), [0.3], 0.2)
    return data, learn(data.diffusion, data)


def distil(data, learned, stochastic, steps, rates, batch=256):
    """Distil the exact teacher of ``data``. Returns the generator's average as a function of z (B, 1, 1)."""
    diffusion = data.diffusion
    generator, score, average = (copy.deepcopy(learned) for _ in range(3))
    section = CosineOneDPSettings if isinstance(diffusion, CosineDiffusion) else OneDPSettings
    config = section(steps, batch, generator_learning_rate=rates[0], score_learning_rate=rates[1])
    distillation = AlternatingUpdates(diffusion, data, generator, score if stochastic else None, [], config)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in distillation.optimizers.values()]
    nothing = torch.zeros(batch, 0)
    for step in range(steps):
        start = torch.randn(batch, 1, 1) if stochastic else torch.zeros(batch, 1, 1)
        distillation.update(step, start, start, nothing, nothing)
        for schedule in schedules:
            schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 0.01)
    return lambda z: diffusion.generate(average, z, torch.zeros(len(z), 0)).detach()


def test_stochastic_generator_learns_mean_and_variance_of_a_gaussian(gaussian):
    action = distil(*gaussian, True, 2000, (1e-4, 3e-3))(torch.randn(50_000, 1, 1))
    assert action.mean().item() == pytest.approx(0.3, rel=0.05)
    assert action.var().item() == pytest.approx(0.2**2, rel=0.05)


def test_deterministic_generator_goes_to_the_mode(gaussian):
    assert distil(*gaussian, False, 500, (3e-4, 1e-3))(torch.zeros(1, 1, 1)).item() == pytest.approx(0.3, rel=0.05)


def test_stochastic_generator_ends_on_the_modes_of_a_mixture_and_not_between():
    data = GaussianMixture(CosineDiffusion(), [-0.6, 0.6], 0.15)
    action = distil(data, learn(data.diffusion, data), True, 2000, (1e-3, 3e-3))(torch.randn(50_000, 1, 1)).flatten()
    assert (action.abs() < 0.1).float().mean().item() < 0.01  # more than three standard deviations from both modes
    assert 0.4 < (action > 0).float().mean().item() < 0.6  # and no mode was lost
    assert action.abs().mean().item() == pytest.approx(0.6, rel=0.05)


def test_score_difference_gradient_equals_the_closed_form_of_two_gaussians():
    """Its expectation is the gradient of the KL divergence of two diffused Gaussians, summed with weight sigma^2."""
    diffusion = CosineDiffusion().double()
    check_gradient(diffusion, GaussianMixture, [(torch.tensor(k), diffusion.alpha[k], diffusion.sigma[k]) for k in (2, 20, 65, 95)])
    levels = torch.tensor([0.05, 0.3, 2.5, 20.0], dtype=torch.float64)
    check_gradient(EDM(), EDMGaussianMixture, [(sigma, torch.ones_like(sigma), sigma) for sigma in levels])


def check_gradient(diffusion, mixture, levels):
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.3))
    teacher, score = mixture(diffusion, [-0.2], 0.5), mixture(diffusion, [mean.item()], std.item())
    # Gauss-Hermite quadrature over z and the noise makes the expectation exact.
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
    z, noise = (v.reshape(-1, 1, 1) for v in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    loss = ScoreDifferenceLoss(diffusion, teacher, score)
    for level, alpha, sigma in levels:
        step = level.expand(len(z))
        expected_loss = (weight * loss(mean + std * z, torch.zeros(len(z), 0), step, noise)).sum()
        ours, theirs = (alpha * std) ** 2 + sigma**2, (alpha * 0.5) ** 2 + sigma**2
        divergence = 0.5 * (ours / theirs + (alpha * (mean + 0.2)) ** 2 / theirs - torch.log(ours / theirs))
        got = torch.autograd.grad(expected_loss, (mean, std))
        wanted = torch.autograd.grad(sigma**2 * divergence, (mean, std))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_teacher_as_its_own_score_network_gives_no_gradient():
    diffusion, network = CosineDiffusion(), Predictor()
    action = torch.randn(64, 1, 1, requires_grad=True)
    step = torch.randint(2, 96, (64,))
    loss = ScoreDifferenceLoss(diffusion, network, copy.deepcopy(network))
    loss(action, torch.zeros(64, 0), step, torch.randn(64, 1, 1)).sum().backward()
    assert torch.count_nonzero(action.grad) == 0


def test_score_network_learns_from_detached_actions_before_the_generator_moves():
    """The denoising loss of psi leaves no gradient in the generator; both have moved after one update."""
    diffusion, teacher = CosineDiffusion(), Predictor().requires_grad_(False)
    generator, score = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    config = OneDPSettings(1, 8, generator_learning_rate=1e-3, score_learning_rate=1e-3)
    distillation = AlternatingUpdates(diffusion, teacher, generator, score, [], config)
    seen = []
    distillation.optimizers["score"].register_step_pre_hook(lambda *_: seen.append([p.grad for p in generator.parameters()]))
    distillation.update(0, *torch.randn(2, 8, 1, 1), torch.zeros(8, 0), torch.zeros(8, 0))
    assert all(g is None for g in seen[0])
    for network in (generator, score):
        assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), teacher.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())
