"""Tests of `Trainer`: Keras' own training, with preprocessing within the step."""

import csv
import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.training.conftest import BATCH, EXAMPLES, STEPS, Training, X, Y, network, trainer
from zoo import backends, mlp, rnn_language_model
from zoo.training import Adam, Batches, CrossEntropy, StepCheckpoint, Trainer

FLOATS = (X / 255).astype(np.float32)


def restored(path: Path) -> Trainer:
    loaded = keras.saving.load_model(path)
    assert isinstance(loaded, Trainer)
    return loaded


# ------------------------------------------------------------------ against Keras and by hand


def test_fit_matches_keras_fit() -> None:
    """To the bit, with sample weights, over the same batches."""
    weights = np.linspace(0, 2, EXAMPLES, dtype=np.float32)
    train = Batches((FLOATS, Y, weights), BATCH, seed=3)
    validation = Batches((FLOATS[::2], Y[::2]), BATCH)
    own, stock = Trainer(network()), network()
    histories = []
    for model, options in (
        (own, {}),
        (stock, {"steps_per_epoch": STEPS, "shuffle": False}),
    ):
        model.compile(Adam(1e-2), CrossEntropy(), metrics=["accuracy"])
        options = {**options, "validation_data": validation, "epochs": 2, "verbose": 0}
        histories.append(model.fit(train, **options).history)
    assert histories[0] == histories[1]
    assert len(histories[0]["loss"]) == 2
    for weight, expected in zip(own.network.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_fit_weighs_classes() -> None:
    """As sample weights do, to the bit."""
    class_weight = {label: 0.5 + label for label in range(10)}
    weights = np.array([class_weight[label] for label in Y.tolist()], np.float32)
    losses = []
    for examples, options in (
        ((FLOATS, Y), {"class_weight": class_weight}),
        ((FLOATS, Y, weights), {}),
    ):
        model = Trainer(network())
        model.compile(Adam(1e-2), CrossEntropy())
        history = model.fit(Batches(examples, BATCH, seed=3), epochs=2, verbose=0, **options)
        losses.append(history.history["loss"])
    assert losses[0] == losses[1]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strategies of TensorFlow")
def test_fit_runs_under_distribution_strategy() -> None:
    import tensorflow as tf

    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = trainer()
    history = model.fit(Batches((X, Y), BATCH, seed=0), epochs=2, verbose=0)
    expected = trainer().fit(Batches((X, Y), BATCH, seed=0), epochs=2, verbose=0)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)


class MeanSquare(keras.layers.Layer):
    """Adds half the mean square of its inputs to the loss; has a weight that nothing uses."""

    def build(self, input_shape: Any) -> None:
        self.unused = self.add_weight(shape=(2,), initializer="ones", name="unused")

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.5 * ops.mean(ops.square(inputs)))
        return inputs


@dataclass
class LinearFit:
    """One epoch of a linear model with losses of layers, and the same in NumPy.

    Attributes:
        loss, kernel, unused: Mean loss of the epoch and final weights.
        losses: Loss of each batch in NumPy.
        sizes: Number of examples of each batch.
        expected_kernel: Final kernel in NumPy.
    """

    loss: float
    kernel: np.ndarray
    unused: np.ndarray
    losses: list[float]
    sizes: list[int]
    expected_kernel: np.ndarray


