import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from onedp_ros.contract import Camera, Normalizer
from onedp_ros.policy.diffusion import STEPS, CosineDiffusion
from onedp_ros.policy.edm import EDM, SIGMA_MAX, SIGMA_MIN, sampling_levels
from onedp_ros.policy.methods import find_method
from onedp_ros.policy.methods.diffusion_policy import SCHEDULE
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Batch, Policy

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)


def batch_of(contract, count, seed=0):
    random = torch.Generator().manual_seed(seed)
    n = contract.n_obs_steps
    images = {
        name: torch.randint(0, 256, (count, n, c.height, c.width, 3), dtype=torch.uint8, generator=random)
        for name, c in contract.cameras.items()
    }
    state = torch.rand(count, n, contract.state_dim, generator=random)
    return Batch(images, state, torch.rand(count, contract.horizon, contract.action_dim, generator=random))


@pytest.fixture
def policy(small_contract, normalizer):
    torch.manual_seed(0)
    return Policy(small_contract, SMALL, normalizer, "dp_ddim10").eval()


def test_forward_process_has_the_papers_values_at_65():
    diffusion = CosineDiffusion()
    assert float(diffusion.alpha[65]) == pytest.approx(0.5054, abs=1e-4)
    assert float(diffusion.sigma[65]) == pytest.approx(0.8629, abs=1e-4)
    torch.testing.assert_close(diffusion.alpha**2 + diffusion.sigma**2, torch.ones(STEPS))


def test_the_schedule_is_that_of_diffusers_bit_for_bit():
    cumulative = DDPMScheduler(**SCHEDULE).alphas_cumprod.double()
    diffusion = CosineDiffusion()
    assert torch.equal(diffusion.alpha, cumulative.sqrt().float())
    assert torch.equal(diffusion.sigma, (1 - cumulative).sqrt().float())


def test_estimate_undoes_the_noise():
    diffusion, step = CosineDiffusion(), torch.tensor([0, 65, 95])
    clean, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    noisy = diffusion.add_noise(clean, noise, step)
    torch.testing.assert_close(diffusion.estimate(noisy, noise, step), clean, atol=1e-3, rtol=1e-3)


def test_samplers_recover_data_from_its_exact_noise_predictor():
    """All data at one point: the exact prediction is (x - alpha point) / sigma, and every sampler must end at the point."""
    diffusion, point = CosineDiffusion(), torch.linspace(-0.9, 0.9, 20).view(1, 10, 2)

    def denoise(x, step, condition):
        return (x - diffusion.alpha[step].view(-1, 1, 1) * point) / diffusion.sigma[step].view(-1, 1, 1)

    start, nothing = torch.randn(5, 10, 2), torch.zeros(5, 0)
    for method in ("dp_ddpm100", "dp_ddim10", "dp_ddim100"):
        sample = find_method(method).sample(diffusion, denoise, start, nothing, torch.Generator().manual_seed(0))
        torch.testing.assert_close(sample, point.expand(5, 10, 2), atol=2e-3, rtol=0)


def test_edm_samples_a_gaussian_by_heuns_method_and_recovers_a_point():
    """The exact denoiser of N(mean, std^2) is known; the error of a second-order method falls with the square of the step."""
    edm, mean, std = EDM(), 0.3, 0.2
    assert sampling_levels(10)[0] == pytest.approx(SIGMA_MAX) and sampling_levels(10)[-2:] == [pytest.approx(SIGMA_MIN), 0.0]

    def network(x, step, condition):  # F, of which the preconditioning makes that denoiser
        sigma = (step / 250).exp().view(-1, 1, 1)
        total = (sigma**2 + 0.25).sqrt()
        noisy = x * total
        denoised = (std**2 * noisy + sigma**2 * mean) / (std**2 + sigma**2)
        return (denoised - 0.25 / total**2 * noisy) * total / (sigma * 0.5)

    spread = []
    for steps in (10, 40):
        method = find_method(f"dp_edm{steps}")
        start = method.start((50_000, 1, 1), torch.Generator().manual_seed(0), torch.device("cpu"))
        sample = method.sample(edm, network, start, torch.zeros(len(start), 0), None)
        assert sample.mean().item() == pytest.approx(mean, abs=0.005)  # it starts at the mean 0
        spread.append(sample.std().item())
    assert abs(spread[1] - std) < 0.25 * abs(spread[0] - std) and spread[1] == pytest.approx(std, rel=0.02)
    std = 0.0
    torch.testing.assert_close(
        find_method("dp_edm10").sample(edm, network, start, torch.zeros(len(start), 0), None), 0 * start + mean
    )


def test_edm_networks_see_and_predict_unit_variance_at_every_level():
    edm, clean, noise = EDM(), 0.5 * torch.randn(20_000, 4, 1), torch.randn(20_000, 4, 1)
    for sigma in (0.01, 0.5, 20.0):
        level, seen = torch.full((len(clean),), sigma), []
        noisy = edm.add_noise(clean, noise, level)
        edm.denoise(lambda x, step, c: seen.append((x, step)) or 0 * x, noisy, level, torch.zeros(len(clean), 0))  # noqa: B023
        assert seen[0][0].std().item() == pytest.approx(1.0, rel=0.02)
        assert seen[0][1][0].item() == pytest.approx(250 * np.log(sigma), rel=1e-5)
        zero = edm.denoise(lambda x, step, c: 0 * x, noisy, level, torch.zeros(len(clean), 0))
        one = edm.denoise(lambda x, step, c: 0 * x + 1, noisy, level, torch.zeros(len(clean), 0))
        assert ((clean - zero) / (one - zero)).std().item() == pytest.approx(1.0, rel=0.02)
    loss = edm.loss(lambda x, step, c: 0 * x, clean, torch.zeros(len(clean), 0), torch.full((len(clean),), 0.7), noise)
    assert loss.item() == pytest.approx(1.0, rel=0.03), "weighted so that no level counts more"


