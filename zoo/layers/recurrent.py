"""Recurrent layers: a state that goes from step to step, and gates that decide what it keeps.

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
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from zoo import initializers
from zoo.backends import backend
from zoo.validation import check_sizes

Tensor = Any
Cell = Literal["simple_rnn", "lstm", "gru"]

# ------------------------------------------------------------------ one step of each cell
# x is W·x + b and h_part U·h + b', for all gates side by side: (B, units · gates).


def simple_rnn_step(x: Tensor, h_part: Tensor, h: Tensor) -> tuple[Tensor]:
    return (ops.tanh(x + h_part),)


def lstm_step(x: Tensor, h_part: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = ops.split(x + h_part, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru_step(x: Tensor, h_part: Tensor, h: Tensor) -> tuple[Tensor]:
    x_z, x_r, x_n = ops.split(x, 3, axis=-1)
    h_z, h_r, h_n = ops.split(h_part, 3, axis=-1)
    z = ops.sigmoid(x_z + h_z)
    n = ops.tanh(x_n + ops.sigmoid(x_r + h_r) * h_n)
    return (z * h + (1 - z) * n,)


# ------------------------------------------------------------------ layers


class _FusedRNN(keras.layers.RNN):  # type: ignore[misc]
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
class SimpleRNN(_FusedRNN, keras.layers.SimpleRNN):  # type: ignore[misc]
    """`keras.layers.SimpleRNN`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "simple_rnn"
    gates = simple_rnn_step


@keras.saving.register_keras_serializable("zoo")
class LSTM(_FusedRNN, keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "lstm"
    gates = lstm_step


@keras.saving.register_keras_serializable("zoo")
class GRU(_FusedRNN, keras.layers.GRU):  # type: ignore[misc]
    """`keras.layers.GRU`: (B, T, features) to (B, units) or (B, T, units)."""

    kind = "gru"
    gates = gru_step


LAYERS = {"simple_rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}
GATES_AND_BIASES = {"simple_rnn": (1, 1), "lstm": (4, 1), "gru": (3, 2)}


def check_cell(cell: str) -> None:
    """Raises ValueError for an unknown cell; the text lists the three."""
    if cell not in LAYERS:
        raise ValueError(f"`cell` must be one of {', '.join(LAYERS)}. Received: cell={cell}")


def recurrent_layer(
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
    return LAYERS[cell](
        units,
        kernel_initializer=initializers.FanInUniform(seed, f"{name}/kernel", units),
        recurrent_initializer=(
            initializers.FanInUniform(seed, stream, units)
            if uniform
            else initializers.Orthogonal(seed, stream)
        ),
        dtype=dtype,
        name=name,
        **options,
    )


def chrono_initialize(model: keras.Model, steps: int) -> None:
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
