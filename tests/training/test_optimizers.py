"""Tests of optimizers, against their definitions in NumPy."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests import reference
from zoo.training.optimizers import Adam, AdamW, learning_rate_schedule


def test_adam_matches_pytorch_over_twenty_steps() -> None:
    generator = np.random.default_rng(0)
    start = generator.normal(size=(30, 20)).astype(np.float32)
    gradients = generator.normal(size=(20, 30, 20)).astype(np.float32)
    gradients[:, :10] *= 1e-7  # where epsilon counts
    variable = keras.Variable(start, name="weight")
    optimizer = Adam(1e-2, l2=0.1)
    expected, oracle = start.astype(np.float64), reference.Adam(1e-2, 0.1)
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        expected = oracle.update(expected, gradient)
    np.testing.assert_allclose(ops.convert_to_numpy(variable.value), expected, atol=2e-6)


@pytest.mark.parametrize("limit", [1.0, 1000.0])
def test_adam_clips_gradients_together_and_averages_weights(limit: float) -> None:
    """By the norm of all; the average begins with the first step's weights."""
    generator = np.random.default_rng(0)
    starts = [generator.normal(size=shape).astype(np.float32) for shape in ((4, 5), (3,))]
    variables = [keras.Variable(start, name=f"weight{i}") for i, start in enumerate(starts)]
    optimizer = Adam(0.1, global_clipnorm=limit, use_ema=True, ema_momentum=0.9)
    oracles = [reference.Adam(0.1, 0.0) for _ in starts]
    expected: list = list(starts)
    averages: list = []
    for step in range(3):
        gradients = [generator.normal(size=start.shape).astype(np.float32) for start in starts]
        norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients))
        optimizer.apply([ops.convert_to_tensor(gradient) for gradient in gradients], variables)
        scale = min(1, limit / norm)
        expected = [o.update(w, scale * g) for o, w, g in zip(oracles, expected, gradients)]
        averages = [0.9 * a + 0.1 * w for a, w in zip(averages, expected)] if step else expected
    for variable, weight in zip(variables, expected):
        np.testing.assert_allclose(ops.convert_to_numpy(variable.value), weight, atol=1e-5)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, averages):
        np.testing.assert_allclose(ops.convert_to_numpy(variable.value), average, atol=1e-5)


def test_adam_shows_infinite_gradient_norm() -> None:
    variable = keras.Variable(np.ones(3, np.float32), name="weight")
    optimizer = Adam(0.1, global_clipnorm=1.0)
    optimizer.apply([ops.convert_to_tensor(np.array([1, np.inf, 0], np.float32))], [variable])
    assert np.isnan(ops.convert_to_numpy(variable.value)).all()


def test_adamw_shrinks_only_matrices() -> None:
    start, gradient = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    matrix, bias = keras.Variable(start, name="matrix"), keras.Variable(start[0], name="bias")
    optimizer = AdamW(0.1, decay=0.5)
    optimizer.apply([ops.convert_to_tensor(g) for g in (gradient, gradient[0])], [matrix, bias])
    shrunk = reference.Adam(0.1, 0.0).update(start * (1 - 0.1 * 0.5), gradient)
    expected = reference.Adam(0.1, 0.0).update(start[0], gradient[0])
    np.testing.assert_allclose(ops.convert_to_numpy(matrix.value), shrunk, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(bias.value), expected, atol=1e-6)
    again = AdamW.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.weight_decay == 0.5


def test_learning_rate_schedule_rises_and_falls_to_a_tenth() -> None:
    rate = learning_rate_schedule("warmup_cosine", 0.01, 1100)
    values = [float(rate(step)) for step in (0, 50, 100, 600, 1100)]
    np.testing.assert_allclose(values, [0, 0.005, 0.01, 0.0055, 0.001], rtol=1e-4, atol=1e-9)
    assert float(learning_rate_schedule("warmup_cosine", 0.01, 2)(1)) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine"])
