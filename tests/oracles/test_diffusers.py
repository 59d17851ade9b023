"""Schedules, the forward process and the sampler against Hugging Face's diffusers."""

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
    ("kind", "zero"), [(kind, zero) for kind in KINDS for zero in (False, True)]
)
PROCESSES = pytest.mark.parametrize(
    ("kind", "zero", "prediction"),
    [
        (kind, zero, prediction)
        for kind in KINDS
        for zero in (False, True)
        for prediction in PREDICTIONS
        if not (zero and prediction == "noise")
    ],
)
# Their tables are in float32. With ours in their place, the formulas agree to the last digits.
EXACT = pytest.mark.parametrize("exact", [False, True], ids=["their_tables", "our_tables"])


def theirs(
    kind: str, process: GaussianDiffusion, method: str = "DDIM", exact: bool = False, **options: Any
) -> Any:
    """Their scheduler, "DDIM" or "DDPM", of a process whose schedule is of this kind."""
    scheduler = getattr(diffusers, f"{method}Scheduler")(
        beta_schedule=KINDS[kind], rescale_betas_zero_snr=process.schedule.has_zero_terminal_snr,
        prediction_type=PREDICTIONS[process.prediction], timestep_spacing="trailing", **options,
    )  # fmt: skip
    if exact:
        scheduler.alphas_cumprod = torch.tensor(process.schedule.alphas_cumprod)
    return scheduler


def their_step(scheduler: Any, x: Any, t: int, output: Any, eta: float, z: Any) -> np.ndarray:
    """From x_t to x_s, with z for the noise that is drawn."""
    x, output, z = (torch.from_numpy(array) for array in (x, output, z))
    if isinstance(scheduler, diffusers.DDIMScheduler):
        # Once the image is clipped, the noise is what it leaves of x_t. It always is in DDPM.
        found = scheduler.step(output, t, x, eta, use_clipped_model_output=True, variance_noise=z)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: z)
            found = scheduler.step(output, t, x)
    return found.prev_sample.numpy()


def our_step(numbers: np.ndarray, x: Any, output: Any, z: Any, clip: bool) -> np.ndarray:
    """A row of `coefficients`, put to use in float64."""
    from_x, from_output, to_x0, to_x, to_z = numbers
    x0 = from_x * x + from_output * output
    if clip:
        x0 = np.clip(x0, -1, 1)
    return to_x0 * x0 + to_x * x + to_z * z


def network(x: np.ndarray, t: int) -> np.ndarray:
    """A smooth function in place of one that was trained."""
    return 0.8 * np.cos(t / 1000) * x + 0.1 * np.sin(3 * x)


@SCHEDULES
@pytest.mark.parametrize("method", ["DDIM", "DDPM"])
def test_tables(kind: str, zero: bool, method: str) -> None:
    schedule = make_schedule(kind, 1000, zero)
    scheduler = theirs(kind, GaussianDiffusion(schedule), method)
    betas, alphas_cumprod = scheduler.betas.numpy(), scheduler.alphas_cumprod.numpy()
    # Measured: 2e-8, and 2e-6 of the rescaled ones, which are differences of ratios in float32.
    np.testing.assert_allclose(betas, schedule.betas, rtol=0, atol=5e-6 if zero else 5e-8)
    np.testing.assert_allclose(alphas_cumprod, schedule.alphas_cumprod, rtol=5e-6, atol=1e-12)
    assert (alphas_cumprod[-1] == 0) == schedule.has_zero_terminal_snr == zero


@SCHEDULES
@EXACT
def test_forward(kind: str, zero: bool, exact: bool) -> None:
    """x_t and v at every t."""
    process = GaussianDiffusion(make_schedule(kind, 1000, zero), "v")
    scheduler = theirs(kind, process, exact=exact)
    x0, z = np.random.default_rng(0).normal(size=(2, 1000, 2, 2, 3))
    t = np.arange(1000)
    given = [torch.from_numpy(array) for array in (x0, z, t)]
    # Theirs takes 1 - alphas_cumprod in float32, which leaves few digits of the first steps' noise:
    # 6e-6 measured, and 2e-5 of the rescaled cosine, whose first step is the smallest.
    limit = 1e-12 if exact else 3e-5 if (kind, zero) == ("cosine", True) else 1e-5
    for ours, other in ((process.q_sample, "add_noise"), (process.target, "get_velocity")):
        found, expected = ops.convert_to_numpy(ours(x0, t, z)), getattr(scheduler, other)(*given)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def test_timesteps() -> None:
    scheduler = diffusers.DDPMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        # For 61 and some others theirs has one more, -1: a range of fractions may end late.
        np.testing.assert_array_equal(timesteps(1000, steps), scheduler.timesteps[:steps])


