"""Tests of the recurrent layers against Keras' own, of the models, and of generation."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import backends, rnn_classifier, rnn_language_model
from zoo.generation.recurrent_decoding import initial_states, with_explicit_states
from zoo.generation.sampling import generate, sample_tokens
from zoo.layers import recurrent
from zoo.layers.recurrent import GRU, LSTM, SimpleRNN

CELLS = pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
ZOO_LAYERS = {"simple_rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}
KERAS_LAYERS = {
    "simple_rnn": keras.layers.SimpleRNN,
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
}
# Unmasked steps: all; the first ones; some in the middle; none.
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [0, 0, 1, 0, 1, 1, 0], [0] * 7], bool)


def to_numpy(tensors: Any) -> list[np.ndarray]:
    return [ops.convert_to_numpy(ops.stop_gradient(tensor)) for tensor in tensors]


def layer_pair(cell: str, features: int = 3, **options: Any) -> tuple[Any, Any]:
    """Returns a layer of the package and the Keras layer, with the same weights."""
    layers = [kinds[cell](5, return_state=True, **options) for kinds in (ZOO_LAYERS, KERAS_LAYERS)]
    generator = np.random.default_rng(0)
    for layer in layers:
        layer.build((4, 7, features))
    weights = [0.5 * generator.normal(size=w.shape) for w in layers[0].weights]
    for layer in layers:
        layer.set_weights(weights)
    return layers[0], layers[1]


def loss_and_gradients(
    layer: Any, x: np.ndarray, mask: Any, loss_function: Callable[..., Any]
) -> Any:
    """Returns the loss of a layer's outputs and the gradients with respect to its weights."""
    sequence = keras.Input(x.shape[1:])
    model = keras.Model(sequence, list(layer(sequence)))
    return backends.loss_and_gradients(model, lambda x: loss_function(layer(x, mask=mask)), x)


@CELLS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_recurrent_layer_agrees_with_keras(cell: str, masked: bool, go_backwards: bool) -> None:
    """Outputs of all steps, states and gradients agree, with masked steps anywhere."""
    layer, keras_layer = layer_pair(cell, return_sequences=True, go_backwards=go_backwards)
    x = np.random.default_rng(1).normal(size=(4, 7, 3)).astype(np.float32)
    mask = ops.convert_to_tensor(MASK) if masked else None
    for a, b in zip(to_numpy(layer(x, mask=mask)), to_numpy(keras_layer(x, mask=mask))):
        np.testing.assert_allclose(a, b, atol=1e-6)

    def weighted_loss(outputs: Any) -> Any:  # output and states have different weights
        return sum(ops.sum(ops.square(x)) / (i + 1) for i, x in enumerate(outputs))

    loss, gradients = loss_and_gradients(layer, x, mask, weighted_loss)
    expected_loss, expected = loss_and_gradients(keras_layer, x, mask, weighted_loss)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for a, b in zip(gradients.values(), expected.values()):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@CELLS
def test_recurrent_layer_starts_from_an_initial_state(cell: str) -> None:
    """A sequence whose steps are all masked returns the initial state."""
    layer, keras_layer = layer_pair(cell)
    generator = np.random.default_rng(2)
    x = generator.normal(size=(4, 7, 3)).astype(np.float32)
    states = [generator.normal(size=(4, 5)).astype(np.float32) for _ in layer.state_size]
    initial_state = [ops.convert_to_tensor(state) for state in states]
    for a, b in zip(to_numpy(layer(x, initial_state)), to_numpy(keras_layer(x, initial_state))):
        np.testing.assert_allclose(a, b, atol=1e-6)
    _, *final_states = to_numpy(layer(x, initial_state, mask=ops.convert_to_tensor(MASK)))
    for a, b in zip(final_states, states):
        np.testing.assert_array_equal(a[3], b[3])


def test_recurrent_layer_runs_other_cells_in_the_loop_of_keras() -> None:
    layer, keras_layer = layer_pair("gru", activation="relu", reset_after=False)
    x = np.random.default_rng(1).normal(size=(4, 7, 3)).astype(np.float32)
    for a, b in zip(to_numpy(layer(x)), to_numpy(keras_layer(x))):
        np.testing.assert_array_equal(a, b)


def test_recurrent_layer_rejects_dropout_and_an_ill_shaped_mask() -> None:
    with pytest.raises(ValueError, match=r"dropout=0.5.*Put a zoo.random.Dropout between layers"):
        LSTM(4, dropout=0.5)
    with pytest.raises(ValueError, match=r"mask.shape=\(4, 6\), sequences.shape=\(4, 7, 3\)"):
        layer_pair("lstm")[0](np.zeros((4, 7, 3)), mask=ops.ones((4, 6), "bool"))


# ------------------------------------------------------------------ classifier


