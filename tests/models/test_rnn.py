"""The recurrent layers against Keras' own loops, the models, states handed over, generation."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import backends, rnn_classifier, rnn_language_model
from zoo.generation.decoding import initial_states, with_explicit_states
from zoo.generation.sampling import generate, sample_tokens
from zoo.layers import recurrent
from zoo.layers.recurrent import GRU, LSTM, SimpleRNN

CELLS = pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
OURS = {"simple_rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}
STOCK = {
    "simple_rnn": keras.layers.SimpleRNN,
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
}
# Steps that count: all; the first; some in the middle; none.
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [0, 0, 1, 0, 1, 1, 0], [0] * 7], bool)


def arrays(tensors: Any) -> list[np.ndarray]:
    return [ops.convert_to_numpy(ops.stop_gradient(tensor)) for tensor in tensors]


def pair(cell: str, features: int = 3, **options: Any) -> tuple[Any, Any]:
    """Ours and Keras' own, with the same weights."""
    layers = [kinds[cell](5, return_state=True, **options) for kinds in (OURS, STOCK)]
    generator = np.random.default_rng(0)
    for layer in layers:
        layer.build((4, 7, features))
    weights = [0.5 * generator.normal(size=w.shape) for w in layers[0].weights]
    for layer in layers:
        layer.set_weights(weights)
    return layers[0], layers[1]


def gradients(layer: Any, x: np.ndarray, mask: Any, weigh: Callable[..., Any]) -> Any:
    sequence = keras.Input(x.shape[1:])
    model = keras.Model(sequence, list(layer(sequence)))
    return backends.loss_and_gradients(model, lambda x: weigh(layer(x, mask=mask)), x)


@CELLS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_the_layers_are_keras_own(cell: str, masked: bool, back: bool) -> None:
    """Outputs at every step, states, gradients, with steps left out anywhere."""
    ours, stock = pair(cell, return_sequences=True, go_backwards=back)
    x = np.random.default_rng(1).normal(size=(4, 7, 3)).astype(np.float32)
    mask = ops.convert_to_tensor(MASK) if masked else None
    for a, b in zip(arrays(ours(x, mask=mask)), arrays(stock(x, mask=mask))):
        np.testing.assert_allclose(a, b, atol=1e-6)

    def weigh(outputs: Any) -> Any:  # the states take part, and each differently
        return sum(ops.sum(ops.square(part)) / (i + 1) for i, part in enumerate(outputs))

    loss, found = gradients(ours, x, mask, weigh)
    expected_loss, expected = gradients(stock, x, mask, weigh)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for a, b in zip(found.values(), expected.values()):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@CELLS
def test_an_initial_state(cell: str) -> None:
    """Where no step counts, it is the last one, too."""
    ours, stock = pair(cell)
    generator = np.random.default_rng(2)
    x = generator.normal(size=(4, 7, 3)).astype(np.float32)
    states = [generator.normal(size=(4, 5)).astype(np.float32) for _ in ours.state_size]
    begin = [ops.convert_to_tensor(state) for state in states]
    for a, b in zip(arrays(ours(x, begin)), arrays(stock(x, begin))):
        np.testing.assert_allclose(a, b, atol=1e-6)
    _, *last = arrays(ours(x, begin, mask=ops.convert_to_tensor(MASK)))
    for a, b in zip(last, states):
        np.testing.assert_array_equal(a[3], b[3])


def test_a_cell_of_another_kind_is_left_to_keras() -> None:
    ours, stock = pair("gru", activation="relu", reset_after=False)
    x = np.random.default_rng(1).normal(size=(4, 7, 3)).astype(np.float32)
    for a, b in zip(arrays(ours(x)), arrays(stock(x))):
        np.testing.assert_array_equal(a, b)


def test_what_the_layers_refuse() -> None:
    with pytest.raises(ValueError, match=r"put a zoo.random.Dropout between layers.*dropout=0.5"):
        LSTM(4, dropout=0.5)
    with pytest.raises(ValueError, match=r"mask.shape=\(4, 6\), sequences.shape=\(4, 7, 3\)"):
        pair("lstm")[0](np.zeros((4, 7, 3)), mask=ops.ones((4, 6), "bool"))


