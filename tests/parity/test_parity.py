"""The three backends against each other, and against the document's own PyTorch code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.augment import ImageTransform
from zoo.backends import NAMES
from zoo.datasets import load

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PAIRS = [("torch", "jax"), ("torch", "tensorflow"), ("jax", "tensorflow")]


Results = dict[str, dict[str, np.ndarray]]  # of one task: arrays by backend and name


def run(folder: Path, dtype: str, *tasks: str) -> dict[str, Results]:
    """Runs tasks on each backend, in a process each; returns each task's results."""
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


@pytest.fixture(scope="module")
def same_seed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """What each backend makes of one seed."""
    folder = tmp_path_factory.mktemp("same seed")
    return run(folder, "float32", "model", "augmented", "ten_steps")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_parameters_weights_and_outputs(same_seed: dict[str, Results]) -> None:
    results = same_seed["model"]
    for a, b in PAIRS:
        assert results[a]["count"] == results[b]["count"] == 9_536_074
        for name in set(results[a]) - {"logits"}:  # initial weights: the same bits
            np.testing.assert_array_equal(results[a][name], results[b][name])
        assert distance(results[a]["logits"], results[b]["logits"]) < 1e-5


def test_augmented_pixels_are_the_same_bits(same_seed: dict[str, Results]) -> None:
    results = same_seed["augmented"]
    for a, b in PAIRS:
        for step in results[a]:
            np.testing.assert_array_equal(results[a][step], results[b][step])


def test_ten_training_steps(same_seed: dict[str, Results]) -> None:
    results = same_seed["ten_steps"]
    for a, b in PAIRS:
        relative = np.abs(results[a]["losses"] / results[b]["losses"] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert (relative[:5] < 1e-5).all(), (a, b, relative)
        assert (relative < 1e-3).all(), (a, b, relative)


# Adam divides a gradient by its own size: where it is smaller than its rounding error, a weight may
# move by anything up to the learning rate. In float64, which tells rounding from a mistake, every
# weight must agree; in float32, all but five in a million. Measured: at most 8 of 9,536,074
# beyond 1e-5 in one step from the start, 2e-5 the farthest.
FRACTION_BEYOND = {"float32": 5e-6, "float64": 0.0}


def assert_same_step(found: dict, expected: dict, dtype: str, what: str) -> None:
    distances = np.concatenate([np.abs(found[k] - expected[k]).ravel() for k in expected])
    beyond = int((distances > 1e-5).sum())
    print(f"{what}, {dtype}: {distances.max():.0e}, {beyond} of {distances.size} beyond 1e-5")
    assert beyond <= FRACTION_BEYOND[dtype] * distances.size, what
    assert distances.max() < 2e-4, what


@pytest.mark.parametrize("dtype", FRACTION_BEYOND)
def test_one_training_step_is_the_documents(tmp_path: Path, dtype: str) -> None:
    """From the same weights and batch, without dropout, against its own code and `optim.Adam`."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.document import MY_NET, make_step

    data = load("mnist", 48, train_examples=64, test_examples=1)
    x = np.repeat((data.x_train / 255 - 0.1307) / 0.3081, 3, axis=-1)
    np.savez(tmp_path / "batch.npz", x=x, y=data.y_train)
    torch.manual_seed(0)
    net = MY_NET(10)
    save_file(net.state_dict(), tmp_path / "start.safetensors")
    results = run(tmp_path, dtype, "one_step")["one_step"]
    net.dropout.p = 0.0
    net.to(getattr(torch, dtype))
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(dtype))
    make_step(net)(images, torch.from_numpy(data.y_train).long())
    expected = {entry: tensor.numpy() for entry, tensor in net.state_dict().items()}
    for name in NAMES:
        assert_same_step(results[name], expected, dtype, name)


def test_weights_from_and_to_my_net(tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import load_file
    from safetensors.torch import save_file

    from benchmarks.document import MY_NET, make_step

    data = load("mnist", 48, train_examples=320, test_examples=64)
    levels = np.float32((np.arange(256) / 255 - 0.1307) / 0.3081)

    def batch(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.repeat(levels[images].transpose(0, 3, 1, 2), 3, axis=1))

    assert ImageTransform(data.mean, data.std) == ImageTransform((0.1307,), (0.3081,))
    torch.manual_seed(0)
    net = MY_NET(10)
    expected = {}
    (tmp_path / "back").mkdir()
    for weights in ("random", "trained"):
        save_file(net.state_dict(), tmp_path / f"{weights}.safetensors")
        net.eval()
        with torch.no_grad():
            expected[weights] = net(batch(data.x_test)).numpy()
        step = make_step(net)
        for start in range(0, 320, 32):
            labels = torch.from_numpy(data.y_train[start : start + 32]).long()
            step(batch(data.x_train[start : start + 32]), labels)
    results = run(tmp_path, "float32", "from_pytorch")["from_pytorch"]
    for name in NAMES:
        for weights, logits in expected.items():
            found = results[name][weights]
            np.testing.assert_allclose(found, logits, atol=1e-5, err_msg=f"{name}, {weights}")
        state = load_file(tmp_path / "back" / f"{name}.safetensors")
        net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
        net.eval()
        with torch.no_grad():
            logits = net(batch(data.x_test)).numpy()
        np.testing.assert_allclose(results[name]["trained here"], logits, atol=1e-5)
