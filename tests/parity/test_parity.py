"""Tests of the three backends against each other and against the document's PyTorch code."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.parity import training
from zoo.backends import NAMES
from zoo.datasets.images import load
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]
PAIRS = [("torch", "jax"), ("torch", "tensorflow"), ("jax", "tensorflow")]
Arrays = dict[str, np.ndarray]
Results = dict[str, dict[str, Arrays]]  # arrays by backend, part and name


class Document(NamedTuple):
    """Weights, data and logits of the document's PyTorch code."""

    folder: Path  # random.safetensors and trained.safetensors
    state: Arrays  # the random weights
    x: np.ndarray  # a batch, (64, 48, 48, 3)
    y: np.ndarray
    images: Any  # the test images, (64, 3, 48, 48)
    logits: Arrays  # of the test images, with the random and the trained weights


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
    images = pixels(data.x_test)
    net = make_net()
    save_file(net.state_dict(), folder / "random.safetensors")
    state = {entry: tensor.numpy().copy() for entry, tensor in net.state_dict().items()}
    logits = {"random": logits_of(net, images)}
    step = make_step(net)
    for start in range(0, 320, 32):
        labels = torch.from_numpy(data.y_train[start : start + 32]).long()
        step(pixels(data.x_train[start : start + 32]), labels)
    save_file(net.state_dict(), folder / "trained.safetensors")
    logits["trained"] = logits_of(net, images)
    return Document(folder, state, x, data.y_train[:64], images, logits)


@pytest.fixture(scope="module")
def results(document: Document, all_backends: Workers) -> Results:
    """Results of each backend for one seed and for the document's weights."""
    return {name: all_backends[name](training.run, document.folder) for name in NAMES}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the largest difference, relative to the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_parameters_weights_and_outputs_agree(results: Results) -> None:
    for a, b in PAIRS:
        first, second = results[a], results[b]
        assert first["initial"]["count"] == second["initial"]["count"] == 9_536_074
        assert first["weights"].keys() == second["weights"].keys()
        for name in first["weights"]:  # the same bits
            np.testing.assert_array_equal(first["weights"][name], second["weights"][name])
        assert distance(first["initial"]["logits"], second["initial"]["logits"]) < 1e-5


def test_augmented_images_have_the_same_bits(results: Results) -> None:
    for a, b in PAIRS:
        for step in results[a]["augmented"]:
            np.testing.assert_array_equal(
                results[a]["augmented"][step], results[b]["augmented"][step]
            )


def test_losses_of_ten_training_steps_agree(results: Results) -> None:
    for a, b in PAIRS:
        relative = np.abs(results[a]["trained"]["losses"] / results[b]["trained"]["losses"] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert len(relative) == 10
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
    document: Document, all_backends: Workers, dtype: str
) -> None:
    """One step with the same weights and batch, without dropout, against `torch.optim.Adam`."""
    import torch

    from benchmarks.document import make_step

    net = make_net()
    net.dropout.p = 0.0
    net.to(getattr(torch, dtype))
    images = torch.from_numpy(document.x.transpose(0, 3, 1, 2).astype(dtype))
    make_step(net)(images, torch.from_numpy(document.y).long())
    x = document.x.astype(dtype)
    expected = {entry: tensor.numpy() for entry, tensor in net.state_dict().items()}
    for name in NAMES:
        step = functools.partial(all_backends[name], training.step, floatx=dtype)
        weights = step(document.state, x, document.y)
        assert_same_step(weights, expected, dtype, name)


def test_pytorch_weights_round_trip(document: Document, results: Results) -> None:
    """The document's weights load on each backend; trained weights load in the document's model."""
    import torch
    from safetensors.numpy import load_file

    net = make_net()
    for name in NAMES:
        for weights, logits in document.logits.items():
            loaded = results[name]["loaded"][weights]
            np.testing.assert_allclose(loaded, logits, atol=1e-5, err_msg=f"{name}, {weights}")
        state = load_file(document.folder / "exported" / f"{name}.safetensors")
        net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
        trained = results[name]["trained"]["logits"]
        np.testing.assert_allclose(trained, logits_of(net, document.images), atol=1e-5)