# ------------------------------------------------------------------ classifier


@CELLS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_parameters(cell: str, bidirectional: bool) -> None:
    u, i = 6, 3
    count = {
        "simple_rnn": lambda i: u * (i + u + 1),
        "lstm": lambda i: 4 * u * (i + u + 1),
        "gru": lambda i: 3 * u * (i + u + 2),
    }[cell]
    model = rnn_classifier((None, i), 4, cell, u, 2, bidirectional=bidirectional)
    ways = 2 if bidirectional else 1
    expected = ways * (count(i) + count(ways * u)) + (ways * u + 1) * 4
    assert model.count_params() == expected


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_counts_for_nothing(bidirectional: bool) -> None:
    """Wherever it stands, and a mask does the same."""
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
    ("arguments", "text"),
    [
        ({"cell": "lstn"}, "must be one of simple_rnn, lstm, gru. Received: cell=lstn"),
        ({"units": 0}, "`units` must be a whole number of at least 1. Received: units=0"),
        ({"units": -2}, "units=-2"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"input_shape": (28,)}, r"must be \(steps, features\). Received: input_shape=\(28,\)"),
        ({"input_shape": (None, 0)}, "input_shape=0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"recurrent_initializer": "zeros"}, "orthogonal or uniform. Received: recurrent_init"),
        ({"padding_value": 0.0, "mask": True}, "give one. Received: padding_value=0.0, mask=True"),
    ],
)
def test_wrong_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rnn_classifier(**arguments)


# ------------------------------------------------------------------ language model


@pytest.fixture(scope="module", params=["simple_rnn", "lstm", "gru"])
def model(request: pytest.FixtureRequest) -> keras.Model:
    return rnn_language_model(20, request.param, 4, 6, num_layers=2)


IDS = np.random.default_rng(0).integers(0, 20, (2, 9)).astype(np.int32)


def test_chunks_with_their_states_are_one_long_sequence(model: keras.Model) -> None:
    expected = ops.convert_to_numpy(model(IDS))
    stepper = with_explicit_states(model)
    states: Any = initial_states(stepper, 2)
    parts = []
    for chunk in np.split(IDS, [4, 5], axis=1):
        inputs = [ops.convert_to_tensor(array) for array in (chunk, *states)]
        logits, *states = stepper(inputs)
        parts.append(ops.convert_to_numpy(logits))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-6)
    assert [w.path for w in stepper.weights] == [w.path for w in model.weights]


def test_a_stateful_model_goes_on(model: keras.Model) -> None:
    cell = model.get_layer("rnn1").kind
    stateful = rnn_language_model(20, cell, 4, 6, num_layers=2, stateful=True, batch_size=2)
    expected = ops.convert_to_numpy(model(IDS))
    for _ in range(2):
        parts = [ops.convert_to_numpy(stateful(chunk)) for chunk in np.split(IDS, [4], axis=1)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-6)
        for name in ("rnn1", "rnn2"):
            stateful.get_layer(name).reset_state()


