"""Noise schedules, forward process and sampler against Hugging Face's diffusers."""

from typing import Any

import diffusers
import keras
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from keras import ops

from zoo import unet
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.noise_schedule import make_schedule
from zoo.diffusion.sampler import Sampler, coefficients, noise, timesteps

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULES = pytest.mark.parametrize(
    ("kind", "zero_snr"), [(kind, zero_snr) for kind in KINDS for zero_snr in (False, True)]
)
DIFFUSIONS = pytest.mark.parametrize(
    ("kind", "zero_snr", "prediction"),
    [
        (kind, zero_snr, prediction)
        for kind in KINDS
        for zero_snr in (False, True)
        for prediction in PREDICTIONS
        if not (zero_snr and prediction == "noise")
    ],
)
# Tables of diffusers are in float32. With the zoo's tables the formulas agree to rounding.
EXACT = pytest.mark.parametrize("exact", [False, True], ids=["diffusers_tables", "zoo_tables"])


def make_scheduler(
    kind: str,
    diffusion: GaussianDiffusion,
    method: str = "DDIM",
    exact: bool = False,
    **options: Any,
) -> Any:
    """Creates the scheduler of diffusers, "DDIM" or "DDPM", with the same noise schedule."""
    scheduler = getattr(diffusers, f"{method}Scheduler")(
        beta_schedule=KINDS[kind], rescale_betas_zero_snr=diffusion.schedule.has_zero_terminal_snr,
        prediction_type=PREDICTIONS[diffusion.prediction], timestep_spacing="trailing", **options,
    )  # fmt: skip
    if exact:
        scheduler.alphas_cumprod = torch.tensor(diffusion.schedule.alphas_cumprod)
    return scheduler


def diffusers_step(scheduler: Any, x: Any, t: int, output: Any, eta: float, z: Any) -> np.ndarray:
    """Takes one step of diffusers from x_t to x_s, with z as the noise."""
    x, output, z = (torch.from_numpy(array) for array in (x, output, z))
    if isinstance(scheduler, diffusers.DDIMScheduler):
        # DDIM recomputes the noise from the clipped x_0 on request, DDPM always.
        step = scheduler.step(output, t, x, eta, use_clipped_model_output=True, variance_noise=z)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: z)
            step = scheduler.step(output, t, x)
    return step.prev_sample.numpy()


def zoo_step(numbers: np.ndarray, x: Any, output: Any, z: Any, clip: bool) -> np.ndarray:
    """Applies a row of `coefficients` in float64."""
    from_x, from_output, to_x0, to_x, to_z = numbers
    x0 = from_x * x + from_output * output
    if clip:
        x0 = np.clip(x0, -1, 1)
    return to_x0 * x0 + to_x * x + to_z * z


def network(x: np.ndarray, t: int) -> np.ndarray:
    """Smooth function in place of a trained network."""
    return 0.8 * np.cos(t / 1000) * x + 0.1 * np.sin(3 * x)


@SCHEDULES
@pytest.mark.parametrize("method", ["DDIM", "DDPM"])
def test_noise_schedule_matches_diffusers(kind: str, zero_snr: bool, method: str) -> None:
    schedule = make_schedule(kind, 1000, zero_snr)
    scheduler = make_scheduler(kind, GaussianDiffusion(schedule), method)
    betas, alphas_cumprod = scheduler.betas.numpy(), scheduler.alphas_cumprod.numpy()
    # Measured: 2e-8, and 2e-6 for rescaled betas, which are differences of ratios in float32.
    np.testing.assert_allclose(betas, schedule.betas, rtol=0, atol=5e-6 if zero_snr else 5e-8)
    np.testing.assert_allclose(alphas_cumprod, schedule.alphas_cumprod, rtol=5e-6, atol=1e-12)
    assert (alphas_cumprod[-1] == 0) == schedule.has_zero_terminal_snr == zero_snr


@SCHEDULES
@EXACT
def test_q_sample_and_target_match_diffusers(kind: str, zero_snr: bool, exact: bool) -> None:
    """Compares x_t and v at every t."""
    diffusion = GaussianDiffusion(make_schedule(kind, 1000, zero_snr), "v")
    scheduler = make_scheduler(kind, diffusion, exact=exact)
    x0, z = np.random.default_rng(0).normal(size=(2, 1000, 2, 2, 3))
    t = np.arange(1000)
    tensors = [torch.from_numpy(array) for array in (x0, z, t)]
    # diffusers computes 1 - alphas_cumprod in float32, which loses digits in the first steps:
    # 6e-6 measured, and 2e-5 for the rescaled cosine schedule, whose first step is the smallest.
    limit = 1e-12 if exact else 3e-5 if (kind, zero_snr) == ("cosine", True) else 1e-5
    for method, other in ((diffusion.q_sample, "add_noise"), (diffusion.target, "get_velocity")):
        result = ops.convert_to_numpy(method(x0, t, z))
        expected = getattr(scheduler, other)(*tensors)
        np.testing.assert_allclose(result, expected, rtol=0, atol=limit)


