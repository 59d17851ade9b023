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
from zoo.diffusion.process import Process
from zoo.diffusion.sampler import Sampler, coefficients, noise, timesteps
from zoo.diffusion.schedule import make_schedule

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
METHODS = pytest.mark.parametrize(
    ("method", "eta"), [("DDIM", 0.0), ("DDIM", 0.5), ("DDIM", 1.0), ("DDPM", 1.0)]
)
CLIP = pytest.mark.parametrize("clip", [False, True])
# Their tables are in float32. With ours in their place, the formulas agree to the last digits.
EXACT = pytest.mark.parametrize("exact", [False, True], ids=["their_tables", "our_tables"])


def theirs(
    process: Process, kind: str, method: str = "DDIM", exact: bool = False, **options: Any
) -> Any:
    """Their scheduler of a process."""
    scheduler = getattr(diffusers, f"{method}Scheduler")(
        beta_schedule=KINDS[kind], rescale_betas_zero_snr=process.schedule.ends_in_noise,
        prediction_type=PREDICTIONS[process.prediction], timestep_spacing="trailing", **options,
    )  # fmt: skip
    if exact:
        scheduler.alphas_cumprod = torch.tensor(process.schedule.alphas_bar)
    return scheduler


def their_step(
    scheduler: Any, output: np.ndarray, t: int, x: np.ndarray, eta: float, z: np.ndarray
) -> np.ndarray:
    """x_s, by the noise z."""
    output, x, z = (torch.from_numpy(array) for array in (output, x, z))
    if isinstance(scheduler, diffusers.DDIMScheduler):
        # As in DDPM, the noise is what the clipped image leaves, not what the network said.
        found = scheduler.step(output, t, x, eta, use_clipped_model_output=True, variance_noise=z)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: z)
            found = scheduler.step(output, t, x)
    return found.prev_sample.numpy()


def our_step(
    numbers: np.ndarray, output: np.ndarray, x: np.ndarray, z: np.ndarray, clip: bool
) -> np.ndarray:
    from_x, from_output, to_x0, to_x, to_z = numbers
    x0 = from_x * x + from_output * output
    if clip:
        x0 = np.clip(x0, -1, 1)
    return to_x0 * x0 + to_x * x + to_z * z


def tolerances(process: Process, kind: str, clip: bool, exact: bool) -> dict[str, float]:
    return {"atol": 0, "rtol": 0}


@SCHEDULES
@pytest.mark.parametrize("method", ["DDIM", "DDPM"])
def test_tables(kind: str, zero: bool, method: str) -> None:
    schedule = make_schedule(kind, 1000, zero)
    scheduler = theirs(Process(schedule), kind, method)
    np.testing.assert_allclose(scheduler.betas, schedule.betas, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scheduler.alphas_cumprod, schedule.alphas_bar, rtol=5e-6, atol=1e-9)


@SCHEDULES
@EXACT
def test_forward(kind: str, zero: bool, exact: bool) -> None:
    process = Process(make_schedule(kind, 1000, zero))
    scheduler = theirs(process, kind, exact=exact)
    rng = np.random.default_rng(0)
    x0, z = rng.uniform(-1, 1, (1000, 2, 2, 3)), rng.normal(size=(1000, 2, 2, 3))
    t = np.arange(1000, dtype=np.int32)
    given = [torch.from_numpy(array) for array in (x0, z, t)]
    a = scheduler.add_noise(*given)
    b = scheduler.get_velocity(*given)
    print(
        "FW",
        kind,
        zero,
        exact,
        abs(ops.convert_to_numpy(process.q_sample(x0, t, z)) - a.numpy()).max(),
        abs(ops.convert_to_numpy(process.target(x0, t, z)) - b.numpy()).max(),
        process.target(x0, t, z).dtype,
    )


def test_timesteps() -> None:
    scheduler = diffusers.DDPMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(timesteps(1000, steps), scheduler.timesteps[:steps])


@PROCESSES
@METHODS
@CLIP
@EXACT
@pytest.mark.parametrize("steps", [1, 50])
def test_one_step(kind, zero, prediction, method, eta, clip, exact, steps) -> None:
    process = Process(make_schedule(kind, 1000, zero), prediction)
    scheduler = theirs(process, kind, method, exact, clip_sample=clip)
    scheduler.set_timesteps(steps)
    x, output, z = np.random.default_rng(0).normal(size=(3, 1000))
    w = r = 0
    for t, numbers in zip(timesteps(1000, steps), coefficients(process, steps, eta)):
        a = our_step(numbers, output, x, z, clip)
        b = their_step(scheduler, output, int(t), x, eta, z)
        d = abs(a - b)
        assert np.isfinite(d).all()
        w = max(w, d.max())
        r = max(r, (d / np.maximum(abs(b), 1)).max())
    print(
        "ONE",
        kind,
        zero,
        prediction,
        method,
        eta,
        "clip" if clip else "-",
        exact,
        steps,
        f"{w:.1e} {r:.1e}",
    )


@PROCESSES
@METHODS
@CLIP
@EXACT
@pytest.mark.parametrize("steps", [50])
def test_fifty(kind, zero, prediction, method, eta, clip, exact, steps) -> None:
    process = Process(make_schedule(kind, 1000, zero), prediction)
    scheduler = theirs(process, kind, method, exact, clip_sample=clip)
    scheduler.set_timesteps(steps)
    x, *zs = np.random.default_rng(0).normal(size=(51, 1000))
    y = x
    w = r = 0
    for t, numbers, z in zip(timesteps(1000, steps), coefficients(process, steps, eta), zs):
        x = our_step(numbers, 0.8 * x * np.cos(t / 1000) + 0.1 * np.sin(3 * x), x, z, clip)
        y = their_step(
            scheduler, 0.8 * y * np.cos(t / 1000) + 0.1 * np.sin(3 * y), int(t), y, eta, z
        )
        d = abs(x - y)
        assert np.isfinite(d).all()
        w = max(w, d.max())
        r = max(r, (d / np.maximum(abs(x), 1)).max())
    print(
        "FIFTY",
        kind,
        zero,
        prediction,
        method,
        eta,
        "clip" if clip else "-",
        exact,
        steps,
        f"{w:.1e} {r:.1e} end {d.max():.1e} {abs(x).max():.1f}",
    )
