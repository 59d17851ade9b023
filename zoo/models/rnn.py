"""Recurrent networks: a sequence classifier and a language model.

The cells and their equations are in zoo/layers/recurrent.py. An `rnn_classifier` of images reads
rows of 28 pixels:

    sequence   (B, 28, 28)
    rnn1       (B, 128)          4·128·(28 + 128 + 1) for an LSTM
    output     (B, classes)      (128 + 1)·classes

An `rnn_language_model` reads tokens of a vocabulary of size V. After each token it predicts the
logits of the next one:

    ids        (B, T)
    embedding  (B, T, 256)       V·256
    rnn1       (B, T, 256)       4·256·(256 + 256 + 1) for an LSTM
    output     (B, T, V)         (256 + 1)·V

Source: the document's section "Réseaux de Neurones Récurrents".
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import keras

from zoo import initializers, random
from zoo.layers.core import Embedding
from zoo.layers.recurrent import GATES_AND_BIASES, LAYERS, Cell, recurrent_layer
from zoo.registry import ImageInput, register
from zoo.validation import (
    DType,
    Layers,
    Name,
    Number,
    Rate,
    Seed,
    Size,
    Source,
    Vocabulary,
    each,
    validated,
    whole,
)

Tensor = Any


def _output_layer(units: int, inputs: int, seed: int, dtype: str | None) -> keras.layers.Dense:
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
    num_gates, num_biases = GATES_AND_BIASES[cell]
    return sum(
        directions * num_gates * units * (width + units + num_biases)
        for width in (inputs, *[directions * units] * (num_layers - 1))
    )


# ------------------------------------------------------------------ sequence classifier


@validated
def classifier_parameter_count(
    input_shape: Annotated[Sequence[int | None], each(whole().or_none(), 2, 2)],
    num_classes: Size,
    cell: Cell,
    units: Size,
    num_layers: Layers,
    bidirectional: bool,
    **_: object,
) -> int:
    """Returns the parameter count of an `rnn_classifier` with these arguments."""
    directions = 2 if bidirectional else 1
    stack = _stack_parameter_count(cell, input_shape[-1] or 0, units, num_layers, directions)
    return stack + (directions * units + 1) * num_classes


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/mnist.py",
    parameter_formula="a layer u(i+u+1), LSTM 4u(i+u+1), GRU 3u(i+u+2)",
    parameter_count=classifier_parameter_count,
    images=ImageInput(28, rows=True),
    examples={cell: {"cell": cell} for cell in LAYERS},
)
def rnn_classifier(
    input_shape: Annotated[Sequence[int | None], each(whole().or_none(), 2, 2)] = (28, 28),
    num_classes: Size = 10,
    cell: Cell = "lstm",
    units: Size = 128,
    num_layers: Layers = 1,
    dropout: Rate = 0.0,
    bidirectional: bool = False,
    padding_value: Number | None = None,
    mask: bool = False,
    recurrent_initializer: Literal["orthogonal", "uniform"] = "orthogonal",
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "rnn_classifier",
    weights: Source | None = None,
) -> keras.Model:
    """Recurrent classifier of sequences by the final hidden state.

    Args:
        input_shape: Shape of one example, (steps, features); steps may be None for any length.
        num_classes: Number of classes, the width of the output.
        cell: Recurrent cell: "simple_rnn", "lstm" or "gru".
        units: Width of the hidden state.
        num_layers: Number of recurrent layers. Each layer reads the outputs of the previous one.
        dropout: Dropout rate between the layers and before the output, in [0, 1).
        bidirectional: Whether each layer also reads the sequence backwards and concatenates the
            outputs of both directions.
        padding_value: Value of padding. A step is skipped, at any place, if all of its features
            have this value. By default no step is skipped.
        mask: Whether the model has a second input, the padding mask (B, steps) bool, which is false
            at padding.
        recurrent_initializer: "orthogonal" or "uniform". An orthogonal recurrent kernel preserves
            the norm of the state. A uniform one, in ±1/sqrt(units) as in PyTorch, reduces the norm.
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from sequences, (B, steps, features), or from [sequences, mask], to
        logits, (B, num_classes). Pixels of an image's rows are normalized: (pixel/255 - mean) /
        std, with the mean and standard deviation of the training pixels in [0, 1] (MNIST: 0.1307
        and 0.3081, so values from -0.42 to 2.82), as
        `zoo.datasets.augmentation.ImageAugmentation` computes them.

    Raises:
        ValueError: If a size is not at least 1, the cell is unknown (the text lists the three),
            `dropout` lies outside [0, 1), or both `padding_value` and `mask` are given. When
            called: if the shape of the mask does not fit the sequences.
    """
    steps, features = input_shape
    if features is None:
        raise ValueError(
            "`input_shape` must be (steps, features), of which only steps may be None. "
            f"Received: input_shape={input_shape}"
        )
    if mask and padding_value is not None:
        raise ValueError(
            "`padding_value` and `mask` both define the padding mask; give one. Received: "
            f"padding_value={padding_value}, mask={mask}"
        )

    sequence = keras.Input((steps, features), name="sequence")
    padding_mask = {"mask": keras.Input((steps,), dtype="bool", name="mask")} if mask else {}
    x = sequence
    if padding_value is not None:
        x = keras.layers.Masking(padding_value, dtype=dtype, name="padding")(x)
    for i in range(1, num_layers + 1):
        options = {"return_sequences": i < num_layers}
        layer = recurrent_layer(
            cell, units, seed, dtype, f"rnn{i}", recurrent_initializer, **options
        )
        if bidirectional:
            backward_layer = recurrent_layer(
                cell, units, seed, dtype, f"rnn{i}_back", recurrent_initializer,
                go_backwards=True, **options,
            )  # fmt: skip
            layer = keras.layers.Bidirectional(
                layer, backward_layer=backward_layer, dtype=dtype, name=f"rnn{i}_both"
            )
        x = layer(x, **padding_mask)
        if dropout:
            x = random.Dropout(dropout, seed, dtype=dtype, name=f"dropout{i}")(x)
    width = 2 * units if bidirectional else units
    logits = _output_layer(num_classes, width, seed, dtype)(x)
    inputs = [sequence, *padding_mask.values()] if mask else sequence
    return keras.Model(inputs, logits, name=name)


# ------------------------------------------------------------------ language model


@validated
def language_model_parameter_count(
    vocabulary_size: Vocabulary,
    cell: Cell,
    embedding_dim: Size,
    units: Size,
    num_layers: Layers,
    **_: object,
) -> int:
    """Returns the parameter count of an `rnn_language_model` with these arguments."""
    stack = _stack_parameter_count(cell, embedding_dim, units, num_layers)
    return vocabulary_size * embedding_dim + stack + (units + 1) * vocabulary_size


@register(
    section="Réseaux de Neurones Récurrents",
    recipe="recipes/next_word.py",
    parameter_formula="V·e + layers + (u + 1)·V; a layer as in rnn_classifier",
    parameter_count=language_model_parameter_count,
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
    vocabulary_size: Vocabulary = 5000,
    cell: Cell = "lstm",
    embedding_dim: Size = 256,
    units: Size = 256,
    num_layers: Layers = 1,
    dropout: Rate = 0.0,
    stateful: bool = False,
    batch_size: Size | None = None,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "rnn_language_model",
    weights: Source | None = None,
) -> keras.Model:
    """Recurrent language model: predicts the next token after each token.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        cell: Recurrent cell: "simple_rnn", "lstm" or "gru".
        embedding_dim: Width of a token's vector.
        units: Width of the hidden state.
        num_layers: Number of recurrent layers. Each layer reads the outputs of the previous one.
        dropout: Dropout rate before each layer and before the output, in [0, 1).
        stateful: Whether each call starts from the final states of the previous call, as in Keras'
            recurrent layers; `layer.reset_state()` resets the states. The function
            `zoo.generation.recurrent_decoding.with_explicit_states` makes the states inputs and
            outputs.
        batch_size: Number of sequences in every batch; required for a stateful model.
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from token ids, (B, T) int, to logits, (B, T, vocabulary_size).

    Raises:
        ValueError: If a size is not at least 1, the cell is unknown (the text lists the three),
            `dropout` lies outside [0, 1), or a stateful model has no `batch_size`. When called: if
            an id lies outside the vocabulary (see `zoo.layers.core.Embedding`).
    """
    if stateful and batch_size is None:
        raise ValueError(
            "`batch_size` must be given for a stateful model, which keeps a state for each "
            "sequence. Received: stateful=True, batch_size=None"
        )

    def apply_dropout(x: Tensor, layer: str) -> Tensor:
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
        x, *_ = layer(apply_dropout(x, f"dropout{i}"))
    logits = _output_layer(vocabulary_size, units, seed, dtype)(apply_dropout(x, "dropout"))
    return keras.Model(ids, logits, name=name)
