"""An id outside the vocabulary or a label outside the classes is an error that ruins nothing."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from zoo import mlp, rnn_language_model
from zoo.training import Adam, Batches, CrossEntropy, StepCheckpoint, Trainer

IDS = np.arange(40, dtype=np.int32).reshape(10, 4) % 20
MESSAGE = r"Ids must lie in \[0, 20\), the vocabulary of the layer embedding. Received: id.*"


def with_invalid_id(row: int, invalid_id: int) -> np.ndarray:
    ids = IDS.copy()
    ids[row, 2] = invalid_id
    return ids


def new_trainer() -> Trainer:
    trainer = Trainer(rnn_language_model(20, "gru", 4, 6))
    trainer.compile(Adam(1e-2), CrossEntropy())
    return trainer


@pytest.fixture
def trainer() -> Trainer:
    return new_trainer()


def weights(trainer: Trainer) -> list[np.ndarray]:
    """Values of the network and of the optimizer but for the counters of steps and rates."""
    variables = [*trainer.network.variables, *trainer.optimizer.variables]
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables if len(v.shape)]


CALLS: dict[str, Callable[[Trainer, np.ndarray], object]] = {
    "fit": lambda trainer, ids: trainer.fit(ids, ids, batch_size=2, shuffle=False, verbose=0),
    "fit of batches": lambda trainer, ids: trainer.fit(Batches((ids, ids), 2, seed=0), verbose=0),
    "several steps at a time": lambda trainer, ids: _in_pairs(trainer).fit(
        ids, ids, batch_size=2, shuffle=False, verbose=0
    ),
    "train_on_batch": lambda trainer, ids: trainer.train_on_batch(ids, ids),
    "evaluate": lambda trainer, ids: trainer.evaluate(ids, ids, batch_size=2, verbose=0),
    "predict": lambda trainer, ids: trainer.predict(ids, batch_size=2, verbose=0),
}


def _in_pairs(trainer: Trainer) -> Trainer:
    if keras.config.backend() == "torch":
        pytest.skip("Keras takes one step at a time on PyTorch")
    trainer.compile(Adam(1e-2), CrossEntropy(), steps_per_execution=2)
    return trainer


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("row", "invalid_id"), [(0, 20), (3, -1), (9, 99)])
def test_error_names_the_id_and_the_model_still_works(
    trainer: Trainer, call: str, row: int, invalid_id: int
) -> None:
    with pytest.raises(Exception, match=MESSAGE + str(invalid_id)):
        CALLS[call](trainer, with_invalid_id(row, invalid_id))
    assert all(np.isfinite(value).all() for value in weights(trainer))
    assert np.isfinite(CALLS["train_on_batch"](trainer, IDS))


def test_training_goes_on_from_the_checkpoint_before_the_invalid_id(tmp_path: Path) -> None:
    """On JAX the step with the invalid id is taken, but not saved."""
    histories = []
    for folder, ids in (("whole", IDS), ("mended", with_invalid_id(9, 20))):
        trainer = new_trainer()
        options = {"epochs": 2, "verbose": 0, "checkpoint": StepCheckpoint(tmp_path / folder, 1)}
        if ids is not IDS:
            with pytest.raises(Exception, match=MESSAGE + "20"):
                trainer.fit(Batches((ids, ids), 2, seed=0), **options)
        history = trainer.fit(Batches((IDS, IDS), 2, seed=0), **options)
        histories.append((history.history["loss"], weights(trainer)))
    (loss, values), (loss_after_error, values_after_error) = histories
    assert loss_after_error == loss
    for value, wanted in zip(values_after_error, values, strict=True):
        np.testing.assert_array_equal(value, wanted)


LABEL_MESSAGE = r"Labels must lie in \[0, 3\), the classes of the logits. Received: label"


@pytest.mark.parametrize("wrap", [Trainer, lambda network: network], ids=["Trainer", "Model"])
@pytest.mark.parametrize(
    ("call", "label"),
    [
        ("fit", 3), ("fit", -1), ("fit", 2**32 + 1), ("fit", np.nan), ("evaluate", 3),
        ("train_on_batch", -1), ("train_on_batch", 2**32), ("test_on_batch", 3),
    ],
)  # fmt: skip
def test_error_names_the_label_and_the_model_still_works(
    wrap: Callable[[keras.Model], keras.Model], call: str, label: float
) -> None:
    model = wrap(mlp((4,), 3, hidden_units=(5,)))
    model.compile(Adam(1e-2), CrossEntropy())
    x, labels = np.ones((10, 4), np.float32), np.arange(10) % 3
    wrong = np.where(np.arange(10) == 7, label, labels)
    text = rf"{LABEL_MESSAGE}.*{label}"
    if label > 3 and keras.config.backend() == "jax":
        text = rf"Integers must lie in \[-2\*\*31, 2\*\*31\).*`JAX_ENABLE_X64=1`.*: {label}"
    elif label > 3:
        text = LABEL_MESSAGE  # Keras converts labels to float32, which has seven digits
    options = {} if call.endswith("batch") else {"batch_size": 2, "verbose": 0}
    with pytest.raises(Exception, match=text):
        getattr(model, call)(x, wrong, **options)
    assert np.isfinite(model.predict_on_batch(x)).all()
    assert all(np.isfinite(ops.convert_to_numpy(v.value)).all() for v in model.optimizer.variables)
    assert np.isfinite(model.train_on_batch(x, labels))


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_model_of_keras_works_after_an_invalid_id(call: str) -> None:
    model = rnn_language_model(20, "gru", 4, 6)
    model.compile(Adam(1e-2), CrossEntropy())
    with pytest.raises(Exception, match=MESSAGE + "20"):
        CALLS[call](model, with_invalid_id(3, 20))
    assert np.isfinite(model.predict_on_batch(IDS)).all()
    assert np.isfinite(model.train_on_batch(IDS, IDS))


@pytest.mark.parametrize("label", [5, -1, np.nan])
def test_cross_entropy_rejects_a_label_without_a_class(label: int) -> None:
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match=rf"Labels must lie in \[0, 5\).*label {label}"):
        CrossEntropy()(np.array([0, label]), logits)
