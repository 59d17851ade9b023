"""Tests of `recipes/long_memory.py` with small cells and short sequences."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras import ops

import zoo
from recipes import long_memory
from recipes.long_memory import Config, main
from tests import recipe
from zoo import backends
from zoo.evaluation import gradients
from zoo.layers import recurrent
from zoo.training import StepCheckpoint

SMALL: dict[str, Any] = {
    "lengths": (3, 6), "steps": 4, "batch_size": 4, "units": 5, "test_examples": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    main(Config(**SMALL, run_dir=path))
    return path


def test_chrono_initialize_keeps_a_third_of_the_state() -> None:
    for cell, gate in (("lstm", np.s_[3:6]), ("gru", np.s_[0, :3])):
        model = zoo.rnn_classifier((4, 4), 2, cell=cell, units=3)
        initial_bias = ops.convert_to_numpy(model.get_layer("rnn1").cell.bias)
        recurrent.chrono_initialize(model, 50)
        bias = ops.convert_to_numpy(model.get_layer("rnn1").cell.bias)
        np.testing.assert_allclose(bias[gate], math.log(50), rtol=1e-6)
        changed = np.zeros(bias.shape, bool)
        changed[gate] = True
        np.testing.assert_array_equal(bias[~changed], initial_bias[~changed])
        remembered = (1 / (1 + np.exp(-bias[gate]))) ** 50
        np.testing.assert_allclose(remembered, 1 / math.e, rtol=0.02)
    model = zoo.rnn_classifier((4, 4), 2, cell="simple_rnn", units=3)
    weights = model.get_weights()
    recurrent.chrono_initialize(model, 50)
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="steps=0"):
        recurrent.chrono_initialize(model, 0)


@pytest.mark.slow
def test_main_writes_the_run_directory(finished: Path) -> None:
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
            header = (part / "history.csv").read_text().splitlines()[0]
            assert header == "epoch,accuracy,loss,val_accuracy,val_loss"
    assert metrics["wall_seconds"] > 0
    rows = list(csv.DictReader((finished / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == list(long_memory.HISTORY)
    assert [(row["cell"], row["length"]) for row in rows] == [
        (cell, length) for cell in long_memory.CELLS for length in ("3", "6")
    ]
    assert (finished / "memory.png").stat().st_size > 10_000


@pytest.mark.slow
def test_main_returns_the_metrics_of_a_finished_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert main(Config(**SMALL, run_dir=finished)) == metrics
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_main_rejects_another_configuration(finished: Path) -> None:
    with pytest.raises(ValueError, match="units was 5 and is 6"):
        main(Config(**{**SMALL, "units": 6}, run_dir=finished))


class Killed(Exception):
    pass


@pytest.mark.slow
def test_main_resumes_a_killed_run_to_the_same_results(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of two trainings, and once between a training and its results.

    One cell stands for all three.
    """
    begin, steps = StepCheckpoint.on_train_batch_begin, []

    def begin_or_die(self: StepCheckpoint, batch: int, logs: Any = None) -> None:
        begin(self, batch, logs)  # saves the step before
        if len(steps) in (2, 7):
            steps.append("killed")
            raise Killed
        steps.append("step")

    measure, measured = gradients.gradient_by_step, []

    def measure_or_die(*arguments: Any) -> list[float]:
        measured.append(len(measured))
        if len(measured) == 6:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(StepCheckpoint, "on_train_batch_begin", begin_or_die)
    monkeypatch.setattr(gradients, "gradient_by_step", measure_or_die)
    monkeypatch.setattr(long_memory, "CELLS", ("simple_rnn",))
    config = Config(**SMALL, checkpoint_steps=1, run_dir=tmp_path / "killed")
    for _ in range(3):
        with pytest.raises(Killed):
            main(config)
    resumed = main(config)
    expected = json.loads((finished / "metrics.json").read_text())
    assert steps.count("step") == 2 * 4  # none is taken twice
    assert steps.count("killed") == 2
    assert resumed["recall"]["simple_rnn"] == expected["recall"]["simple_rnn"]
    for name in ("test_loss", "gradient_ratio"):
        assert resumed[name]["simple_rnn"] == pytest.approx(expected[name]["simple_rnn"], rel=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"lengths": (20, 10)}, r"`lengths` must grow. Received: lengths=\(20, 10\)"),
        ({"lengths": (1, 10)}, "`lengths` must be a sequence .* at least 2. Received"),
        ({"lengths": (5, 5)}, "must grow"),
        ({"lengths": ()}, "`lengths` must be a sequence of at least 1 element"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"test_examples": -1}, "Received: test_examples=-1"),
        ({"checkpoint_steps": 0}, "Received: checkpoint_steps=0"),
        ({"units": 0}, "units=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_main_rejects_invalid_arguments(tmp_path: Path, arguments: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        main(Config(**{**SMALL, **arguments}, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_config_explains_every_flag_and_quick_is_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe.help_of(Config, capsys)
    quick, full = Config(quick=True), Config()
    assert max(quick.lengths) < max(full.lengths)
    assert quick.steps < full.steps
    assert Config(quick=True, steps=7).steps == 7