def test_it_generates_what_it_holds_likeliest(model: keras.Model) -> None:
    found = generate(model, IDS, 4, temperature=0.0)
    ids = IDS
    for _ in range(4):
        last = ops.convert_to_numpy(model(ids))[:, -1]
        ids = np.concatenate([ids, last.argmax(-1)[:, None].astype(np.int32)], axis=1)
    np.testing.assert_array_equal(found, ids[:, 9:])
    drawn = generate(model, IDS, 4, seed=1)
    np.testing.assert_array_equal(drawn, generate(model, IDS, 4, seed=1))
    assert (np.array(drawn) != generate(model, IDS, 4, seed=2)).any()


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.0625, 0.1875, 0.25]))
    uniform = (np.arange(10_000) + 0.5) / 10_000
    many = np.broadcast_to(logits, (10_000, 4))

    def shares(**options: Any) -> list[float]:
        found = sample_tokens(many, uniform, **options)
        return list(np.bincount(found, minlength=4) / 10_000)

    assert shares() == [0.5, 0.0625, 0.1875, 0.25]
    assert shares(top_k=2) == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-4)
    assert shares(top_p=0.75) == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-4)
    assert shares(top_p=0.76) == pytest.approx([0.5 / 0.9375, 0, 0.2, 0.25 / 0.9375], abs=1e-4)
    assert shares(temperature=0.5)[0] == pytest.approx(0.25 / 0.3515625, abs=1e-4)
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert sample_tokens(logits[None], np.array([1 - 2.0**-24])).item() == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prompts": []}, "at least one sequence. Received: none"),
        ({"prompts": np.zeros((1, 0), int)}, "sequence of integers, at least one. Received: shape"),
        ({"prompts": np.array([[1, 20]])}, r"ids in \[0, 20\), the model's vocabulary.*id 20"),
        ({"prompts": [[1], [-1, 2]]}, "Received: id -1 at index 1"),
        ({"prompts": [[1], [1, 2]]}, r"must be equally long.*Received: \[1, 2\] tokens"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number"),
        ({"top_p": 1.5}, r"`top_p` must lie in \(0, 1\]. Received: top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_generation_refuses(arguments: dict, text: str) -> None:
    model = rnn_language_model(20, "gru", 4, 6)
    with pytest.raises(ValueError, match=text):
        generate(model, **{"prompts": IDS, "max_new_tokens": 3, **arguments})


@pytest.mark.parametrize("wrong", [20, -1])
def test_ids_outside_the_vocabulary(wrong: int) -> None:
    """Never NaN, never another row; in compiled code, too."""
    model = rnn_language_model(20, "gru", 4, 6)
    ids = np.array([[3, wrong]], np.int32)
    text = (
        rf"Ids must lie in \[0, 20\), the vocabulary of the layer embedding. Received: id.*{wrong}"
    )
    with pytest.raises(ValueError, match=text):
        model(ids)
    forward = backends.backend.inference_function(model, lambda ids: model(ids))
    with pytest.raises(Exception, match=r"Ids must lie in \[0, 20\).*Received: id") as error:
        ops.convert_to_numpy(forward(ids))
    assert str(wrong) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cell": "transformer"}, "must be one of simple_rnn, lstm, gru. Received: cell=transf"),
        ({"vocabulary_size": 0}, "vocabulary_size=0"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"stateful": True}, "`batch_size` must be given for a stateful model"),
    ],
)
def test_wrong_arguments_of_the_language_model(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rnn_language_model(**arguments)


def test_the_equations_of_the_docstring_are_the_gates() -> None:
    """One step of each by hand."""
    generator = np.random.default_rng(0)
    h, c = generator.normal(size=(2, 1, 2))

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    def parts(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        x, h_part = generator.normal(size=(2, count, 1, 2))
        return list(x), list(h_part)

    def step(gates: Any, x: list, h_part: list, *states: np.ndarray) -> list[np.ndarray]:
        inputs = [np.concatenate(x, -1), np.concatenate(h_part, -1), *states]
        return arrays(gates(*(ops.convert_to_tensor(a.astype(np.float32)) for a in inputs)))

    x, u = parts(1)
    np.testing.assert_allclose(
        step(recurrent.simple_rnn_step, x, u, h)[0], np.tanh(x[0] + u[0]), 1e-5
    )
    x, u = parts(4)
    i, f, g, o = (a + b for a, b in zip(x, u))
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    found = step(recurrent.lstm_step, x, u, h, c)
    np.testing.assert_allclose(found[1], expected, 1e-5)
    np.testing.assert_allclose(found[0], sigmoid(o) * np.tanh(expected), 1e-5)
    x, u = parts(3)
    z, r = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    expected = z * h + (1 - z) * np.tanh(x[2] + r * u[2])
    np.testing.assert_allclose(step(recurrent.gru_step, x, u, h)[0], expected, 1e-5)
