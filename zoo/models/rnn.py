"""Recurrent networks: a class for a sequence, and the next word after each.

The cells and their equations are in zoo/layers/recurrent.py. An `rnn_classifier` reads rows of 28
pixels:

    sequence   (B, 28, 28)
    rnn1       (B, 128)          4·128·(28 + 128 + 1) for an LSTM
    output     (B, classes)      (128 + 1)·classes

and an `rnn_language_model` reads tokens of a vocabulary of V and gives, after each, a logit for
every token that may come next:

    ids        (B, T)
    embedding  (B, T, 256)       V·256
    rnn1       (B, T, 256)       4·256·(256 + 256 + 1) for an LSTM
    output     (B, T, V)         (256 + 1)·V

Source: the document's section "Réseaux de Neurones Récurrents".
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras

from zoo import initializers, random
from zoo.layers.core import Embedding
from zoo.layers.recurrent import GATES_AND_BIASES, LAYERS, Cell, check_cell, recurrent_layer
from zoo.registry import ImageInput, register
from zoo.validation import check_dropout, check_sizes

Tensor = Any


def _dense(units: int, inputs: int, seed: int, dtype: str | None) -> keras.layers.Dense:
    return keras.layers.Dense(
        units,
        kernel_initializer=initializers.FanInUniform(seed, "output/kernel"),
        bias_initializer=initializers.FanInUniform(seed, "output/bias", inputs),
        dtype=dtype,
        name="output",
    )


def _stack_parameter_count(
    cell: str, inputs: int, units: int, num_layers: int, directions: int = 1
) -> int:
    gates, biases = GATES_AND_BIASES[cell]
    return sum(
        directions * gates * units * (width + units + biases)
        for width in (inputs, *[directions * units] * (num_layers - 1))
    )


# ------------------------------------------------------------------ a class for a sequence


def classifier_parameter_count(
    input_shape: Sequence[int | None],
    num_classes: int,
    cell: Cell,
    units: int,
    num_layers: int,
    bidirectional: bool,
    **_: object,
) -> int:
    directions = 2 if bidirectional else 1
    stack = _stack_parameter_count(cell, input_shape[-1] or 0, units, num_layers, directions)
    return stack + (directions * units + 1) * num_classes


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/mnist.py",
    parameters="a layer u(i+u+1), LSTM 4u(i+u+1), GRU 3u(i+u+2)",
    count=classifier_parameter_count,
    images=ImageInput(28, rows=True),
    examples={cell: {"cell": cell} for cell in LAYERS},
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
    check_cell(cell)
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
        layer = recurrent_layer(
            cell, units, seed, dtype, f"rnn{i}", recurrent_initializer, **options
        )
        if bidirectional:
            back = recurrent_layer(
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


# ------------------------------------------------------------------ the next word


def language_model_parameter_count(
    vocabulary_size: int,
    cell: Cell,
    embedding_dim: int,
    units: int,
    num_layers: int,
    **_: object,
) -> int:
    stack = _stack_parameter_count(cell, embedding_dim, units, num_layers)
    return vocabulary_size * embedding_dim + stack + (units + 1) * vocabulary_size


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/next_word.py",
    parameters="V·e, a layer as above, (u + 1)·V",
    count=language_model_parameter_count,
    generates="tokens",
    examples={
        cell: {
            "cell": cell, "vocabulary_size": 64, "embedding_dim": 16, "units": 24,
            "num_layers": 2, "dropout": 0.1,
        }
        for cell in LAYERS
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
            do; `layer.reset_state()` begins anew. `zoo.generation.decoding.with_explicit_states` hands the
            states over instead.
        batch_size: of every batch; a stateful model needs it.
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from token ids, (B, T) int, to logits, (B, T, vocabulary_size). An id
        outside the vocabulary is refused: see `zoo.layers.core.Embedding`.

    Raises:
        ValueError: for a size that is not at least 1, an unknown cell (the text lists the three),
            `dropout` outside [0, 1), or a stateful model without `batch_size`.
    """
    check_cell(cell)
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
        embeddings_initializer=initializers.FanInUniform(seed, "embedding", embedding_dim),
        dtype=dtype,
        name="embedding",
    )(ids)
    for i in range(1, num_layers + 1):
        layer = recurrent_layer(
            cell, units, seed, dtype, f"rnn{i}",
            return_sequences=True, return_state=True, stateful=stateful,
        )  # fmt: skip
        x, *_ = layer(drop(x, f"dropout{i}"))
    logits = _dense(vocabulary_size, units, seed, dtype)(drop(x, "dropout"))
    return keras.Model(ids, logits, name=name)