@pytest.fixture(scope="module")
def linear_fit() -> LinearFit:
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(EXAMPLES, size)).astype(np.float32) for size in (2, 1))
    y[35:] *= 10  # batches differ in their losses
    start, rate = np.array([[0.5], [-1.0]]), 0.02
    batches = Batches((x, y), BATCH, seed=3)
    kernel, losses, sizes = start, [], []
    for step in range(STEPS):
        inputs, targets = batches[step]
        outputs, size = inputs @ kernel, len(inputs)
        errors = outputs - targets
        squares = np.square(outputs).mean()
        losses.append(np.square(errors).mean() + 0.1 * squares + 0.5 * squares)
        slope = (2 * errors + 0.2 * outputs + outputs) / size
        kernel = kernel - rate * inputs.T @ slope
        sizes.append(size)

    layers = [
        keras.Input((2,)),
        keras.layers.Dense(
            1, use_bias=False, activity_regularizer=keras.regularizers.L2(0.1), name="dense"
        ),
        MeanSquare(name="square"),
    ]
    model = keras.Sequential(layers, name="linear")
    model.get_layer("dense").kernel.assign(start)
    own = Trainer(model)
    # Only a weight with a gradient decays.
    own.compile(keras.optimizers.SGD(rate, weight_decay=0.5), "mean_squared_error")
    own.optimizer.exclude_from_weight_decay(var_list=[model.get_layer("dense").kernel])
    history = own.fit(batches, verbose=0)
    weights = (model.get_layer("dense").kernel, model.get_layer("square").unused)
    values = (ops.convert_to_numpy(weight) for weight in weights)
    return LinearFit(history.history["loss"][0], *values, losses, sizes, kernel)


def test_fit_counts_losses_of_layers(linear_fit: LinearFit) -> None:
    """`activity_regularizer` and `add_loss`, in the loss and in the gradients."""
    np.testing.assert_allclose(linear_fit.kernel, linear_fit.expected_kernel, rtol=1e-5)


def test_fit_weighs_batches_by_their_sizes(linear_fit: LinearFit) -> None:
    assert linear_fit.sizes == [12, 12, 12, 4]
    expected = np.average(linear_fit.losses, weights=linear_fit.sizes)
    assert linear_fit.loss == pytest.approx(expected, rel=1e-5)
    assert np.mean(linear_fit.losses) != pytest.approx(expected, rel=1e-2)


def test_fit_gives_unused_weights_zero_gradient(linear_fit: LinearFit) -> None:
    """The optimizer updates them: here they decay."""
    np.testing.assert_allclose(linear_fit.unused, (1 - 0.02 * 0.5) ** STEPS, rtol=1e-5)


def test_fit_ends_with_averaged_weights(training: Training, tmp_path: Path) -> None:
    training.fit(tmp_path, epochs=1)
    with np.load(tmp_path / "step-000000004.npz") as archive:
        raw = [archive[f"model/{v.path}"] for v in training.trainer.trainable_variables]
        averages = [archive[name] for name in archive.files if name.endswith("_average")]
    weights = [ops.convert_to_numpy(v) for v in training.trainer.trainable_variables]
    assert len(averages) == len(weights)
    for weight, average, last in zip(weights, averages, raw):
        np.testing.assert_array_equal(weight, average)
        assert (weight != last).any()


# ------------------------------------------------------------------ Keras' callbacks

METRICS = ["accuracy", "loss", "val_accuracy", "val_loss"]
TENSORBOARD = all(map(importlib.util.find_spec, ("tensorflow", "tensorboard")))


@pytest.fixture(scope="module")
def with_callbacks(
    training: Training, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[float]]]:
    """Folder of the files that callbacks have written, and the history."""
    folder = tmp_path_factory.mktemp("callbacks")
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=1),
        keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
        keras.callbacks.CSVLogger(folder / "log.csv"),
    ]
    if TENSORBOARD:
        callbacks.append(keras.callbacks.TensorBoard(folder / "board", write_graph=False))
    training.reset()
    history = training.trainer.fit(
        training.train, epochs=5, validation_data=training.validation, callbacks=callbacks,
        verbose=0,
    )  # fmt: skip
    return folder, history.history


def test_early_stopping_ends_fit(with_callbacks: tuple[Path, dict[str, list[float]]]) -> None:
    _, history = with_callbacks
    assert sorted(history) == METRICS
    assert all(len(values) == 2 for values in history.values())


