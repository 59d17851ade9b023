"""Gradient accumulation: the losses and weights of batches that are computed as a whole."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.training.conftest import X, Y, trainer
from zoo import gpt, random, rnn_language_model
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import DiffusionTrainer
from zoo.diffusion.noise_schedule import linear
from zoo.initializers import FanInUniform
from zoo.training import Adam, Batches, CrossEntropy, Trainer
from zoo.training.accumulation import check_distributed

# Of 40 examples, the batches have 11, 11, 11 and 7, in parts of 4, 4, 3 and of 3, 3, 1.
BATCH, PARTS, STEPS = 11, 3, 5
IDS = np.random.default_rng(1).integers(0, 20, (40, 7), dtype=np.int32)
DRAWS = r"by the place of an example .* Received: .*, a layer of Keras that draws the same on each"
CLASS_WEIGHT = {0: 0.3, 1: 1.0, 2: 2.5}


def classifier() -> Trainer:
    """A convolution, whose penalty counts once, and dropout, behind augmentation."""
    whole = trainer()
    whole.network.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    return whole


def language_model() -> Trainer:
    """A decoder with dropout, whose loss divides by the sum of the weights of the tokens."""
    model = gpt(20, 8, num_layers=1, num_heads=2, hidden_dim=8, dropout=0.2)
    whole = Trainer(model)
    optimizer = keras.optimizers.SGD(0.5, global_clipnorm=0.5)
    whole.compile(optimizer, CrossEntropy(), weighted_metrics=["accuracy"])
    return whole


def diffusion() -> Trainer:
    """Noise, time steps and prompts on a network as small as can be."""
    image, time = keras.Input((6, 6, 1), name="image"), keras.Input((), dtype="int32", name="time")
    prompt = keras.Input((4,), dtype="int32", name="prompt")
    kernel = FanInUniform(0, "kernel")
    embedding = keras.layers.Embedding(20, 6, embeddings_initializer=kernel)(time)
    embedding += ops.mean(
        keras.layers.Embedding(9, 6, embeddings_initializer=kernel)(prompt), axis=1
    )
    outputs = keras.layers.Conv2D(1, 3, padding="same", kernel_initializer=kernel)(image)
    outputs += ops.reshape(embedding, (-1, 6, 1, 1))
    network = keras.Model({"image": image, "time": time, "prompt": prompt}, outputs)
    prompts = np.arange(3 * 5 * 4).reshape(3, 5, 4) % 8 + 1
    whole = DiffusionTrainer(network, GaussianDiffusion(linear(20)), 0, prompts)
    whole.compile(keras.optimizers.SGD(0.1))
    return whole


def token_weights() -> np.ndarray:
    """No weight at padding, and a last example without any."""
    weights = np.random.default_rng(2).integers(0, 2, IDS.shape).astype(np.float32)
    weights[-1] = 0
    return weights


CASES: dict[str, tuple[Callable[[], Trainer], Any, dict[str, Any]]] = {
    "cnn": (classifier, (X, Y), {"class_weight": CLASS_WEIGHT}),
    "gpt": (language_model, (IDS, np.roll(IDS, -1, 1), token_weights()), {}),
    "diffusion": (diffusion, {"image": X, "label": Y}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_give_the_losses_of_the_whole_batch(case) -> None:
    build, examples, options = CASES[case]
    results = []
    for parts in (1, PARTS):
        model = build()
        history = model.fit(
            Batches(examples, BATCH, seed=3, steps_per_epoch=1), epochs=STEPS, verbose=0,
            gradient_accumulation=parts, **options,
        )  # fmt: skip
        draws = [ops.convert_to_numpy(counter.value).tolist() for counter in model.draw_counters]
        results.append((history.history, model.network.get_weights(), draws))
    (whole, weights, draws), (history, weights_in_parts, draws_in_parts) = results
    assert len(history["loss"]) == STEPS
    assert history.keys() == whole.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6)
    for weight, expected in zip(weights_in_parts, weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)
    assert draws_in_parts == draws
    assert draws
    assert all(number == [0, STEPS] for number in draws)


def test_parts_are_computed_one_after_another() -> None:
    """No layer sees more than a part; a batch with fewer examples than parts has as many."""
    sizes = []

    class Recorder(keras.layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if training and inputs.shape[0] is not None:
                sizes.append(int(inputs.shape[0]))
            return inputs

    inputs = keras.Input((7,))
    model = Trainer(keras.Model(inputs, keras.layers.Dense(3)(Recorder()(inputs))))
    model.compile(Adam(1e-2), CrossEntropy(), run_eagerly=True)
    x = np.zeros((7, 7), np.float32)
    sizes.clear()
    model.fit(x, Y[:7], batch_size=5, shuffle=False, verbose=0, gradient_accumulation=3)
    is_traced = keras.backend.backend() == "jax"  # the parts of a loop have one trace
    assert sizes == [2, 1, 1] if is_traced else [2, 2, 1, 1, 1]
    sizes.clear()
    model.fit(x, Y[:7], batch_size=7, shuffle=False, verbose=0)
    assert sizes == [7]


def test_labels_and_ids_are_checked() -> None:
    model = Trainer(rnn_language_model(20, "gru", 4, 6))
    model.compile(Adam(1e-2), CrossEntropy())
    for examples, text in (
        ((IDS, np.where(np.arange(40)[:, None] == 5, 20, IDS)), "Received: label.*20"),
        ((np.where(np.arange(40)[:, None] == 33, -1, IDS), IDS), "Received: id.*-1"),
    ):
        with pytest.raises(Exception, match=text):
            model.fit(Batches(examples, 40, seed=0), verbose=0, gradient_accumulation=4)


def test_layers_of_whole_batches_are_refused() -> None:
    normalized = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(3)]
    )
    stateful = rnn_language_model(20, "gru", 4, 6, stateful=True, batch_size=4)
    for model, text in (
        (normalized, r"batch normalization.*gradient_accumulation=2 and the layer norm\. Use"),
        (stateful, r"a state for each row.*gradient_accumulation=2 and the layer"),
    ):
        whole = Trainer(model)
        whole.compile(Adam(1e-2), CrossEntropy())
        with pytest.raises(ValueError, match=text):
            whole.fit(np.zeros((4, 4)), np.zeros(4), verbose=0, gradient_accumulation=2)
    normalized.layers[0].trainable = False
    whole = Trainer(normalized)
    whole.compile(Adam(1e-2), CrossEntropy())
    whole.fit(np.zeros((4, 4)), np.zeros(4), verbose=0, gradient_accumulation=2)


def test_layers_of_keras_that_draw_are_refused_on_several_devices() -> None:
    """Not recurrent layers, which have a generator even without dropout."""
    layers = keras.layers
    for layer, is_refused in (
        (layers.Dropout(0.5), True),
        (layers.Dropout(0.0), False),
        (layers.GaussianNoise(0.1), True),
        (layers.LSTM(2, recurrent_dropout=0.1), True),
        (layers.Bidirectional(layers.GRU(2)), False),
        (random.Dropout(0.5), False),
    ):
        model = Trainer(keras.Sequential([keras.Input((3, 2)), layer]))
        with pytest.raises(ValueError, match=DRAWS) if is_refused else nullcontext():
            check_distributed(model)


def test_losses_that_are_no_mean_are_refused() -> None:
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
    one = keras.Sequential([inputs, keras.layers.Dense(3)])
    x, y, weights = np.ones((4, 4), np.float32), np.zeros(4, np.int32), np.ones(4, np.float32)
    for model, losses, data, text in (
        (one, CrossEntropy(reduction="sum"), (x, y), "Received: reduction='sum'"),
        (two, [CrossEntropy(), CrossEntropy()], (x, [y, y], [weights, weights]), "several losses"),
    ):
        whole = Trainer(model)
        whole.compile(Adam(1e-2), losses)
        with pytest.raises(ValueError, match=text):
            whole.fit(*data[:2], sample_weight=(*data, None)[2], verbose=0, gradient_accumulation=2)


def test_masked_losses_divide_by_the_values_of_the_whole_batch() -> None:
    """Of a mask that the network computes, which the data do not hold."""
    lengths = np.arange(40) % 8
    x = np.where(np.arange(7) < lengths[:, None], np.arange(1.0, 8.0), 0.0)[..., None]
    y = np.arange(40, dtype=np.float32)[:, None, None] * np.ones((1, 7, 1), np.float32)
    losses = []
    for parts in (1, PARTS):
        model = keras.Sequential(
            [
                keras.Input((7, 1)),
                keras.layers.Masking(),
                keras.layers.Dense(1, kernel_initializer="ones"),
            ]
        )
        whole = Trainer(model)
        whole.compile(Adam(1e-2), "mean_squared_error")
        history = whole.fit(
            Batches((x, y), BATCH, seed=3, steps_per_epoch=1), epochs=2, verbose=0,
            gradient_accumulation=parts,
        )  # fmt: skip
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