def test_timesteps_match_diffusers() -> None:
    scheduler = diffusers.DDPMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        # diffusers has an additional -1 for 61 and other counts: a range of fractions ends late.
        np.testing.assert_array_equal(timesteps(1000, steps), scheduler.timesteps[:steps])


@DIFFUSIONS
@pytest.mark.parametrize(
    ("method", "eta", "steps"),
    [
        ("DDIM", 0.0, 1),
        ("DDIM", 0.0, 50),
        ("DDIM", 0.5, 50),
        ("DDIM", 1.0, 50),
        ("DDPM", 1.0, 50),
        (
            "DDPM",
            1.0,
            30,
        ),  # not DDIM: diffusers assumes that all steps have length 1000 // 30
    ],
)
@pytest.mark.parametrize("clip", [False, True])
@EXACT
def test_sampler_steps_match_diffusers(
    kind: str, zero_snr: bool, prediction: str, method: str, eta: float, steps: int, clip: bool,
    exact: bool,
) -> None:  # fmt: skip
    """Compares each step from the same x_t, and from the x_t of each library's previous steps."""
    diffusion = GaussianDiffusion(make_schedule(kind, 1000, zero_snr), prediction)
    scheduler = make_scheduler(kind, diffusion, method, exact, clip_sample=clip)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()
    assert visited == timesteps(1000, steps).tolist()
    limits = {"rtol": 0.0, "atol": 1e-5}  # 9e-6 measured
    if exact:
        # 4e-8 measured where `to_x` is the root of a rounding error instead of 0; otherwise 4e-10,
        # since DDPM of diffusers adds 1e-10·z in the last step.
        limits["atol"] = 1e-7
    elif prediction == "noise" and not clip:
        # 2e-5 measured, relative to x or absolute: the first x_0 of the cosine schedule is x_t
        # divided by 5e-5, which has five digits in float32, and x grows to 45,000.
        limits = {"rtol": 3e-5, "atol": 3e-5}
    elif (kind, zero_snr) == ("cosine", True):
        limits["atol"] = 3e-5  # 2e-5 measured; see the test of `q_sample`
    x, *noises = np.random.default_rng(0).normal(size=(1 + steps, 4, 100))
    other = x
    for t, numbers, z in zip(visited, coefficients(diffusion, steps, eta), noises, strict=True):
        single = diffusers_step(scheduler, x, t, network(x, t), eta, z)
        other = diffusers_step(scheduler, other, t, network(other, t), eta, z)
        x = zoo_step(numbers, x, network(x, t), z, clip)
        np.testing.assert_allclose(x, single, **limits)
        np.testing.assert_allclose(x, other, **limits)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """U-Net with an output large enough that the images depend on the network."""
    network = unet((8, 8, 1), (8, 16), num_steps=1000)
    kernel = network.get_layer("conv_out").kernel
    kernel.assign(10 * kernel.value)
    return network


@pytest.mark.parametrize(
    ("kind", "zero_snr", "prediction", "clip"),
    [("linear", False, "noise", True), ("linear", True, "x0", False), ("cosine", True, "v", True)],
)
@pytest.mark.parametrize(("method", "eta"), [("DDIM", 0.0), ("DDPM", 1.0)])
def test_sampled_images_match_diffusers(
    model: keras.Model,
    kind: str,
    zero_snr: bool,
    prediction: str,
    clip: bool,
    method: str,
    eta: float,
) -> None:
    """50 steps of `Sampler` in float32, the precision of diffusers."""
    diffusion = GaussianDiffusion(make_schedule(kind, 1000, zero_snr), prediction)
    images = Sampler(model, diffusion, clip).sample(3, seed=1, steps=50, eta=eta)
    for exact in (False, True):
        scheduler = make_scheduler(kind, diffusion, method, exact, clip_sample=clip)
        scheduler.set_timesteps(50)
        x = noise(1, "first", (8, 8, 1), range(3))
        for number, t in enumerate(scheduler.timesteps.tolist()):
            with torch.no_grad():
                output = model({"image": x, "time": np.full(3, t, np.int32)}, training=False)
            z = noise(1, f"step {number}", (8, 8, 1), range(3))
            x = diffusers_step(scheduler, x, t, ops.convert_to_numpy(output), eta, z)
        # Measured: 9e-6 with the tables of diffusers; with the zoo's 6e-6, and 1e-6 in DDPM.
        np.testing.assert_allclose(images, x, rtol=0, atol=1e-5 if exact else 2e-5)
    assert images.std() > 0.3