@CELLS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_classifier_parameter_count_matches_the_formula(cell: str, bidirectional: bool) -> None:
    u, i = 6, 3
    layer_parameter_count = {
        "simple_rnn": lambda i: u * (i + u + 1),
        "lstm": lambda i: 4 * u * (i + u + 1),
        "gru": lambda i: 3 * u * (i + u + 2),
    }[cell]
    model = rnn_classifier((None, i), 4, cell, u, 2, bidirectional=bidirectional)
    directions = 2 if bidirectional else 1
    layers = layer_parameter_count(i) + layer_parameter_count(directions * u)
    expected = directions * layers + (directions * u + 1) * 4
    assert model.count_params() == expected


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_classifier_ignores_padding(bidirectional: bool) -> None:
    """Padding by value and by mask is ignored at any place."""
    model = rnn_classifier((None, 3), 4, "gru", 6, bidirectional=bidirectional, padding_value=0.0)
    x = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    expected = ops.convert_to_numpy(model(x[:, [0, 2, 3, 6]]))
    padded = x.copy()
    padded[:, [1, 4, 5]] = 0
    np.testing.assert_allclose(ops.convert_to_numpy(model(padded)), expected, atol=1e-6)
    masked = rnn_classifier((None, 3), 4, "gru", 6, 2, bidirectional=bidirectional, mask=True)
    unmasked = rnn_classifier((None, 3), 4, "gru", 6, 2, bidirectional=bidirectional)
    mask = np.array([[1, 0, 1, 1, 0, 0, 1]] * 2, bool)
    expected = ops.convert_to_numpy(unmasked(x[:, mask[0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(masked([x, mask])), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"`mask` must have the shape .*mask.shape=\(2, 6\)"):
        masked([x, mask[:, :6]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "lstn"}, "must be one of simple_rnn, lstm, gru. Received: cell='lstn"),
        ({"units": 0}, "`units` must be a whole number of at least 1. Received: units=0"),
        ({"units": -2}, "units=-2"),
        ({"num_layers": 0}, "num_layers=0"),
        (
            {"input_shape": (28,)},
            r"`input_shape` must be a sequence of 2 elements.* Received: input_shape=\(28,\)",
        ),
        ({"input_shape": (None, 0)}, r"input_shape=\(None, 0\)"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        (
            {"recurrent_initializer": "zeros"},
            "one of orthogonal, uniform. Received: recurrent_init",
        ),
        ({"padding_value": 0.0, "mask": True}, "give one. Received: padding_value=0.0, mask=True"),
    ],
)
def test_rnn_classifier_rejects_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rnn_classifier(**arguments)


# ------------------------------------------------------------------ language model


@pytest.fixture(scope="module", params=["simple_rnn", "lstm", "gru"])
def model(request: pytest.FixtureRequest) -> keras.Model:
    return rnn_language_model(20, request.param, 4, 6, num_layers=2)


IDS = np.random.default_rng(0).integers(0, 20, (2, 9)).astype(np.int32)


def test_with_explicit_states_in_chunks_agrees_with_the_whole_sequence(model: keras.Model) -> None:
    expected = ops.convert_to_numpy(model(IDS))
    stepper = with_explicit_states(model)
    states: Any = initial_states(stepper, 2)
    chunk_logits = []
    for chunk in np.split(IDS, [4, 5], axis=1):
        inputs = [ops.convert_to_tensor(array) for array in (chunk, *states)]
        logits, *states = stepper(inputs)
        chunk_logits.append(ops.convert_to_numpy(logits))
    np.testing.assert_allclose(np.concatenate(chunk_logits, axis=1), expected, atol=1e-6)
    assert [w.path for w in stepper.weights] == [w.path for w in model.weights]


def test_stateful_model_continues_a_sequence(model: keras.Model) -> None:
    cell = model.get_layer("rnn1").kind
    stateful = rnn_language_model(20, cell, 4, 6, num_layers=2, stateful=True, batch_size=2)
    expected = ops.convert_to_numpy(model(IDS))
    for _ in range(2):
        logits = [ops.convert_to_numpy(stateful(chunk)) for chunk in np.split(IDS, [4], axis=1)]
        np.testing.assert_allclose(np.concatenate(logits, axis=1), expected, atol=1e-6)
        for name in ("rnn1", "rnn2"):
            stateful.get_layer(name).reset_state()


def test_generate_gives_the_most_probable_tokens_and_reproducible_samples(
    model: keras.Model,
) -> None:
    greedy = generate(model, IDS, 4, temperature=0.0)
    ids = IDS
    for _ in range(4):
        logits = ops.convert_to_numpy(model(ids))[:, -1]
        ids = np.concatenate([ids, logits.argmax(-1)[:, None].astype(np.int32)], axis=1)
    np.testing.assert_array_equal(greedy, ids[:, 9:])
    sampled = generate(model, IDS, 4, seed=1)
    np.testing.assert_array_equal(sampled, generate(model, IDS, 4, seed=1))
    assert (np.array(sampled) != generate(model, IDS, 4, seed=2)).any()


def test_sample_tokens_follows_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.0625, 0.1875, 0.25]))
    uniform = (np.arange(10_000) + 0.5) / 10_000
    repeated_logits = np.broadcast_to(logits, (10_000, 4))

    def shares(**options: Any) -> list[float]:
        tokens = sample_tokens(repeated_logits, uniform, **options)
        return list(np.bincount(tokens, minlength=4) / 10_000)

    assert shares() == [0.5, 0.0625, 0.1875, 0.25]
    assert shares(top_k=2) == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-4)
    assert shares(top_p=0.75) == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-4)
    assert shares(top_p=0.76) == pytest.approx([0.5 / 0.9375, 0, 0.2, 0.25 / 0.9375], abs=1e-4)
    assert shares(temperature=0.5)[0] == pytest.approx(0.25 / 0.3515625, abs=1e-4)
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert sample_tokens(logits[None], np.array([1 - 2.0**-24])).item() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "`prompts` must be a sequence of at least 1 element"),
        ({"prompts": np.zeros((1, 0), int)}, "sequence of integers, at least one. Received: none"),
        ({"prompts": np.array([[1, 20]])}, r"ids in \[0, 20\), the model's vocabulary.*id 20"),
        ({"prompts": [[1], [-1, 2]]}, "Received: id -1 at index 1"),
        ({"prompts": [[1], [1, 2]]}, r"must be equally long.*Received: \[1, 2\] tokens"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number"),
        ({"top_p": 1.5}, r"`top_p` must be a number in \(0, 1\]. Received: top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_generate_rejects_invalid_arguments(arguments: dict, message: str) -> None:
    model = rnn_language_model(20, "gru", 4, 6)
    with pytest.raises(ValueError, match=message):
        generate(model, **{"prompts": IDS, "max_new_tokens": 3, **arguments})


@pytest.mark.parametrize("invalid_id", [20, -1])
def test_model_rejects_ids_outside_the_vocabulary(invalid_id: int) -> None:
    """Eager and compiled code raise an error instead of returning NaN or another row."""
    model = rnn_language_model(20, "gru", 4, 6)
    ids = np.array([[3, invalid_id]], np.int32)
    message = (
        r"Ids must lie in \[0, 20\), the vocabulary of the layer embedding. "
        rf"Received: id.*{invalid_id}"
    )
    with pytest.raises(ValueError, match=message):
        model(ids)
    predict = backends.backend.inference_function(model, lambda ids: model(ids))
    with pytest.raises(Exception, match=r"Ids must lie in \[0, 20\).*Received: id") as error:
        ops.convert_to_numpy(predict(ids))
    assert str(invalid_id) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "transformer"}, "must be one of simple_rnn, lstm, gru. Received: cell='transf"),
        ({"vocabulary_size": 0}, "vocabulary_size=0"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"stateful": True}, "`batch_size` must be given for a stateful model"),
    ],
)
def test_rnn_language_model_rejects_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rnn_language_model(**arguments)