def test_model_checkpoint_saves_each_epoch(
    with_callbacks: tuple[Path, dict[str, list[float]]], training: Training
) -> None:
    folder, history = with_callbacks
    assert sorted(path.name for path in folder.glob("*.keras")) == ["1.keras", "2.keras"]
    loss, accuracy = restored(folder / "2.keras").evaluate(training.validation, verbose=0)
    assert (loss, accuracy) == (history["val_loss"][1], history["val_accuracy"][1])


def test_csv_logger_writes_each_epoch(
    with_callbacks: tuple[Path, dict[str, list[float]]],
) -> None:
    folder, history = with_callbacks
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", *METRICS]
    for name in METRICS:
        assert [float(row[name]) for row in rows] == history[name]


@pytest.mark.skipif(not TENSORBOARD, reason="tensorflow and tensorboard write the event files")
def test_tensorboard_writes_event_files(
    with_callbacks: tuple[Path, dict[str, list[float]]],
) -> None:
    folder, _ = with_callbacks
    for part in ("train", "validation"):
        (events,) = (folder / "board" / part).glob("events.out.tfevents.*")
        assert events.stat().st_size > 100


# ------------------------------------------------------------------ predictions and files


def test_predict_normalizes_and_keeps_order(training: Training) -> None:
    own = training.trainer
    outputs = own.predict(Batches(X, BATCH), verbose=0)
    normalized = ops.convert_to_tensor((FLOATS - 0.5) / 0.25)
    expected = ops.convert_to_numpy(own.network(normalized, training=False))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_preprocessing_may_be_a_function() -> None:
    """It is given `training`, which is False in inference."""
    calls = []

    def halve(inputs: Any, training: bool) -> Any:
        calls.append(training)
        return inputs / 2

    whole, inputs = Trainer(network(), halve), ops.convert_to_tensor(FLOATS)
    outputs, expected = whole(inputs), whole.network(inputs / 2)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (outputs, expected)))
    whole(inputs, training=True)
    assert calls == [False, True]


def test_save_weights_round_trip(training: Training, tmp_path: Path) -> None:
    """Into a trainer that was neither compiled nor called."""
    training.trainer.save_weights(tmp_path / "trainer.weights.h5")
    other = Trainer(network(), training.trainer.preprocessing)
    other.load_weights(tmp_path / "trainer.weights.h5")
    for weight, expected in zip(other.weights, training.trainer.weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (weight, expected)))


def test_keras_file_round_trip(training: Training, tmp_path: Path) -> None:
    """Training goes on from the file with the same bits; it holds no counters of random draws."""
    own, first = training.trainer, (X[:BATCH], Y[:BATCH])
    own.save(tmp_path / "trainer.keras")
    loaded = restored(tmp_path / "trainer.keras")
    for variable, saved in zip(loaded.variables, own.variables):
        if variable.name == "seed_generator_state":
            variable.assign(np.array(ops.convert_to_numpy(saved)))
    assert json.dumps(loaded.get_config(), default=str) == json.dumps(own.get_config(), default=str)
    losses = [[float(model.train_on_batch(*first)[0]) for _ in "ab"] for model in (own, loaded)]
    assert losses[0] == losses[1]
    for weight, expected in zip(loaded.variables, own.variables, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (weight, expected)))


# ------------------------------------------------------------------ errors


