"""The contenders of the speed benchmark: each computes what the zoo computes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras import ops

import benchmarks.all
from benchmarks import fast_paths, results, stock, workloads
from benchmarks.contenders import environment
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling
from zoo.backends import name
from zoo.diffusion.sampler import noise

SMALL_GPT = GPT(vocabulary=24, layers=2, heads=2, width=16, length=12, batch_size=3)
DIFFUSION = Diffusion(channels=(8, 32), size=4, batch_size=3, timesteps=20)
WORKLOADS: dict[str, Any] = {
    "mlp": Images("mlp", batch_size=4, l2=0.0),
    "cnn_48x48": Images("cnn_48x48", batch_size=2, dropout=0.0, l2=0.0),
    "lstm": Recurrent("lstm", vocabulary=20, width=8, length=6, batch_size=3),
    "gru": Recurrent("gru", vocabulary=20, width=8, length=6, batch_size=3),
    "gpt": SMALL_GPT,
    "text_to_image": DIFFUSION,
}
GENERATION = Generation(SMALL_GPT, batch_size=2, prompt=4, new_tokens=8)
SAMPLING = Sampling(DIFFUSION, batch_size=3, steps=2)


def enlarge(network: Any) -> Any:
    """Adds noise to all weights, some of which are 0 at first."""
    generator = np.random.default_rng(0)
    for variable in network.trainable_variables:
        value = ops.convert_to_numpy(variable.value)
        stddev = 0.3 / max(1, np.prod(value.shape[:-1])) ** 0.5
        variable.assign(value + stddev * generator.normal(size=value.shape).astype(np.float32))
    return network


def varied_gpt() -> Any:
    """A GPT with large weights, whose tokens vary."""
    network = GENERATION.network()
    generator = np.random.default_rng(1)
    for variable in network.trainable_variables:
        array = generator.normal(0, 0.3, variable.shape) + variable.path.endswith("gamma")
        variable.assign(array)
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


def native_code(network: Any) -> tuple[Any, Any]:
    """The library's own code, and the weights as it takes them."""
    code = importlib.import_module(f"benchmarks.native.{name}_code")
    return code, network if name == "torch" else workloads.weights_of(network)


def network_of(trainer: Any, workload: Any) -> Any:
    """The trainer's network; large weights of a CNN would make its losses chaotic."""
    return trainer.network if isinstance(workload, Images) else enlarge(trainer.network)


def assert_same_losses(workload: Any, losses: list[float], expected: list[float]) -> None:
    assert expected[2] < expected[0]
    # The CNN's losses depend on the place of Adam's epsilon: 3e-3 measured; elsewhere 4e-4.
    tolerance = 1e-2 if workload.unit == "images" else 1e-3
    np.testing.assert_allclose(losses, expected, rtol=tolerance)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_native_training_has_the_losses_of_the_zoo(workload: Any) -> None:
    trainer = workload.trainer()
    code, weights = native_code(network_of(trainer, workload))
    step, batch = code.training_step(workload, weights), batch_of(workload)
    expected = fit_losses(trainer, workload, batch)
    assert_same_losses(workload, [float(step(batch)) for _ in range(3)], expected)


@pytest.mark.once  # Keras' code is the same on each backend
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_stock_training_has_the_losses_of_the_zoo(workload: Any) -> None:
    trainer = workload.trainer()
    stock_trainer = stock.trainer(workload, network_of(trainer, workload))
    batch = batch_of(workload)
    expected = fit_losses(trainer, workload, batch)
    assert_same_losses(workload, fit_losses(stock_trainer, workload, batch), expected)


def test_native_generation_has_the_tokens_of_the_zoo() -> None:
    network = varied_gpt()
    expected = GENERATION.generator(network)()
    assert len(np.unique(expected)) > 3
    code, weights = native_code(network)
    np.testing.assert_array_equal(code.generator(GENERATION, weights)(), expected)


def test_native_sampling_gives_the_images_of_the_zoo() -> None:
    network = enlarge(SAMPLING.network())
    expected = SAMPLING.sampler(network)()
    assert (abs(expected) < 1).mean() > 0.1  # some values are not clipped
    first = noise(0, "first", expected.shape[1:], range(len(expected)))
    sample = native_code(network)[0].sampler(SAMPLING, workloads.weights_of(network))
    np.testing.assert_allclose(sample(first), expected, atol=1e-3)
    if name == "torch":
        images = stock.sampler(SAMPLING, network)(first)
        np.testing.assert_allclose(images, expected, atol=1e-3)


