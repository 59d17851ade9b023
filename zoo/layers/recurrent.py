"""Recurrent layers: SimpleRNN, LSTM and GRU, whose gates control how the state is updated.

Each cell takes an input x with i features and a state h with u units. W, U and b below concatenate
the weights of all gates. · is the matrix product, * the elementwise product, σ the sigmoid:

    simple_rnn   h = tanh(W·x + U·h + b)                           u(i + u + 1) parameters

    lstm         i, f, o = σ(W·x + U·h + b), g = tanh(...)        4u(i + u + 1)
                 c = f*c + i*g          forget gate f, input gate i
                 h = o*tanh(c)          output gate o

    gru          z, r = σ(W·x + U·h + b)                           3u(i + u + 2)
                 n = tanh(W·x + b + r*(U·h + b'))
                 h = z*h + (1 - z)*n    update gate z

In a simple RNN, backpropagation multiplies the gradient by U and the derivative of tanh at each
step, and the gradient vanishes. The sums of the gated cells preserve it (`recipes/long_memory.py`).

Source: the document's sections "Réseaux de Neurones Récurrents" and "Mémoire à Long Terme et Unité
Récurrente Gâtée"; Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Cho et al.,
"Learning Phrase Representations", 2014, with the reset gate after the product, as in PyTorch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from zoo import initializers
from zoo.backends import backend
from zoo.validation import Count, DType, Name, Number, Rate, Seed, Size, validated

Tensor = Any
Cell = Literal["simple_rnn", "lstm", "gru"]

# ------------------------------------------------------------------ cell steps
# wx is W·x + b and uh is U·h + b', each (B, gates · units) with the gates concatenated.


def simple_rnn_step(wx: Tensor, uh: Tensor, h: Tensor) -> tuple[Tensor]:
    """Time step of a simple RNN: returns the new h, (B, units)."""
    return (ops.tanh(wx + uh),)


def lstm_step(wx: Tensor, uh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Time step of an LSTM with gates in the order i, f, g, o: returns the new h and c."""
    i, f, g, o = ops.split(wx + uh, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru_step(wx: Tensor, uh: Tensor, h: Tensor) -> tuple[Tensor]:
    """Time step of a GRU with gates in the order z, r, n: returns the new h."""
    wx_z, wx_r, wx_n = ops.split(wx, 3, axis=-1)
    uh_z, uh_r, uh_n = ops.split(uh, 3, axis=-1)
    z = ops.sigmoid(wx_z + uh_z)
    n = ops.tanh(wx_n + ops.sigmoid(wx_r + uh_r) * uh_n)
    return (z * h + (1 - z) * n,)


# ------------------------------------------------------------------ layers


def _fits(mask: Tensor, sequences: Tensor) -> bool:
    """Whether a mask is (B, T); sizes that are symbolic, in an export, are not compared."""
    steps = sequences.shape[1]
    is_known = isinstance(steps, int | None) and all(
        isinstance(n, int | None) for n in mask.shape[1:]
    )
    return tuple(mask.shape[1:]) == (steps,) if is_known else len(mask.shape) == 2


class _FusedRNN(keras.layers.RNN):  # type: ignore[misc]
    """Base class of the three recurrent layers: a time loop chosen for each backend.

    A masked step keeps the state and repeats the previous output. The weights are Keras' own. A
    cell with other equations, such as another activation, runs in Keras' own loop.

    Args:
        units: Width of the state.
        dropout: Must be 0. Keras samples the masks inside a cell with the backend's own generator.
        recurrent_dropout: Must be 0. Keras samples its masks with the backend's own generator.
        **kwargs: Further arguments of Keras' layer.

    Raises:
        ValueError: If `dropout` or `recurrent_dropout` is not 0. When called: if the shape of the
            mask does not fit the sequences.
    """

    kind: Cell
    cell_step: Callable[..., tuple[Tensor, ...]]
    cell: Any
    go_backwards: bool

    @validated
    def __init__(
        self, units: Size, *, dropout: Rate = 0.0, recurrent_dropout: Number = 0.0, **kwargs: Any
    ):
        if dropout or recurrent_dropout:
            raise ValueError(
                "`dropout` and `recurrent_dropout` must be 0, since their masks would differ from "
                "backend to backend. Received: "
                f"dropout={dropout}, recurrent_dropout={recurrent_dropout}. "
                "Put a zoo.random.Dropout between layers"
            )
        super().__init__(units, **kwargs)
        # Without dropout the cell needs no seed generator. The name of the generator contains a
        # counter of the process, so that a checkpoint would not fit a model of another process.
        self.cell._tracker.untrack(self.cell.seed_generator)
        self.cell.seed_generator = None

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        if mask is not None and not _fits(mask, sequences):
            raise ValueError(
                "`mask` must have the shape (batch, steps) of the sequences. Received: "
                f"mask.shape={tuple(mask.shape)}, sequences.shape={tuple(sequences.shape)}"
            )
        return super().call(sequences, initial_state, mask, training)

    def inner_loop(
        self, sequences: Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        cell = self.cell
        has_standard_cell = (
            cell.use_bias
            and cell.activation is keras.activations.tanh
            and getattr(cell, "recurrent_activation", None) in (None, keras.activations.sigmoid)
            and getattr(cell, "reset_after", True)
        )
        if not has_standard_cell:
            return super().inner_loop(sequences, initial_state, mask, training)  # type: ignore[no-any-return]
        weights = cell.kernel, cell.recurrent_kernel, cell.bias
        weights = tuple(ops.convert_to_tensor(w, dtype=cell.compute_dtype) for w in weights)
        mask = None if mask is None else ops.cast(mask, "bool")
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
        outputs, states = backend.recurrent(
            self.kind, type(self).cell_step, sequences, initial_state, weights, mask
        )
        return states[0], outputs, states


@keras.saving.register_keras_serializable("zoo")
class SimpleRNN(_FusedRNN, keras.layers.SimpleRNN):  # type: ignore[misc]
    """Simple RNN, (B, T, features) to (B, units) or (B, T, units): `keras.layers.SimpleRNN`."""

    kind = "simple_rnn"
    cell_step = simple_rnn_step


@keras.saving.register_keras_serializable("zoo")
class LSTM(_FusedRNN, keras.layers.LSTM):  # type: ignore[misc]
    """LSTM, (B, T, features) to (B, units) or (B, T, units): `keras.layers.LSTM`."""

    kind = "lstm"
    cell_step = lstm_step


@keras.saving.register_keras_serializable("zoo")
class GRU(_FusedRNN, keras.layers.GRU):  # type: ignore[misc]
    """GRU, (B, T, features) to (B, units) or (B, T, units): `keras.layers.GRU`."""

    kind = "gru"
    cell_step = gru_step


LAYERS = {"simple_rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}
# Number of gates, and number of bias vectors of each gate.
GATES_AND_BIASES = {"simple_rnn": (1, 1), "lstm": (4, 1), "gru": (3, 2)}


@validated
def recurrent_layer(
    cell: Cell,
    units: Size,
    seed: Seed,
    dtype: DType | None,
    name: Name,
    recurrent_initializer: Literal["orthogonal", "uniform"] = "orthogonal",
    **options: Any,
) -> keras.layers.RNN:
    """Creates a recurrent layer with reproducible initial weights.

    The kernel is uniform in ±1/sqrt(units), as in PyTorch. Biases are 0, except for 1 at the forget
    gate, as in Keras.

    Args:
        cell: "simple_rnn", "lstm" or "gru".
        units: Width of the state.
        seed: Seed of the initial weights.
        dtype: A dtype or dtype policy; None means Keras' global one.
        name: Name of the layer.
        recurrent_initializer: "orthogonal", or "uniform" in ±1/sqrt(units), for the recurrent
            kernel.
        **options: Further arguments of the layer, such as `return_sequences`.

    Returns:
        The layer, not built yet.

    Source: Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures", 2015,
    for the bias of the forget gate.
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


@validated
def chrono_initialize(model: keras.Model, steps: Count) -> None:
    """Sets the gate biases of LSTM and GRU layers for a memory of a given number of steps.

    The bias of each forget or update gate becomes log(steps). With this bias alone, the gate keeps
    steps/(steps + 1) of the state at each step, and about 1/e over all steps. A simple RNN has no
    gates and stays unchanged.

    Args:
        model: Model with recurrent layers at its top level, such as an `rnn_classifier`.
        steps: Number of time steps that the memory should span, at least 1.

    Raises:
        ValueError: If `steps` is not a whole number of at least 1.

    Source: Gers, Schmidhuber and Cummins, "Learning to Forget", 2000; the logarithm from Tallec and
    Ollivier, "Can Recurrent Neural Networks Warp Time?", ICLR 2018, section 3.
    """
    for layer in model.layers:
        if isinstance(layer, LSTM | GRU):
            units = layer.cell.units
            bias = ops.convert_to_numpy(layer.cell.bias).copy()
            if isinstance(layer, LSTM):
                bias[units : 2 * units] = math.log(steps)  # i, f, g, o
            else:
                bias[0, :units] = math.log(steps)  # z, r, n
            layer.cell.bias.assign(bias)