@pytest.mark.once
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            Batches((X, Y)),
            r"with a `seed` when `checkpoint` is given.*Received: x of type .*Batches",
        ),
        (X, r"`x` must be `zoo\.training\.Batches`.*Received: x of type .*ndarray"),
    ],
)
def test_fit_with_checkpoint_requires_seeded_batches(tmp_path: Path, data: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer().fit(data, checkpoint=StepCheckpoint(tmp_path))


INVALID_COUNTS = [
    (
        {"steps_per_epoch": -3},
        "`steps_per_epoch` must be a whole number of at least 1 or None. Rec",
    ),
    ({"steps_per_epoch": 0}, "Received: steps_per_epoch=0"),
    ({"epochs": "2"}, "`epochs` must be a whole number of at least 1. Received: epochs='2'"),
    ({"epochs": None}, "Received: epochs=None"),
    ({"epochs": 1.5}, r"Received: epochs=1\.5"),
    ({"epochs": True}, "Received: epochs=True"),
    ({"epochs": 0}, "Received: epochs=0"),
    ({"initial_epoch": -1}, "Received: initial_epoch=-1"),
    ({"validation_freq": 0}, "at least 1 or a list of epochs. Received: validation_freq=0"),
    ({"verbose": "x"}, "`verbose` must be 'auto', 0, 1 or 2. Received: verbose='x'"),
    ({"validation_steps": 0}, "Received: validation_steps=0"),
    ({"validation_split": 1}, r"number in \[0, 1\). Received: validation_split=1"),
]


@pytest.mark.once
@pytest.mark.parametrize(("options", "text"), INVALID_COUNTS)
def test_fit_rejects_invalid_counts(options: dict, text: str, tmp_path: Path) -> None:
    model, batches = trainer(), Batches((X, Y), BATCH, seed=0)
    for checkpoint in (None, StepCheckpoint(tmp_path / "checkpoints")):
        with pytest.raises(ValueError, match=text):
            model.fit(batches, checkpoint=checkpoint, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_evaluate_and_predict_reject_invalid_counts() -> None:
    with pytest.raises(ValueError, match=r"`steps` must be .* at least 1 or None.*: steps=0"):
        trainer().evaluate(X, Y, steps=0)
    with pytest.raises(ValueError, match=r"`batch_size` must be .* Received: batch_size=True"):
        trainer().predict(X, True)


@pytest.mark.once
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_unknown_arguments_are_type_errors(method: str) -> None:
    text = rf"Trainer\.{method}\(\) got an unexpected keyword argument 'foo'"
    with pytest.raises(TypeError, match=text):
        getattr(trainer(), method)(X, foo=1)


@pytest.mark.once
@pytest.mark.parametrize("preprocessing", ["foo", 5, []])
def test_trainer_rejects_a_preprocessing_that_cannot_be_called(preprocessing: Any) -> None:
    with pytest.raises(ValueError, match=r"`preprocessing` must be a layer or a function .* Rec"):
        Trainer(mlp((4,), 3), preprocessing)


def test_fit_of_a_model_without_weights() -> None:
    """Nothing is learnt, and the loss is computed."""
    model = Trainer(keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0)]))
    model.compile(Adam(1e-3), "mse")
    ones = np.ones((4, 2), np.float32)
    assert model.fit(ones, ones, verbose=0).history["loss"] == pytest.approx([1.0])


# ------------------------------------------------------------------ raw pixels


RAW = "`x` looks like raw pixels, and .* takes normalized ones.* whole numbers from 0 to 2"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_trainer_warns_once_of_raw_pixels(dtype: type) -> None:
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28, 1) % 256
    images, labels = images.astype(dtype), np.array([0, 1])
    for train in (
        lambda model: model.fit(images, labels, verbose=0),
        lambda model: model.fit(Batches((images, labels), 2), verbose=0),
        lambda model: model.evaluate(images, labels, verbose=0),
        lambda model: model.predict(Batches(images, 2), verbose=0),
    ):
        model = Trainer(mlp(hidden_units=(2,)))
        model.compile("sgd", CrossEntropy())
        with pytest.warns(UserWarning, match=RAW) as caught:
            train(model)
        (warning,) = (w for w in caught if "raw pixels" in str(w.message))
        assert warning.filename == __file__
        train(model)  # a warning would be an error