@PROCESSES
@pytest.mark.parametrize(
    ("method", "eta", "steps"),
    [
        ("DDIM", 0.0, 1),
        ("DDIM", 0.0, 50),
        ("DDIM", 0.5, 50),
        ("DDIM", 1.0, 50),
        ("DDPM", 1.0, 50),
        ("DDPM", 1.0, 30),  # no such test of DDIM: theirs takes all steps to be 1000 // 30 long
    ],
)
@pytest.mark.parametrize("clip", [False, True])
@EXACT
def test_steps(
    kind: str, zero: bool, prediction: str, method: str, eta: float, steps: int, clip: bool,
    exact: bool,
) -> None:  # fmt: skip
    """Each step from where ours is, and from where the steps before have led each."""
    process = GaussianDiffusion(make_schedule(kind, 1000, zero), prediction)
    scheduler = theirs(kind, process, method, exact, clip_sample=clip)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()
    assert visited == timesteps(1000, steps).tolist()
    limits = {"rtol": 0.0, "atol": 1e-5}  # 9e-6 measured
    if exact:
        # 4e-8 measured, where `to_x` is the root of a rounding error instead of 0; else 4e-10, as
        # DDPM of theirs adds 1e-10·z in the last step.
        limits["atol"] = 1e-7
    elif prediction == "noise" and not clip:
        # 2e-5 of x or of 1 measured: the cosine's first x_0 is x_t divided by 5e-5, of which their
        # float32 has five digits, and x grows to 45,000.
        limits = {"rtol": 3e-5, "atol": 3e-5}
    elif (kind, zero) == ("cosine", True):
        limits["atol"] = 3e-5  # 2e-5 measured, for the reason in `test_forward`
    x, *drawn = np.random.default_rng(0).normal(size=(1 + steps, 4, 100))
    other = x
    for t, numbers, z in zip(visited, coefficients(process, steps, eta), drawn, strict=True):
        alone = their_step(scheduler, x, t, network(x, t), eta, z)
        other = their_step(scheduler, other, t, network(other, t), eta, z)
        x = our_step(numbers, x, network(x, t), z, clip)
        np.testing.assert_allclose(x, alone, **limits)
        np.testing.assert_allclose(x, other, **limits)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A network that says enough for its images to depend on it."""
    made = unet((8, 8, 1), (8, 16), num_steps=1000)
    kernel = made.get_layer("conv_out").kernel
    kernel.assign(10 * kernel.value)
    return made


@pytest.mark.parametrize(
    ("kind", "zero", "prediction", "clip"),
    [("linear", False, "noise", True), ("linear", True, "x0", False), ("cosine", True, "v", True)],
)
@pytest.mark.parametrize(("method", "eta"), [("DDIM", 0.0), ("DDPM", 1.0)])
def test_images(
    model: keras.Model, kind: str, zero: bool, prediction: str, clip: bool, method: str, eta: float
) -> None:
    """50 steps of the sampler itself, in float32 as theirs."""
    process = GaussianDiffusion(make_schedule(kind, 1000, zero), prediction)
    found = Sampler(model, process, clip).sample(3, seed=1, steps=50, eta=eta)
    for exact in (False, True):
        scheduler = theirs(kind, process, method, exact, clip_sample=clip)
        scheduler.set_timesteps(50)
        x = noise(1, "first", (8, 8, 1), range(3))
        for number, t in enumerate(scheduler.timesteps.tolist()):
            with torch.no_grad():
                output = model({"image": x, "time": np.full(3, t, np.int32)}, training=False)
            z = noise(1, f"step {number}", (8, 8, 1), range(3))
            x = their_step(scheduler, x, t, ops.convert_to_numpy(output), eta, z)
        # Measured: 9e-6 with their tables; with ours 6e-6, and 1e-6 in DDPM.
        np.testing.assert_allclose(found, x, rtol=0, atol=1e-5 if exact else 2e-5)
    assert found.std() > 0.3
