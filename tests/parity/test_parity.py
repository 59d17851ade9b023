"""Tests of the three backends against each other and against the document's PyTorch code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from zoo.backends import NAMES
from zoo.datasets.images import load

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PAIRS = [("torch", "jax"), ("torch", "tensorflow"), ("jax", "tensorflow")]


Results = dict[str, dict[str, np.ndarray]]  # of one task: arrays by backend and name


def run_tasks(folder: Path, dtype: str, *tasks: str) -> dict[str, Results]:
    """Runs tasks on each backend in a process of its own and returns the results by task."""
    results: dict[str, Results] = {task: {} for task in tasks}
    for name in NAMES:
        environment = {"KERAS_BACKEND": name, "JAX_ENABLE_X64": str(int(dtype == "float64"))}
        subprocess.run(
            [sys.executable, "-m", "tests.parity.worker", str(folder), dtype, *tasks],
            env={**os.environ, **environment},
            cwd=ROOT,
            check=True,
        )
        for task in tasks:
            with np.load(folder / f"{task}-{name}.npz") as file:
                results[task][name] = dict(file)
    return results


class Document(NamedTuple):
    """Weights, data and logits of the document's PyTorch code."""

    folder: Path  # random.safetensors, trained.safetensors and batch.npz
    x: np.ndarray  # (64, 48, 48, 3), a batch
    y: np.ndarray
    images: Any  # (64, 3, 48, 48), the test images
    logits: dict[str, np.ndarray]  # of the test images, with the random and the trained weights


def make_net() -> Any:
    import torch

    from benchmarks.document import MY_NET

    torch.manual_seed(0)
    return MY_NET(10)


def logits_of(net: Any, images: Any) -> np.ndarray:
    import torch

    net.eval()
    with torch.no_grad():
        return net(images).numpy()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    import torch
    from safetensors.torch import save_file

    from benchmarks.document import make_step

    def pixels(images: np.ndarray) -> torch.Tensor:
        levels = np.float32((np.arange(256) / 255 - 0.1307) / 0.3081)
        return torch.from_numpy(np.repeat(levels[images].transpose(0, 3, 1, 2), 3, axis=1))

    folder = tmp_path_factory.mktemp("document")
    (folder / "exported").mkdir()
    data = load("mnist", 48, train_examples=320, test_examples=64)
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    x = np.repeat((data.x_train[:64] / 255 - 0.1307) / 0.3081, 3, axis=-1)
    np.savez(folder / "batch.npz", x=x, y=data.y_train[:64])
    images = pixels(data.x_test)
    net = make_net()
    save_file(net.state_dict(), folder / "random.safetensors")
    logits = {"random": logits_of(net, images)}
    step = make_step(net)
    for start in range(0, 320, 32):
        labels = torch.from_numpy(data.y_train[start : start + 32]).long()
        step(pixels(data.x_train[start : start + 32]), labels)
    save_file(net.state_dict(), folder / "trained.safetensors")
    logits["trained"] = logits_of(net, images)
    return Document(folder, x, data.y_train[:64], images, logits)


@pytest.fixture(scope="module")
def results(document: Document) -> dict[str, Results]:
    """Results of each backend for one seed and for the document's weights."""
    tasks = ("model", "augmented", "ten_steps", "one_step", "from_pytorch")
    return run_tasks(document.folder, "float32", *tasks)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the largest difference, relative to the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_parameters_weights_and_outputs_agree(results: dict[str, Results]) -> None:
    by_backend = results["model"]
    for a, b in PAIRS:
        assert by_backend[a]["count"] == by_backend[b]["count"] == 9_536_074
        for name in set(by_backend[a]) - {"logits"}:  # initial weights: the same bits
            np.testing.assert_array_equal(by_backend[a][name], by_backend[b][name])
        assert distance(by_backend[a]["logits"], by_backend[b]["logits"]) < 1e-5


def test_augmented_images_have_the_same_bits(results: dict[str, Results]) -> None:
    by_backend = results["augmented"]
    for a, b in PAIRS:
        for step in by_backend[a]:
            np.testing.assert_array_equal(by_backend[a][step], by_backend[b][step])


def test_losses_of_ten_training_steps_agree(results: dict[str, Results]) -> None:
    by_backend = results["ten_steps"]
    for a, b in PAIRS:
        relative = np.abs(by_backend[a]["losses"] / by_backend[b]["losses"] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert (relative[:5] < 1e-5).all(), (a, b, relative)
        assert (relative < 1e-3).all(), (a, b, relative)


# Adam divides a gradient by its own size: if the gradient is smaller than its rounding error, the
# step of a weight may have any size up to the learning rate. In float64, which distinguishes
# rounding from a mistake, every weight must agree; in float32, all but five in a million. Measured:
# at most 8 of 9,536,074 weights differ by more than 1e-5 after the first step, at most by 3e-5.
FRACTION_BEYOND = {"float32": 5e-6, "float64": 0.0}


def assert_same_step(weights: dict, expected: dict, dtype: str, backend: str) -> None:
    distances = np.concatenate([np.abs(weights[k] - expected[k]).ravel() for k in expected])
    beyond = int((distances > 1e-5).sum())
    print(f"{backend}, {dtype}: {distances.max():.0e}, {beyond} of {distances.size} beyond 1e-5")
    assert beyond <= FRACTION_BEYOND[dtype] * distances.size, backend
    assert distances.max() < 2e-4, backend


@pytest.mark.parametrize("dtype", FRACTION_BEYOND)
def test_training_step_matches_the_document(
    document: Document, results: dict[str, Results], dtype: str
) -> None:
    """One step with the same weights and batch, without dropout, against `torch.optim.Adam`."""
    import torch

    from benchmarks.document import make_step

    if dtype == "float32":
        by_backend = results["one_step"]
    else:
        by_backend = run_tasks(document.folder, dtype, "one_step")["one_step"]
    net = make_net()
    net.dropout.p = 0.0
    net.to(getattr(torch, dtype))
    images = torch.from_numpy(document.x.transpose(0, 3, 1, 2).astype(dtype))
    make_step(net)(images, torch.from_numpy(document.y).long())
    expected = {entry: tensor.numpy() for entry, tensor in net.state_dict().items()}
    for name in NAMES:
        assert_same_step(by_backend[name], expected, dtype, name)


def test_pytorch_weights_round_trip(document: Document, results: dict[str, Results]) -> None:
    """The document's weights load on each backend; trained weights load in the document's model."""
    import torch
    from safetensors.numpy import load_file

    net = make_net()
    for name in NAMES:
        for weights, logits in document.logits.items():
            loaded = results["from_pytorch"][name][weights]
            np.testing.assert_allclose(loaded, logits, atol=1e-5, err_msg=f"{name}, {weights}")
        state = load_file(document.folder / "exported" / f"{name}.safetensors")
        net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
        trained = results["ten_steps"][name]["logits"]
        np.testing.assert_allclose(trained, logits_of(net, document.images), atol=1e-5)