def test_trainer_warns_of_raw_pixels_in_any_form() -> None:
    """Flattened, as a tensor, in a single step, and after normalized pixels."""
    images = (np.arange(2 * 28 * 28).reshape(2, 28, 28, 1) % 256).astype(np.float32)
    labels = np.array([0, 1])
    for shape, use in (
        ((784,), lambda model: model.predict_on_batch(images.reshape(2, 784))),
        ((28, 28, 1), lambda model: model.predict_on_batch(ops.convert_to_tensor(images))),
        ((28, 28, 1), lambda model: model.train_on_batch(images, labels)),
        ((28, 28, 1), lambda model: model.test_on_batch(images, labels)),
    ):
        model = Trainer(mlp(shape, hidden_units=(2,)))
        model.compile("sgd", CrossEntropy())
        model.train_on_batch(images.reshape(2, *shape) / 255, labels)
        with pytest.warns(UserWarning, match=RAW) as caught:
            use(model)
        assert [w.filename for w in caught if "raw pixels" in str(w.message)] == [__file__]


def test_trainer_does_not_warn_of_other_inputs() -> None:
    """With a preprocessing, in a network or before it; of normalized pixels and of whole numbers
    that are no pixels."""
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28, 1) % 256
    network = mlp(hidden_units=(2,))
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255), network]
    for model, x in (
        (Trainer(network, lambda x, training: x / 255), images),
        (Trainer(keras.Sequential(layers)), images),
        (Trainer(network), images / 255),
        (Trainer(network), images - 128),
        (Trainer(network), images // 8),
        (Trainer(mlp((4,), hidden_units=(2,))), np.full((2, 4), 255)),
        (Trainer(rnn_language_model(256, "gru", 2, 2)), np.arange(200).reshape(2, 100)),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model.predict(x.astype(np.float32), verbose=0)
        assert [w.message for w in caught if w.category is UserWarning] == []


# ------------------------------------------------------------------ several steps in one call


@pytest.mark.skipif(backends.name == "torch", reason="Keras refuses it on PyTorch")
def test_several_steps_in_one_call_give_the_same_losses(tmp_path: Path) -> None:
    """With checkpoints, too: a training that goes on ends as one that did not stop."""
    train = Batches((FLOATS, Y), BATCH, seed=3, steps_per_epoch=4)
    weights, losses = [], []
    for count, stops in ((1, False), (2, False), (2, True)):
        model = Trainer(network())
        model.compile(Adam(1e-2), CrossEntropy(), steps_per_execution=count)
        folder = tmp_path / f"{count}{stops}"
        for epochs in (1, 2) if stops else (2,):
            checkpoint = StepCheckpoint(folder, every=3)
            history = model.fit(train, epochs=epochs, checkpoint=checkpoint, verbose=0)
        assert checkpoint.state.step == 8
        losses.append(history.history["loss"])
        weights.append(model.network.get_weights())
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-6)
    for one, others in zip(weights[0], zip(*weights[1:], strict=True), strict=True):
        for other in others:
            np.testing.assert_allclose(other, one, atol=1e-6)


@pytest.mark.skipif(backends.name == "torch", reason="Keras refuses it on PyTorch")
def test_several_steps_in_one_call_must_divide_an_epoch() -> None:
    model = Trainer(network())
    model.compile(Adam(1e-2), CrossEntropy(), steps_per_execution=3)
    train = Batches((FLOATS, Y), BATCH, seed=3, steps_per_epoch=4)
    with pytest.raises(ValueError, match="Received: steps_per_execution=3, 4 steps"):
        model.fit(train, verbose=0)


@pytest.mark.skipif(backends.name != "jax", reason="checks of several steps are JAX's")
def test_several_steps_in_one_call_check_labels() -> None:
    model = Trainer(network())
    model.compile(Adam(1e-2), CrossEntropy(), steps_per_execution=2)
    labels = Y.copy()
    labels[-1] = 77
    train = Batches((FLOATS, labels), BATCH, seed=3, steps_per_epoch=2 * STEPS)
    with pytest.raises(ValueError, match="77"):
        model.fit(train, verbose=0)
