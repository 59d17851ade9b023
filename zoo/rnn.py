"""Recurrent networks: a state that goes from step to step, and gates that decide what it keeps.

Each cell takes an input x of i numbers and a state of u units. W, U and b below hold the weights of
all gates side by side; · is the matrix product, * works element by element, σ is the sigmoid:

    simple_rnn   h = tanh(W·x + U·h + b)                           u(i + u + 1) parameters

    lstm         i, f, o = σ(W·x + U·h + b), g = tanh(...)        4u(i + u + 1)
                 c = f*c + i*g          forget a part, add a part
                 h = o*tanh(c)          show a part

    gru          z, r = σ(W·x + U·h + b)                           3u(i + u + 2)
                 n = tanh(W·x + b + r*(U·h + b'))
                 h = z*h + (1 - z)*n    one gate for both

The plain cell multiplies the gradient by U and the slope of tanh at each step back, so that it dies
away; the gates' sums let it pass (`recipes/long_memory.py`).

Source: the document's sections "Réseaux de Neurones Récurrents" and "Mémoire à Long Terme et Unité
Récurrente Gâtée"; Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Cho et al.,
"Learning Phrase Representations", 2014, with the reset gate behind the product, as in PyTorch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from zoo import random
from zoo.backends import backend
from zoo.layers import Embedding, check_dropout, check_sizes
from zoo.registry import ImageInput, register

Tensor = Any
Cell = Literal["simple_rnn", "lstm", "gru"]

# ------------------------------------------------------------------ one step of each cell
# x is W·x + b and h_part U·h + b', for all gates side by side: (B, units · gates).


def simple_rnn_gates(x: Tensor, h_part: Tensor, h: Tensor) -> tuple[Tensor]:
    return (ops.tanh(x + h_part),)


def lstm_gates(x: Tensor, h_part: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = ops.split(x + h_part, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru_gates(x: Tensor, h_part: Tensor, h: Tensor) -> tuple[Tensor]:
    x_z, x_r, x_n = ops.split(x, 3, axis=-1)
    h_z, h_r, h_n = ops.split(h_part, 3, axis=-1)
    z = ops.sigmoid(x_z + h_z)
    n = ops.tanh(x_n + ops.sigmoid(x_r + h_r) * h_n)
    return (z * h + (1 - z) * n,)


# ------------------------------------------------------------------ layers


class _OverTime(keras.layers.RNN):  # type: ignore[misc]
    """What the three layers share: their loop over time is chosen for each backend.

    Masked steps leave the state as it is and repeat the output before. The weights are Keras' own;
    so is the loop where a cell is not the one above, such as one with another activation.

    Raises:
        ValueError: for dropout inside the cell, which Keras draws from the backend's own generator,
            and for a mask of another shape than the sequences.
    """

    kind: Cell
    gates: Callable[..., tuple[Tensor, ...]]
    cell: Any
    go_backwards: bool

    def __init__(
        self, units: int, *, dropout: float = 0.0, recurrent_dropout: float = 0.0, **kwargs: Any
    ):
        if dropout or recurrent_dropout:
            raise ValueError(
                "`dropout` and `recurrent_dropout` must be 0, since other numbers are drawn for "
                "them on each backend; put a zoo.random.Dropout between layers. Received: "
                f"dropout={dropout}, recurrent_dropout={recurrent_dropout}"
            )
        super().__init__(units, **kwargs)
        # The cell's generator is of no use without dropout, and named after how many there were
        # before it, so that no checkpoint would fit another process' model.
        self.cell._tracker.untrack(self.cell.seed_generator)
        self.cell.seed_generator = None

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        if mask is not None and tuple(mask.shape[1:]) != (sequences.shape[1],):
            raise ValueError(
                "`mask` must have the shape (batch, steps) of the sequences. Received: "
                f"mask.shape={tuple(mask.shape)}, sequences.shape={tuple(sequences.shape)}"
            )
        return super().call(sequences, initial_state, mask, training)

    def inner_loop(
        self, sequences: Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        cell = self.cell
        ordinary = (
            cell.use_bias
            and cell.activation is keras.activations.tanh
            and getattr(cell, "recurrent_activation", None) in (None, keras.activations.sigmoid)
            and getattr(cell, "reset_after", True)
        )
        if not ordinary:
            return super().inner_loop(sequences, initial_state, mask, training)  # type: ignore[no-any-return]
        weights = cell.kernel, cell.recurrent_kernel, cell.bias
        weights = tuple(ops.convert_to_tensor(w, dtype=cell.compute_dtype) for w in weights)
        mask = None if mask is None else ops.cast(mask, "bool")
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
        outputs, states = backend.recurrent(
            self.kind, type(self).gates, sequences, initial_state, weights, mask
        )
        return states[0], outputs, states


@keras.saving.register_keras_serializable("zoo")
class SimpleRNN(_OverTime, keras.layers.SimpleRNN):  # type: ignore[misc]
    """`keras.layers.SimpleRNN`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "simple_rnn"
    gates = simple_rnn_gates


