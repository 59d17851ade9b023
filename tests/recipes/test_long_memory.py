"""`recipes/long_memory.py` and what it is made of, small."""

import csv
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from recipes import long_memory
from recipes.long_memory import Config, main
from zoo import backends, random
from zoo.datasets.recall import Recall
from zoo.evaluation import gradients
from zoo.layers import recurrent
from zoo.training import trainer

SMALL = {"lengths": (3, 6), "steps": 4, "batch_size": 4, "units": 5, "test_examples": 40}


def recall(**arguments) -> tuple[np.ndarray, np.ndarray]:
    data = Recall(**{"seed": 1, "part": "train", "length": 7, "count": 20} | arguments)
    return data(np.arange(len(data)))


def test_the_first_symbol_decides_and_no_other_step_shows_one() -> None:
    x, y = recall(symbols=5)
    assert x.shape == (20, 7, 10)
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    np.testing.assert_array_equal(x.sum(-1), 1)
    np.testing.assert_array_equal(x[:, 0].argmax(-1), y)
    assert set(y) == set(range(5))
    assert not x[:, 1:, :5].any()
    assert not x[:, 0, 5:].any()
    assert x[:, 1:, 5:].any((0, 1)).all()


def test_sequences_are_of_seed_part_length_and_index_alone() -> None:
    data = Recall(seed=1, part="train", length=7, count=20)
    assert len(data) == 20
    x, y = data(np.array([3, 0, 5]))
    for i, index in enumerate((3, 0, 5)):
        np.testing.assert_array_equal(x[i], recall()[0][index])
        assert y[i] == recall()[1][index]
    for other in ({"seed": 2}, {"part": "test"}):
        assert (recall(**other)[0] != recall()[0]).any()
    bits = random.bits(random.fold_in(random.key(1, "recall", "train", 7, 8), 3), 7) % 8
    np.testing.assert_array_equal(x[0].argmax(-1) - np.r_[0, [8] * 6], bits)  # any backend's


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"length": 0}, "`length` must be at least 1. Received: length=0"),
        ({"count": 0}, "Received: count=0"),
        ({"symbols": 1}, "`symbols` must be at least 2. Received: symbols=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_tasks(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        recall(**arguments)


@pytest.mark.parametrize("cell", long_memory.CELLS)
def test_the_gradient_at_a_step_is_how_the_loss_changes(cell: str) -> None:
    """Against differences of the loss of single sequences, the softmax in float64."""
    x, y = (array[:2] for array in recall(length=4, symbols=2))
    model = zoo.rnn_classifier((4, 4), 2, cell=cell, units=3)

    def loss(x: np.ndarray) -> np.ndarray:
        logits = ops.convert_to_numpy(model(ops.convert_to_tensor(x, "float32")))
        logits = logits.astype(np.float64)
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(2), y]

    expected = np.empty(x.shape)
    for step, channel in np.ndindex(4, 4):
        move = np.zeros_like(x)
        move[:, step, channel] = 0.05
        expected[:, step, channel] = (loss(x + move) - loss(x - move)) / 0.1
    function = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    found = backends.input_gradients(model, x, y, function)
    # Measured: 7e-5, the error of the differences; the gradients reach 0.02 to 0.14.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-4)
    norms = np.linalg.norm(found, axis=-1).mean(0)
    np.testing.assert_allclose(gradients.gradient_by_step(model, x, y), norms, rtol=1e-6)
    assert gradients.gradient_by_step(model, x, y)[0] > 0


