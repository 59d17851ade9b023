"""The contenders of the speed benchmark: each computes what the zoo computes."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keras import ops

from benchmarks import stock, workloads
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling
from zoo.backends import name
from zoo.diffusion.sampler import noise

SMALL_GPT = GPT(vocabulary=24, layers=2, heads=2, width=16, length=12, batch_size=3)
DIFFUSION = Diffusion(channels=(8, 16, 64), size=8, batch_size=3, timesteps=20)
WORKLOADS: dict[str, Any] = {
    "mlp": Images("mlp", batch_size=4),
    "cnn_48x48": Images("cnn_48x48", batch_size=2, dropout=0.0),
    "lstm": Recurrent("lstm", vocabulary=20, width=8, length=6, batch_size=3),
    "gru": Recurrent("gru", vocabulary=20, width=8, length=6, batch_size=3),
    "gpt": SMALL_GPT,
    "text_to_image": DIFFUSION,
}
GENERATION = Generation(SMALL_GPT, batch_size=2, prompt=4, new_tokens=8)
SAMPLING = Sampling(DIFFUSION, batch_size=3, steps=5)


def enlarge(network: Any) -> Any:
    """Adds noise to all weights, some of which are 0 at first."""
    generator = np.random.default_rng(0)
    for variable in network.trainable_variables:
        value = ops.convert_to_numpy(variable.value)
        stddev = 0.3 / max(1, np.prod(value.shape[:-1])) ** 0.5
        variable.assign(value + stddev * generator.normal(size=value.shape).astype(np.float32))
    return network


def batch_of(workload: Any) -> Any:
    """One batch; that of a diffusion model has its noise with it, in the order of the native code.

    It is (image, time, noise, prompt).
    """
    if not isinstance(workload, Diffusion):
        return workload.batches()[0]
    shape = workload.batch_size, workload.size, workload.size, 1
    x0, eps = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    prompts = np.concatenate(workload.prompts)[-workload.batch_size :]
    return x0, np.array([0, 7, 19], np.int32), eps, prompts


def fit_losses(model: Any, workload: Any, batch: Any) -> list[float]:
    """Losses of three steps on a batch."""
    if isinstance(workload, Diffusion):
        names = "image", "time", "noise", "prompt"
        examples: Any = {"x": dict(zip(names, batch, strict=True))}
    else:
        examples = {"x": batch[0], "y": batch[1]}
    options = {"batch_size": workload.batch_size, "epochs": 3, "shuffle": False, "verbose": 0}
    return list(model.fit(**examples, **options).history["loss"])


def native_training_step(workload: Any, network: Any) -> Callable[[Any], Any]:
    code = importlib.import_module(f"benchmarks.native.{name}_code")
    weights = network if name == "torch" else workloads.weights_of(network)
    return code.training_step(workload, weights)  # type: ignore[no-any-return]


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_stock_and_native_training_have_the_losses_of_the_zoo(workload: Any) -> None:
    trainer = workload.trainer()
    network = enlarge(trainer.network)
    stock_trainer = stock.trainer(workload, network)
    step = native_training_step(workload, network)
    batch = batch_of(workload)
    expected = fit_losses(trainer, workload, batch)
    assert expected[2] < expected[0]
    stock_losses = fit_losses(stock_trainer, workload, batch)
    native_losses = [float(step(batch)) for _ in range(3)]
    print(workload, expected, stock_losses, native_losses)
    np.testing.assert_allclose(stock_losses, expected, rtol=1e-3)
    np.testing.assert_allclose(native_losses, expected, rtol=1e-3)


def test_native_generation_has_the_tokens_of_the_zoo() -> None:
    network = GENERATION.network()
    generator = np.random.default_rng(1)
    for variable in network.trainable_variables:
        array = generator.normal(0, 0.3, variable.shape) + variable.path.endswith("gamma")
        variable.assign(array)
    expected = GENERATION.generator(network)()
    assert len(np.unique(expected)) > 3
    code = importlib.import_module(f"benchmarks.native.{name}_code")
    weights = network if name == "torch" else workloads.weights_of(network)
    np.testing.assert_array_equal(code.generator(GENERATION, weights)(), expected)


def test_stock_and_native_sampling_give_the_images_of_the_zoo() -> None:
    network = enlarge(SAMPLING.network())
    expected = SAMPLING.sampler(network)()
    assert (abs(expected) < 1).mean() > 0.1  # some values are not clipped
    first = noise(0, "first", expected.shape[1:], range(len(expected)))
    code = importlib.import_module(f"benchmarks.native.{name}_code")
    native = code.sampler(SAMPLING, workloads.weights_of(network))(first)
    stock_images = stock.sampler(SAMPLING, network)(first)
    print(abs(native - expected).max(), abs(stock_images - expected).max())
    np.testing.assert_allclose(native, expected, atol=1e-3)
    np.testing.assert_allclose(stock_images, expected, atol=1e-3)