@keras.saving.register_keras_serializable("zoo")
class LSTM(_OverTime, keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "lstm"
    gates = lstm_gates


@keras.saving.register_keras_serializable("zoo")
class GRU(_OverTime, keras.layers.GRU):  # type: ignore[misc]
    """`keras.layers.GRU`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "gru"
    gates = gru_gates


_LAYERS = {"simple_rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}
_GATES_AND_BIASES = {"simple_rnn": (1, 1), "lstm": (4, 1), "gru": (3, 2)}


def _check_cell(cell: str) -> None:
    if cell not in _LAYERS:
        raise ValueError(f"`cell` must be one of {', '.join(_LAYERS)}. Received: cell={cell}")


def _recurrent(
    cell: str,
    units: int,
    seed: int,
    dtype: str | None,
    name: str,
    recurrent_initializer: str = "orthogonal",
    **options: Any,
) -> keras.layers.RNN:
    """The kernel begins uniform in ±1/sqrt(units), as PyTorch's, biases at 0, a forget gate's at 1.

    The open forget gate is Keras' default, too: Jozefowicz et al., "An Empirical Exploration of
    Recurrent Network Architectures", 2015.
    """
    stream = f"{name}/recurrent_kernel"
    uniform = recurrent_initializer == "uniform"
    return _LAYERS[cell](
        units,
        kernel_initializer=random.FanInUniform(seed, f"{name}/kernel", units),
        recurrent_initializer=(
            random.FanInUniform(seed, stream, units) if uniform else random.Orthogonal(seed, stream)
        ),
        dtype=dtype,
        name=name,
        **options,
    )


def _dense(units: int, inputs: int, seed: int, dtype: str | None) -> keras.layers.Dense:
    return keras.layers.Dense(
        units,
        kernel_initializer=random.FanInUniform(seed, "output/kernel"),
        bias_initializer=random.FanInUniform(seed, "output/bias", inputs),
        dtype=dtype,
        name="output",
    )


def _stack_count(cell: str, inputs: int, units: int, num_layers: int, directions: int = 1) -> int:
    gates, biases = _GATES_AND_BIASES[cell]
    return sum(
        directions * gates * units * (width + units + biases)
        for width in (inputs, *[directions * units] * (num_layers - 1))
    )


# ------------------------------------------------------------------ a class for a sequence


def _classifier_count(
    input_shape: Sequence[int | None] = (28, 28),
    num_classes: int = 10,
    cell: Cell = "lstm",
    units: int = 128,
    num_layers: int = 1,
    bidirectional: bool = False,
    **_: object,
) -> int:
    directions = 2 if bidirectional else 1
    stack = _stack_count(cell, input_shape[-1] or 0, units, num_layers, directions)
    return stack + (directions * units + 1) * num_classes


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/mnist.py",
    parameters="a layer u(i+u+1), LSTM 4u(i+u+1), GRU 3u(i+u+2)",
    count=_classifier_count,
    images=ImageInput(28, rows=True),
    examples={cell: {"cell": cell} for cell in _LAYERS},
)
def rnn_classifier(
    input_shape: Sequence[int | None] = (28, 28),
    num_classes: int = 10,
    cell: Cell = "lstm",
    units: int = 128,
    num_layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    padding_value: float | None = None,
    mask: bool = False,
    recurrent_initializer: Literal["orthogonal", "uniform"] = "orthogonal",
    seed: int = 0,
    dtype: str | None = None,
    name: str = "rnn_classifier",
) -> keras.Model:
    """Reads a sequence step by step and classifies it by the state at its end.

    Args:
        input_shape: of one example, (steps, features); steps may be None, for any number.
        num_classes: width of the output.
        cell: "simple_rnn", "lstm" or "gru".
        units: of the state.
        num_layers: recurrent layers, each reading the states of the one before.
        dropout: fraction dropped between the layers and before the output, in [0, 1).
        bidirectional: whether a second stack reads from the end, its states beside the first's.
        padding_value: steps all of whose features are this number are padding and are skipped,
            wherever they are.
        mask: whether a second input, (B, steps) bool, says which steps count.
        recurrent_initializer: "orthogonal" lets each gate's recurrent kernel begin as a rotation,
            which keeps a state's length; "uniform", in ±1/sqrt(units) as in PyTorch, shrinks it.
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from (B, steps, features), or that and a mask, to logits,
        (B, num_classes).

    Raises:
        ValueError: for a size that is not at least 1, an unknown cell (the text lists the three),
            `dropout` outside [0, 1), both `padding_value` and `mask`, and, when it is called, for
            a mask of another shape than the sequences.
    """
    _check_cell(cell)
    if len(input_shape) != 2:
        raise ValueError(
            f"`input_shape` must be (steps, features). Received: input_shape={tuple(input_shape)}"
        )
    steps, features = input_shape
    check_sizes(input_shape=1 if steps is None else steps)
    check_sizes(input_shape=features)
    check_sizes(num_classes=num_classes, units=units, num_layers=num_layers)
    check_dropout(dropout)
    if recurrent_initializer not in ("orthogonal", "uniform"):
        raise ValueError(
            "`recurrent_initializer` must be orthogonal or uniform. "
            f"Received: recurrent_initializer={recurrent_initializer}"
        )
    if mask and padding_value is not None:
        raise ValueError(
            "`padding_value` and `mask` both say which steps count; give one. Received: "
            f"padding_value={padding_value}, mask={mask}"
        )

    sequence = keras.Input((steps, features), name="sequence")
    counts = {"mask": keras.Input((steps,), dtype="bool", name="mask")} if mask else {}
    x = sequence
    if padding_value is not None:
        x = keras.layers.Masking(padding_value, dtype=dtype, name="padding")(x)
    for i in range(1, num_layers + 1):
        options = {"return_sequences": i < num_layers}
        layer = _recurrent(cell, units, seed, dtype, f"rnn{i}", recurrent_initializer, **options)
        if bidirectional:
            back = _recurrent(
                cell, units, seed, dtype, f"rnn{i}_back", recurrent_initializer,
                go_backwards=True, **options,
            )  # fmt: skip
            layer = keras.layers.Bidirectional(
                layer, backward_layer=back, dtype=dtype, name=f"rnn{i}_both"
            )
        x = layer(x, **counts)
        if dropout:
            x = random.Dropout(dropout, seed, dtype=dtype, name=f"dropout{i}")(x)
    width = 2 * units if bidirectional else units
    logits = _dense(num_classes, width, seed, dtype)(x)
    return keras.Model([sequence, *counts.values()] if mask else sequence, logits, name=name)


def open_gates(model: keras.Model, steps: int) -> None:
    """Lets each LSTM and GRU layer begin by keeping its state over so many steps.

    A forget or update gate's bias becomes log(steps): by itself the gate then keeps
    steps/(steps + 1) of the state at a step, and about 1/e over all of them. The plain cell has no
    gate and is left as it is.

    Args:
        model: any whose recurrent layers are its own, such as an `rnn_classifier`.
        steps: how far the memory should reach, at least 1.

    Source: Gers, Schmidhuber and Cummins, "Learning to Forget", 2000; the logarithm from Tallec and
    Ollivier, "Can Recurrent Neural Networks Warp Time?", ICLR 2018, section 3.
    """
    check_sizes(steps=steps)
    for layer in model.layers:
        if isinstance(layer, LSTM | GRU):
            units = layer.cell.units
            bias = ops.convert_to_numpy(layer.cell.bias).copy()
            if isinstance(layer, LSTM):
                bias[units : 2 * units] = math.log(steps)  # i, f, g, o
            else:
                bias[0, :units] = math.log(steps)  # z, r, n
            layer.cell.bias.assign(bias)


# ------------------------------------------------------------------ the next word


def _language_model_count(
    vocabulary_size: int = 5000,
    cell: Cell = "lstm",
    embedding_dim: int = 256,
    units: int = 256,
    num_layers: int = 1,
    **_: object,
) -> int:
    stack = _stack_count(cell, embedding_dim, units, num_layers)
    return vocabulary_size * embedding_dim + stack + (units + 1) * vocabulary_size


def _greedy(model: keras.Model) -> Mapping[str, Any]:
    return {"tokens": generate(model, np.array([[1, 2, 3]]), 12, temperature=0.0)}


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/next_word.py",
    parameters="V·e, a layer as above, (u + 1)·V",
    count=_language_model_count,
    sample=_greedy,
    examples={
        cell: {
            "cell": cell, "vocabulary_size": 64, "embedding_dim": 16, "units": 24,
            "num_layers": 2, "dropout": 0.1,
        }
        for cell in _LAYERS
    },
)  # fmt: skip
def rnn_language_model(
    vocabulary_size: int = 5000,
    cell: Cell = "lstm",
    embedding_dim: int = 256,
    units: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
    stateful: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "rnn_language_model",
) -> keras.Model:
    """Reads tokens one by one and predicts the next after each.

    Args:
        vocabulary_size: how many tokens there are.
        cell: "simple_rnn", "lstm" or "gru".
        embedding_dim: width of a token's vector.
        units: of the state.
        num_layers: recurrent layers, each reading the states of the one before.
        dropout: fraction dropped before each layer and before the output, in [0, 1).
        stateful: whether a call goes on where the one before ended, as Keras' recurrent layers
            do; `layer.reset_state()` begins anew. `stepwise` hands the states over instead.
        batch_size: of every batch; a stateful model needs it.
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from token ids, (B, T) int, to logits, (B, T, vocabulary_size). An id
        outside the vocabulary is refused: see `zoo.layers.Embedding`.

    Raises:
        ValueError: for a size that is not at least 1, an unknown cell (the text lists the three),
            `dropout` outside [0, 1), or a stateful model without `batch_size`.
    """
    _check_cell(cell)
    check_sizes(vocabulary_size=vocabulary_size, embedding_dim=embedding_dim, units=units)
    check_sizes(num_layers=num_layers, batch_size=1 if batch_size is None else batch_size)
    check_dropout(dropout)
    if stateful and batch_size is None:
        raise ValueError(
            "`batch_size` must be given for a stateful model, which keeps a state for each "
            "sequence. Received: stateful=True, batch_size=None"
        )

    def drop(x: Tensor, layer: str) -> Tensor:
        return random.Dropout(dropout, seed, dtype=dtype, name=layer)(x) if dropout else x

    ids = keras.Input((None,), batch_size, dtype="int32", name="ids")
    x = Embedding(
        vocabulary_size,
        embedding_dim,
        embeddings_initializer=random.FanInUniform(seed, "embedding", embedding_dim),
        dtype=dtype,
        name="embedding",
    )(ids)
    for i in range(1, num_layers + 1):
        layer = _recurrent(
            cell, units, seed, dtype, f"rnn{i}",
            return_sequences=True, return_state=True, stateful=stateful,
        )  # fmt: skip
        x, *_ = layer(drop(x, f"dropout{i}"))
    logits = _dense(vocabulary_size, units, seed, dtype)(drop(x, "dropout"))
    return keras.Model(ids, logits, name=name)


def stepwise(model: keras.Model) -> keras.Model:
    """The same layers as a model that takes and returns the states.

    A long sequence can be read in chunks, each with the states that the one before returned.

    Args:
        model: an `rnn_language_model`.

    Returns:
        A model from [ids (B, T), *states] to [logits (B, T, vocabulary), *states]. A state is
        (B, units); an LSTM layer has two. A sequence begins with zeros: `initial_states`.
    """
    ids = keras.Input((None,), dtype="int32", name="ids")
    x, before, after = ids, [], []
    for layer in model.layers[1:]:
        if isinstance(layer, _OverTime):
            first = [keras.Input((size,), dtype=layer.compute_dtype) for size in layer.state_size]
            x, *last = layer(x, initial_state=first)
            before += first
            after += last
        else:
            x = layer(x)
    return keras.Model([ids, *before], [x, *after], name=f"{model.name}_stepwise")


def initial_states(stepper: keras.Model, batch_size: int) -> list[np.ndarray]:
    """The zeros that a sequence begins with, for each state of a `stepwise` model."""
    return [
        np.zeros((batch_size, state.shape[-1]), np.float32 if "16" in state.dtype else state.dtype)
        for state in stepper.inputs[1:]
    ]


def generate(
    model: keras.Model,
    prompt: np.ndarray,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> np.ndarray:
    """Continues each prompt by so many tokens, a step of the network a token.

    Args:
        model: an `rnn_language_model`.
        prompt: token ids, (B, T) int, at least one each.
        count: of the tokens to come.
        seed: of the draws; the same on every backend.
        temperature: 1 draws from the model's own distribution, less from its likelier tokens, 0
            takes the likeliest.
        top_k: draw from so many of the likeliest tokens only; by default from all.

    Returns:
        (B, count) int32, without the prompt.

    Raises:
        ValueError: for an empty prompt, an id outside the vocabulary, `count` or `top_k` below 1,
            or `temperature` below 0.
    """
    prompt = np.asarray(prompt)
    if prompt.ndim != 2 or not prompt.size or prompt.dtype.kind not in "iu":
        raise ValueError(
            "`prompt` must be integers of shape (batch, tokens), at least one token each. "
            f"Received: shape={prompt.shape}, dtype={prompt.dtype}"
        )
    check_sizes(count=count, top_k=1 if top_k is None else top_k)
    if not temperature >= 0:
        raise ValueError(f"`temperature` must be 0 or more. Received: temperature={temperature}")
    vocabulary_size = int(model.output.shape[-1])
    wrong = prompt[(prompt < 0) | (prompt >= vocabulary_size)]
    if wrong.size:
        raise ValueError(
            f"`prompt` must hold ids in [0, {vocabulary_size}), the model's vocabulary. "
            f"Received: id {wrong[0]}"
        )
    stepper = stepwise(model)

    def step(*arrays: Tensor) -> Any:
        return stepper([ops.convert_to_tensor(array) for array in arrays], training=False)

    forward = backend.forward(stepper, step)
    key = random.key(seed, "generate")
    ids = prompt.astype(np.int32)
    states: Sequence[Any] = initial_states(stepper, len(ids))
    found = []
    for number in range(count):
        logits, *states = forward(ids, *states)
        last = ops.convert_to_numpy(ops.cast(logits[:, -1], "float32"))
        uniform = random.uniform(random.fold_in(key, number), len(last))
        ids = choose(last, uniform, temperature, top_k)[:, None]
        found.append(ids)
    return np.concatenate(found, axis=1)


def choose(
    logits: np.ndarray, uniform: np.ndarray, temperature: float = 1.0, top_k: int | None = None
) -> np.ndarray:
    """Tokens drawn by given uniform numbers: (B, V) and (B,) in [0, 1) to (B,) int32.

    The first token at which the sum of probabilities exceeds the number.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(-1), np.int32)
    logits = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = np.partition(logits, -top_k, axis=-1)[:, -top_k, None]
        logits = np.where(logits < least, -np.inf, logits)
    sums = np.exp(log_softmax(logits, axis=-1)).cumsum(-1)
    return np.asarray((sums <= uniform[:, None] * sums[:, -1:]).sum(-1), np.int32)