def test_ddim_uses_evenly_spaced_steps_down_to_zero():
    seen = []
    start = torch.randn(1, 4, 1)
    find_method("dp_ddim10").sample(
        CosineDiffusion(), lambda x, step, c: seen.append(int(step[0])) or x, start, torch.zeros(1, 0), None
    )
    assert seen == list(range(90, -1, -10))
    assert float(DDIMScheduler(set_alpha_to_one=True).final_alpha_cumprod) == 1.0


@pytest.mark.parametrize(
    ("method", "nfe"),
    [
        ("dp_ddpm100", 100),
        ("dp_ddim10", 10),
        ("dp_ddim1", 1),
        ("dp_ddim16", 16),
        ("onedp_s", 1),
        ("onedp_d", 1),
        ("dp_edm1", 1),
        ("dp_edm10", 19),
        ("dp_edm18", 35),
        ("onedp_s_edm", 1),
        ("onedp_d_edm", 1),
    ],
)
def test_every_method_has_one_interface_and_its_number_of_evaluations(small_contract, normalizer, method, nfe):
    policy = Policy(small_contract, SMALL, normalizer, method).eval()
    calls = []
    policy.unet.register_forward_hook(lambda *_: calls.append(1))
    action = policy.predict_action(batch_of(small_contract, 3), torch.Generator().manual_seed(1))
    assert action.shape == (3, small_contract.horizon, small_contract.action_dim)
    assert action.dtype == torch.float32
    assert torch.isfinite(action).all()
    assert len(calls) == nfe == policy.nfe
    again = policy.predict_action(batch_of(small_contract, 3), torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, action, rtol=0, atol=0)


def test_only_the_stochastic_generator_depends_on_the_seed(small_contract, normalizer):
    batch = batch_of(small_contract, 2)
    for method, same in (("onedp_d", True), ("onedp_s", False)):
        policy = Policy(small_contract, SMALL, normalizer, method).eval()
        one, other = (policy.predict_action(batch, torch.Generator().manual_seed(s)) for s in (0, 1))
        assert torch.equal(one, other) == same


def test_actions_leave_unnormalised(small_contract, normalizer):
    shifted = dataclasses.replace(normalizer, action_offset=normalizer.action_offset + 5)
    one, other = (Policy(small_contract, SMALL, n, "onedp_d").eval() for n in (normalizer, shifted))
    other.load_state_dict(one.state_dict())
    batch = batch_of(small_contract, 1)
    torch.testing.assert_close(other.predict_action(batch), one.predict_action(batch) + 5)


def test_stages_equal_the_whole(policy):
    """Encoding frame by frame and joining the features is what predict_action does."""
    batch = batch_of(policy.contract, 2)
    with torch.no_grad():
        features = torch.stack(
            [torch.cat([policy.encode_image(c, batch.images[c][:, i]) for c in policy.contract.cameras], -1) for i in range(2)],
            dim=1,
        )
        action = policy.sample(policy.condition([features], batch.state), torch.Generator().manual_seed(3))
    torch.testing.assert_close(action, policy.predict_action(batch, torch.Generator().manual_seed(3)), rtol=1e-4, atol=1e-5)


def test_only_the_central_crop_is_seen(policy):
    camera = next(iter(policy.contract.cameras))
    (height, width), size = policy.contract.crop, policy.contract.cameras[camera]
    top, left = (size.height - height) // 2, (size.width - width) // 2
    image = torch.randint(0, 256, (1, size.height, size.width, 3), dtype=torch.uint8)
    inside = image[:, top : top + height, left : left + width]
    border = torch.zeros_like(image)
    border[:, top : top + height, left : left + width] = inside
    with torch.no_grad():
        seen = [policy.encode_image(camera, i) for i in (image, border, inside)]
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    torch.testing.assert_close(seen[0], seen[2])


def test_loss_falls_when_a_batch_is_learned(small_contract, normalizer):
    torch.manual_seed(0)
    policy = Policy(small_contract, NetworkConfig(encoder_width=16, unet_channels=(32, 64), step_dim=16), normalizer)
    batch, optimizer = batch_of(policy.contract, 4), torch.optim.Adam(policy.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = policy.compute_loss(batch, torch.Generator().manual_seed(step), noise_samples=16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.8 < losses[0] < 1.3
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_cameras_of_the_contract_decide_the_encoders(normalizer, small_contract):
    one = dataclasses.replace(small_contract, cameras={"wrist": Camera("w", 40, 48)})
    policy = Policy(one, SMALL, normalizer, "onedp_s")
    assert list(policy.encoders) == ["wrist"]
    assert isinstance(normalizer, Normalizer)
    assert policy.predict_action(batch_of(one, 2)).shape == (2, 16, 10)