@pytest.mark.parity
def test_keras_hub_and_hugging_face_compute_what_the_zoo_computes() -> None:
    from benchmarks.native import torch_code

    trainer = SMALL_GPT.trainer()
    network = enlarge(trainer.network)
    hub_trainer = stock.hub_trainer(SMALL_GPT, network)
    step = torch_code.hugging_face_step(SMALL_GPT, network)
    batch = batch_of(SMALL_GPT)
    expected = fit_losses(trainer, SMALL_GPT, batch)
    np.testing.assert_allclose(fit_losses(hub_trainer, SMALL_GPT, batch), expected, rtol=1e-3)
    np.testing.assert_allclose([float(step(batch)) for _ in range(3)], expected, rtol=1e-3)

    network = varied_gpt()
    expected_tokens = GENERATION.generator(network)()
    for generator in (
        stock.hub_generator(GENERATION, network),
        torch_code.hugging_face_generator(GENERATION, network),
    ):
        np.testing.assert_array_equal(generator(), expected_tokens)


@pytest.mark.once
@pytest.mark.parametrize("workload", [Images("mlp"), Images("cnn_48x48"), Diffusion()], ids=str)
def test_formula_counts_the_operations_that_pytorch_counts(workload: Any) -> None:
    """The formula takes the keys of a prompt for those of the pixels: 3 % of a U-Net."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.native import torch_code

    step = torch_code.training_step(workload, workload.network())
    with FlopCounterMode(display=False) as counter:
        step(workload.batches()[0])
    counted = counter.get_total_flops()
    assert workload.flops() == pytest.approx(counted, rel=0.04)


@pytest.mark.once
def test_row_becomes_lines_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "speed.json"
    options: dict[str, Any] = {"small": True, "steps": 2, "rounds": 3, "warmup": 1}
    config = benchmarks.all.Config(("mlp",), (name,), ("zoo", "native"), **options, json=out)
    benchmarks.all.main(config)
    content = json.loads(out.read_text())
    seconds = content["rows"]["mlp"]["seconds"]
    kinds = "zoo", "native", "matrix_product"
    assert list(seconds) == [f"{kind} {name}" for kind in kinds]
    assert all(len(turns) == 3 for turns in seconds.values())
    monkeypatch.setattr(results, "speed_files", lambda: [content])
    lines = results.speed_table("mlp").splitlines()
    zoo_line, native_line = lines[2:]
    assert zoo_line.count("**") == 2  # the ratio to the native code
    assert "**" not in native_line


@pytest.mark.once
def test_speed_benchmark_rejects_unknown_rows() -> None:
    with pytest.raises(SystemExit, match=r"`rows` must be among mlp, .* Received: \['resnet'\]"):
        benchmarks.all.Config(rows=("resnet",))
    with pytest.raises(SystemExit, match=r"`kinds` must be among zoo, .* Received: \['flax'\]"):
        benchmarks.all.Config(kinds=("flax",))


@pytest.mark.once
def test_fast_paths_reject_unknown_names() -> None:
    with pytest.raises(SystemExit, match=r"`paths` must be among memory, .* Received: \['fft'\]"):
        fast_paths.Config(paths=("fft",))
    rows = {row for path in fast_paths.PATHS.values() for row in path.rows}
    assert rows - {"augmented"} <= set(benchmarks.all.ROWS)


SWITCHED = {  # workloads with most fast paths of a backend
    "torch": ("lstm", "gpt", "text_to_image"), "jax": ("text_to_image",), "tensorflow": ("lstm",),
}  # fmt: skip


@pytest.mark.slow
def test_every_switch_of_a_fast_path_leaves_the_losses_as_they_are() -> None:
    """All paths of the backend at once, in a process that they change for good."""
    paths = [key for key, path in fast_paths.PATHS.items() if name in path.backends]
    program = f"""
from benchmarks import fast_paths
from tests.benchmarks import test_contenders as tests
names = {SWITCHED[name]}
batches = {{name: tests.batch_of(tests.WORKLOADS[name]) for name in names}}
def losses():
    return [loss for name, batch in batches.items() for loss in tests.fit_losses(
        tests.WORKLOADS[name].trainer(), tests.WORKLOADS[name], batch)]
expected = losses()
for path in {paths}:
    fast_paths.PATHS[path].switch_off()
tests.np.testing.assert_allclose(losses(), expected, rtol=1e-3)
tests.GENERATION.generator(tests.GENERATION.network())()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(name), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