def test_learning_rate_schedule_of_few_steps(name: Any) -> None:
    """A single step has the whole rate; more steps rise first, if they shall, and then fall."""
    rates = [float(learning_rate_schedule(name, 1.0, 1)(0))]
    rates += [float(learning_rate_schedule(name, 1.0, 3)(step)) for step in range(3)]
    expected = {"cosine": [1, 1, 0.75, 0.25], "warmup_cosine": [1, 0, 1, 0.55]}[name]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"`steps` must be a whole number of at least 1.*steps=0"):
        learning_rate_schedule(name, 1.0, 0)


def test_adam_adds_epsilon_after_bias_correction() -> None:
    variable = keras.Variable(np.zeros(3, np.float32), name="weight")
    Adam(1.0, epsilon=1e-4).apply([ops.convert_to_tensor(np.float32([1e-4] * 3))], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(variable.value), -0.5, rtol=1e-4)


def test_adam_takes_transposed_gradients() -> None:
    """A convolution's gradient may lie in memory in another order than its kernel."""
    start, gradient = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    variable = keras.Variable(start, name="weight")
    optimizer = Adam(1e-2)
    backwards = ops.transpose(ops.convert_to_tensor(gradient.T.copy()), (2, 1, 0))
    optimizer.apply([backwards], [variable])
    expected = reference.Adam(1e-2, 0.0).update(start, gradient)
    np.testing.assert_allclose(ops.convert_to_numpy(variable.value), expected, atol=1e-6)


def test_adam_follows_schedule() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 4)
    variable = keras.Variable(np.zeros(1, np.float32), name="weight")
    optimizer = Adam(schedule)
    moves, previous = [], 0.0
    for _ in range(4):
        optimizer.apply([ops.convert_to_tensor(np.float32([1.0]))], [variable])
        value = float(ops.convert_to_numpy(variable.value)[0])
        moves.append(previous - value)
        previous = value
    np.testing.assert_allclose(moves, [schedule(i) for i in range(4)], rtol=1e-4)


@pytest.mark.once
def test_adam_survives_its_configuration() -> None:
    optimizer = Adam(1e-2, l2=0.1, epsilon=1e-5)
    again = Adam.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert (again.l2, again.epsilon) == (0.1, 1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"l2": -0.1}, r"l2=-0\.1"),
        ({"beta_2": 1.0}, r"beta_2=1\.0"),
        ({"weight_decay": 0.1}, r"`l2` is .*weight_decay=0\.1"),
        ({"amsgrad": True}, "amsgrad=True"),
        ({"clipnorm": "x"}, "`clipnorm` must be a finite number above 0. Received: clipnorm='x'"),
        ({"clipnorm": -1}, "clipnorm=-1"),
        ({"global_clipnorm": float("nan")}, "global_clipnorm=nan"),
        ({"clipvalue": float("inf")}, "clipvalue=inf"),
        ({"use_ema": 3}, "`use_ema` must be True or False. Received: use_ema=3"),
        ({"ema_momentum": 5}, r"`ema_momentum` must be a number in \[0, 1\]. Received: .*=5"),
        ({"ema_overwrite_frequency": 0}, "ema_overwrite_frequency=0"),
        ({"loss_scale_factor": 0}, "loss_scale_factor=0"),
        ({"gradient_accumulation_steps": 1}, "at least 2. Received: gradient_accumulation_steps=1"),
        ({"learning_rate": print}, "or a learning rate schedule. Received: learning_rate=<built"),
    ],
)
def test_adam_rejects_invalid_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Adam(**arguments)


@pytest.mark.once
def test_optimizers_reject_unknown_arguments() -> None:
    for optimizer in (Adam, AdamW):
        text = rf"{optimizer.__name__}\.__init__\(\) got an unexpected keyword argument 'foo'"
        with pytest.raises(TypeError, match=text):
            optimizer(foo=1)


@pytest.mark.once
def test_adam_passes_the_options_of_keras_on() -> None:
    options = {
        "clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3,
        "loss_scale_factor": 2.0, "gradient_accumulation_steps": 2, "name": "mine",
    }  # fmt: skip
    config = Adam(**options).get_config()
    assert {name: config[name] for name in options} == options


def test_adam_trains_compiled_keras_model() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(Adam(0.05), "mse")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    losses = [float(model.train_on_batch(x, y)) for _ in range(100)]
    assert losses[-1] < losses[0] / 10
