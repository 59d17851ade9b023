"""Incremental decoding of a recurrent model, which continues from its states."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.backends import backend
from zoo.validation import Size, validated

Tensor = Any


@validated
def check_recurrent(model: keras.Model, argument: Literal["model", "network"] = "model") -> None:
    """Checks that a model is a recurrent language model.

    Args:
        model: Model to check.
        argument: Name of the argument in the error.

    Raises:
        ValueError: Unless the model is an `rnn_language_model`.
    """
    if not is_recurrent(model):
        raise ValueError(
            f"`{argument}` must be an rnn_language_model. Received: {argument}={model.name}"
        )


@validated
def is_recurrent(model: keras.Model) -> bool:
    """Whether a model is a recurrent language model."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.RNN)]
    return bool(layers) and maps_ids_to_logits(model) and all(x.return_state for x in layers)


@validated
def maps_ids_to_logits(model: keras.Model) -> bool:
    """Whether a model maps ids, (B, T) int, to (B, T, V)."""
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    return (
        bool(inputs)
        and all(len(x.shape) == 2 and "int" in x.dtype for x in inputs)
        and [len(x.shape) for x in outputs] == [3]
    )


# ------------------------------------------------------------------ explicit states


@validated
def with_explicit_states(model: keras.Model) -> keras.Model:
    """Builds a model of the same layers that takes and returns the recurrent states.

    A long sequence can be processed in chunks, each with the states that the previous call
    returned.

    Args:
        model: An `rnn_language_model`.

    Returns:
        A model from [ids (B, T), *states] to [logits (B, T, vocabulary), *states]. A state is
        (B, units); an LSTM layer has two. `initial_states` gives the states of a new sequence.
    """
    check_recurrent(model)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x, input_states, output_states = ids, [], []
    for layer in model.layers[1:]:
        if isinstance(layer, keras.layers.RNN):
            initial = [keras.Input((size,), dtype=layer.compute_dtype) for size in layer.state_size]
            x, *final = layer(x, initial_state=initial)
            input_states += initial
            output_states += final
        else:
            x = layer(x)
    return keras.Model(
        [ids, *input_states], [x, *output_states], name=f"{model.name}_with_explicit_states"
    )


@validated
def initial_states(stateful_model: keras.Model, batch_size: Size) -> list[np.ndarray]:
    """Creates the zero states at the beginning of a sequence.

    Args:
        stateful_model: A model returned by `with_explicit_states`.
        batch_size: Number of sequences.

    Returns:
        A (batch_size, units) array for each state; float32 if the model computes in 16 bits.

    Raises:
        ValueError: If the inputs of the model after the first are not states.
    """
    if any(len(state.shape) != 2 or not state.shape[-1] for state in stateful_model.inputs[1:]):
        raise ValueError(
            "`stateful_model` must be a model of `with_explicit_states`. "
            f"Received: stateful_model={stateful_model.name}"
        )
    return [
        np.zeros((batch_size, state.shape[-1]), np.float32 if "16" in state.dtype else state.dtype)
        for state in stateful_model.inputs[1:]
    ]


_CHUNK_LENGTH = 16  # tokens of one step of a recurrent prefill


class RecurrentDecoder:
    """Incremental decoder of a recurrent model, from the states after the previous tokens.

    A prompt is processed in chunks of 16 tokens and then, for the rest, in single tokens. So a
    prompt of any length is processed by the same two compiled steps, in the memory of one chunk.

    Args:
        model: An `rnn_language_model`.
    """

    @validated
    def __init__(self, model: keras.Model):
        self.has_loop = False
        self._model = with_explicit_states(model)

        def step(*arrays: Tensor) -> Any:
            logits, *states = self._model(
                [ops.convert_to_tensor(array) for array in arrays], training=False
            )
            return ops.cast(logits[:, -1], "float32"), *states

        self._compiled_step = backend.inference_function(self._model, step)
        self._states: Sequence[Any] = ()

    def check(self, prompts: Sequence[np.ndarray], sources: None) -> None:
        """Raises ValueError unless all prompts have the same length."""
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError(
                "`prompts` of a recurrent model must be equally long, since they form one batch. "
                f"Received: {[len(p) for p in prompts]} tokens. Pass them one at a time"
            )

    def prefill(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, sources: None = None
    ) -> Tensor:
        """Processes whole prompts and returns the logits of the next token, (B, V)."""
        self._states = initial_states(self._model, len(prompts))
        ids = np.stack(prompts)
        # A library's matrix product may round otherwise for another number of rows: logits of 0.7
        # differ from those of one step over the whole prompt by at most 6e-7.
        length = ids.shape[1]
        first_single = length - length % _CHUNK_LENGTH
        borders = [*range(0, first_single, _CHUNK_LENGTH), *range(first_single, length + 1)]
        for start, stop in itertools.pairwise(borders):
            logits = self.decode(ids[:, start:stop])
        return logits

    def decode(self, ids: np.ndarray) -> Tensor:
        """Processes the next tokens, (B, T), and returns the logits after the last, (B, V)."""
        logits, *self._states = self._compiled_step(ids, *self._states)
        return logits

    def reorder(self, rows: np.ndarray) -> None:
        """Replaces the rows of the batch by the rows with these indices, (B,)."""
        self._states = [ops.take(state, rows, axis=0) for state in self._states]
