"""Tests of several devices: the workers' losses and weights are those of one process."""

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training import distributed
from tests.training.distributed import TRAININGS
from zoo import backends
from zoo.training import launcher
from zoo.training.launcher import launch
from zoo.training.rendezvous import free_port

Results = dict[str, np.ndarray]

# Compiled backends take half a minute for the shapes of the whole network.
DIFFUSION = "text_to_image" if backends.name == "torch" else "diffusion"


def command(folder: Path, *names: str) -> list[str]:
    """Command of a worker, for which importing Keras takes three quarters of the usual time."""
    program = (
        "import sys, zoo_command; zoo_command.skip_extras_of_keras(); import zoo; "
        "from tests.training.distributed import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, str(folder), *names]


def read(path: Path) -> Results:
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def of_one_process() -> Callable[[str], Results]:
    """Results of a training of `TRAININGS` in this process, by name."""
    results: dict[str, Results] = {}

    def train(name: str) -> Results:
        if name not in results:
            results[name] = distributed.train(TRAININGS[name]())
        return results[name]

    return train


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Folder of the results of two workers, of which one is killed, and which Ctrl-C ends; exit
    status of the launcher, and what it has written."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        names = "killed", "lstm", DIFFUSION, "two_losses", "unequal", "refused", "interrupted"
        lines: list[str] = []
        patch.setattr(launcher, "_print", lines.append)
        status = launch(command(folder, *names), devices=2)
    return folder, status, "\n".join(lines)


@pytest.fixture(scope="module")
def three_machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the results of three machines with a worker each, which are this computer."""
    folder = tmp_path_factory.mktemp("three")
    coordinator = f"127.0.0.2:{free_port()}"
    names = "cnn", "accumulated"
    statuses = {}

    def machine(rank: int) -> None:
        statuses[rank] = launch(command(folder, *names), 1, 3, rank, coordinator)

    threads = [threading.Thread(target=machine, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {0: 0, 1: 0, 2: 0}
    return folder


def assert_close(results: Results, expected: Results, steps: int | None = None) -> None:
    """Checks the results of a training against those of one process.

    Args:
        results: Results of the training.
        expected: Results of one process.
        steps: Number of the last steps to compare; by default all.
    """
    assert results.keys() == expected.keys()
    for name, array in results.items():
        wanted = expected[name]
        if name == "steps" and steps is not None:
            assert len(array) == steps
            wanted = wanted[-steps:]
        tolerance = 1e-5 if name in ("steps", "history", "scores") else 1e-4
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", ["lstm", DIFFUSION, "two_losses"])
def test_two_workers_train_as_one_process(
    name: str, two_workers: tuple[Path, int, str], of_one_process: Callable[[str], Results]
) -> None:
    for rank in range(2):
        assert_close(read(two_workers[0] / f"{name}-{rank}.npz"), of_one_process(name))


def test_training_goes_on_after_a_worker_was_killed(
    two_workers: tuple[Path, int, str], of_one_process: Callable[[str], Results]
) -> None:
    """It ends as an undisturbed one, of one process."""
    folder, _, output = two_workers
    assert "Worker 1 of 2 was killed by SIGKILL. Its last lines:\n" in output
    assert "\n    Killed in step 4\n" in output
    assert "Starting again from the last checkpoint (1 of 3)" in output
    for rank in range(2):
        assert_close(read(folder / f"killed-{rank}.npz"), of_one_process("cnn"), steps=2)


def test_ctrl_c_saves_a_checkpoint_with_which_one_device_goes_on(
    two_workers: tuple[Path, int, str], of_one_process: Callable[[str], Results]
) -> None:
    folder, status, _ = two_workers
    assert status == 130
    assert not (folder / "interrupted-0.npz").exists()
    assert_close(distributed.resumed(folder), of_one_process("gpt"), steps=1)


def test_workers_begin_with_the_weights_of_the_first(
    two_workers: tuple[Path, int, str],
) -> None:
    first, second = (read(two_workers[0] / f"unequal-{rank}.npz") for rank in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


REFUSED = {
    "arrays": r"`x` must be `zoo.training.Batches` with a `seed` where several devices train",
    "order": r"`x` must be `zoo.training.Batches` with a `seed` where several devices train",
    "statistics": r"must not train a batch normalization.* Received: the layer batch_normalization",
    "draws": r"A layer must draw random numbers by the place .* Received: dropout, a layer",
    "own loss": r"A layer must not add a loss of its own .* Received: the layer __adds_loss",
    "scalar": r"A loss must return a value for each example .* Received: a scalar",
    "metric": r"variables of a metric must be sums .* Received: largest/it of the",
}


@pytest.mark.parametrize("name", REFUSED)
def test_trainings_that_cannot_be_split_are_refused(
    name: str, two_workers: tuple[Path, int, str]
) -> None:
    for rank in range(2):
        error = str(read(two_workers[0] / f"refused-{rank}.npz")[name])
        assert re.search(REFUSED[name], error)


@pytest.mark.parametrize("name", ["cnn", "accumulated"])
def test_three_machines_with_ragged_batches_train_as_one_process(
    name: str, three_machines: Path, of_one_process: Callable[[str], Results]
) -> None:
    """The last batch of an epoch has examples for two of them. One training is also in parts."""
    for rank in range(3):
        assert_close(read(three_machines / f"{name}-{rank}.npz"), of_one_process("cnn"))