def test_open_gates_keep_a_third_of_the_state() -> None:
    for cell, gate in (("lstm", np.s_[3:6]), ("gru", np.s_[0, :3])):
        model = zoo.rnn_classifier((4, 4), 2, cell=cell, units=3)
        before = ops.convert_to_numpy(model.get_layer("rnn1").cell.bias)
        recurrent.chrono_initialize(model, 50)
        after = ops.convert_to_numpy(model.get_layer("rnn1").cell.bias)
        np.testing.assert_allclose(after[gate], math.log(50), rtol=1e-6)
        changed = np.zeros(after.shape, bool)
        changed[gate] = True
        np.testing.assert_array_equal(after[~changed], before[~changed])
        kept = (1 / (1 + np.exp(-after[gate]))) ** 50
        np.testing.assert_allclose(kept, 1 / math.e, rtol=0.02)
    model = zoo.rnn_classifier((4, 4), 2, cell="simple_rnn", units=3)
    weights = model.get_weights()
    recurrent.chrono_initialize(model, 50)
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="steps=0"):
        recurrent.chrono_initialize(model, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    main(Config(**SMALL, run_dir=path))
    return path


def test_the_run_directory(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    expected = {
        "recipe": "long_memory", "model": "rnn_classifier", "backend": backends.name, "seed": 0,
        "backends": [backends.name], "train_examples": 16, "test_examples": 40, "epochs": 1,
        "parameters": {"simple_rnn": 158, "lstm": 488, "gru": 393}, "lengths": [3, 6],
    }  # fmt: skip
    assert expected.items() <= metrics.items()
    for cell in long_memory.CELLS:
        assert metrics["test_accuracy"][cell] == metrics["recall"][cell][1]
        assert metrics["test_loss"][cell] > 0
        assert metrics["examples_per_second"][cell] > 0
        assert set(metrics["gradient_ratio"][cell]) == {"before", "after"}
        for length in ("3", "6"):
            part = finished / cell / length
            assert (part / "model.weights.h5").exists()
            assert list(part.glob("checkpoints/step-*"))
    assert metrics["wall_seconds"] > 0
    rows = list(csv.DictReader((finished / "history.csv").read_text().splitlines()))
    assert [(row["cell"], row["length"]) for row in rows] == [
        (cell, length) for cell in long_memory.CELLS for length in ("3", "6")
    ]
    assert (finished / "memory.png").stat().st_size > 10_000


def test_a_finished_run_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert main(Config(**SMALL, run_dir=finished)) == metrics
    assert "is finished" in capsys.readouterr().out


def test_another_configuration_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="units was 5 and is 6"):
        main(Config(**{**SMALL, "units": 6}, run_dir=finished))


class Killed(Exception):
    pass


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a training, twice, and once between training and results."""
    step, steps = trainer._Loop.step, []

    def stopping(loop: trainer._Loop, indices: np.ndarray) -> None:
        if len(steps) in (6, 15):
            steps.append("stop")
            raise Killed
        steps.append("step")
        step(loop, indices)

    measure, measured = gradients.gradient_by_step, []

    def failing(*arguments) -> list[float]:
        measured.append(len(measured))
        if len(measured) == 8:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(trainer._Loop, "step", stopping)
    monkeypatch.setattr(gradients, "gradient_by_step", failing)
    config = Config(**SMALL, checkpoint_steps=1, run_dir=tmp_path / "stopped")
    for _ in range(3):
        with pytest.raises(Killed):
            main(config)
    found = main(config)
    expected = json.loads((finished / "metrics.json").read_text())
    assert steps.count("step") == 6 * 4  # none was taken twice
    assert found["recall"] == expected["recall"]
    for name in ("test_loss", "gradient_ratio"):
        for cell in long_memory.CELLS:
            assert found[name][cell] == pytest.approx(expected[name][cell], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lengths": (20, 10)}, r"`lengths` must grow, from 2 on. Received: lengths=\(20, 10\)"),
        ({"lengths": (1, 10)}, "must grow, from 2 on"),
        ({"lengths": (5, 5)}, "must grow"),
        ({"lengths": ()}, "must grow"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"test_examples": -1}, "Received: test_examples=-1"),
        ({"checkpoint_steps": 0}, "Received: checkpoint_steps=0"),
        ({"units": 0}, "units=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        main(Config(**{**SMALL, **arguments}, run_dir=tmp_path / "run"))
    assert not list(tmp_path.rglob("*.json"))  # so that the directory is free for a right one


def test_quick_is_short() -> None:
    quick, whole = Config(quick=True), Config()
    assert max(quick.lengths) < max(whole.lengths)
    assert quick.steps < whole.steps
    assert Config(quick=True, steps=7).steps == 7