def test_cell_steps_match_the_equations_of_the_docstring() -> None:
    """One step of each cell is computed in NumPy."""
    generator = np.random.default_rng(0)
    h, c = generator.normal(size=(2, 1, 2))

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    def random_gates(num_gates: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        wx, uh = generator.normal(size=(2, num_gates, 1, 2))
        return list(wx), list(uh)

    def apply(cell_step: Any, wx: list, uh: list, *states: np.ndarray) -> list[np.ndarray]:
        inputs = [np.concatenate(wx, -1), np.concatenate(uh, -1), *states]
        return to_numpy(cell_step(*(ops.convert_to_tensor(a.astype(np.float32)) for a in inputs)))

    wx, uh = random_gates(1)
    np.testing.assert_allclose(
        apply(recurrent.simple_rnn_step, wx, uh, h)[0], np.tanh(wx[0] + uh[0]), 1e-5
    )
    wx, uh = random_gates(4)
    i, f, g, o = (a + b for a, b in zip(wx, uh))
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    outputs = apply(recurrent.lstm_step, wx, uh, h, c)
    np.testing.assert_allclose(outputs[1], expected, 1e-5)
    np.testing.assert_allclose(outputs[0], sigmoid(o) * np.tanh(expected), 1e-5)
    wx, uh = random_gates(3)
    z, r = sigmoid(wx[0] + uh[0]), sigmoid(wx[1] + uh[1])
    expected = z * h + (1 - z) * np.tanh(wx[2] + r * uh[2])
    np.testing.assert_allclose(apply(recurrent.gru_step, wx, uh, h)[0], expected, 1e-5)
