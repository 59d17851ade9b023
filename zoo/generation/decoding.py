"""Incremental decoding: one token a step, from cached keys and values or recurrent states.

A recurrent model continues from its states. A transformer continues from the cached keys and values
of the previous tokens; an encoder-decoder also caches those of the encoder's output.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.layers.attention import Attention, Positions
from zoo.layers.transformer_block import TransformerBlock
from zoo.validation import Size, validated

Tensor = Any


@validated
def check_language_model(
    model: keras.Model, argument: Literal["model", "network"] = "model"
) -> None:
    """Checks that tokens can be decoded with a model.

    Args:
        model: Model to check.
        argument: Name of the argument in the error.

    Raises:
        ValueError: Unless the model is a `gpt`, `transformer` or `rnn_language_model`.
    """
    if not (_is_recurrent(model) or _maps_ids_to_logits(model, TransformerBlock)):
        raise ValueError(
            f"`{argument}` must be a gpt, transformer or rnn_language_model. "
            f"Received: {argument}={model.name}"
        )


@validated
def check_recurrent(model: keras.Model, argument: Literal["model", "network"] = "model") -> None:
    """Checks that a model is a recurrent language model.

    Args:
        model: Model to check.
        argument: Name of the argument in the error.

    Raises:
        ValueError: Unless the model is an `rnn_language_model`.
    """
    if not _is_recurrent(model):
        raise ValueError(
            f"`{argument}` must be an rnn_language_model. Received: {argument}={model.name}"
        )


def _is_recurrent(model: keras.Model) -> bool:
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.RNN)]
    return _maps_ids_to_logits(model, keras.layers.RNN) and all(x.return_state for x in layers)


def _maps_ids_to_logits(model: keras.Model, kind: type) -> bool:
    """Whether a model maps ids, (B, T) int, to (B, T, V), with a layer of this kind."""
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    return (
        bool(inputs)
        and all(len(x.shape) == 2 and "int" in x.dtype for x in inputs)
        and [len(x.shape) for x in outputs] == [3]
        and any(isinstance(layer, kind) for layer in model.layers)
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


# ------------------------------------------------------------------ decoders


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


class KVCacheDecoder:
    """Incremental decoder of a transformer, with a cache of keys and values.

    Shorter prompts are padded on the left, so that all prompts end at the same cache index; the
    padding is masked. Lengths are rounded up, so that few shapes are compiled.

    Args:
        model: A `gpt` or a `transformer`.
    """

    @validated
    def __init__(self, model: keras.Model):
        check_language_model(model)
        self._layers = [
            layer
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer | random.Dropout)
            and not layer.name.startswith(("encoder", "source"))
        ]
        self.blocks = [layer for layer in self._layers if isinstance(layer, TransformerBlock)]
        self._tied = not isinstance(self._layers[-1], keras.layers.Dense)
        self._max_length = max_length(model)
        self._compiled_step = backend.decode_function(model, self._step)
        self._encoder = _encoder(model) if is_encoder_decoder(model) else None
        self._encode = backend.inference_function(model, self.encode)
        self._contexts: Any = ()  # mask, keys and values of the sources
        self._caches: Any = ()
        self._padding = np.zeros(0, np.int32)
        self._rows: list[list[int]] = []
        self._index = 0  # cache index of the next token

    def check(self, prompts: Sequence[np.ndarray], sources: Sequence[np.ndarray] | None) -> None:
        """Raises ValueError if a prompt or a source is longer than the context."""
        for argument, sequences in (("prompts", prompts), ("sources", sources or prompts)):
            longest = max(map(len, sequences))
            if longest > self._max_length:
                raise ValueError(
                    f"Each of `{argument}` must have at most `max_length` = {self._max_length} "
                    f"tokens, the model's context. Received: {longest}"
                )

    def prefill(
        self,
        prompts: Sequence[np.ndarray],
        max_new_tokens: int,
        sources: Sequence[np.ndarray] | None = None,
    ) -> Tensor:
        """Processes whole prompts and sources and returns the logits of the next token, (B, V)."""
        if self._encoder is not None and sources is not None:
            width = _round_up(max(map(len, sources)), 16)
            ids = np.full(
                (len(sources), min(width, self._max_length)),
                self._encoder.get_layer("source_mask").padding,
                np.int32,
            )
            for row, source in zip(ids, sources):
                row[: len(source)] = source
            self._contexts = self._encode(ids)
        return self._prefill(prompts, max_new_tokens)

    def _prefill(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> Tensor:
        lengths = np.array([len(prompt) for prompt in prompts])
        width = _round_up(int(lengths.max()), 16)
        capacity = _round_up(min(width + max_new_tokens, self._max_length + 16), 64)
        ids = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(ids, prompts):
            row[width - len(prompt) :] = prompt
        self._rows = [list(prompt) for prompt in prompts]
        self._padding = (width - lengths).astype(np.int32)
        self._index = 0
        specs = (block.cache_spec(len(ids), capacity) for block in self.blocks)
        self._caches = [(backend.create_cache(*s), backend.create_cache(*s)) for s in specs]
        return self._logits(ids)

    def decode(self, ids: np.ndarray) -> Tensor:
        """Processes the next token of each row, (B, 1), and returns the logits after it, (B, V)."""
        for row, (token,) in zip(self._rows, ids):
            row.append(token)
        if max(map(len, self._rows)) > self._max_length:
            # The context is full: prefill again with its later half.
            half = max(self._max_length // 2, 1)
            rows = (row[-half:] if len(row) > self._max_length else row for row in self._rows)
            return self._prefill([np.array(row) for row in rows], self._max_length)
        return self._logits(ids)

    def reorder(self, rows: np.ndarray) -> None:
        """Replaces the rows of the batch by the rows with these indices, (B,), except sources."""
        if (rows == np.arange(len(rows))).all():
            return
        self._rows = [list(self._rows[row]) for row in rows]
        self._caches = backend.reorder_caches(self._caches, rows)

    def _logits(self, ids: np.ndarray) -> Tensor:
        arrays = ids, np.array(self._index, np.int32), self._padding, self._contexts
        logits, self._caches = self._compiled_step(arrays, self._caches)
        self._index += ids.shape[1]
        return logits

    def encode(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Padding mask of the sources, (B, 1, 1, S), and each block's keys and values of them."""
        assert self._encoder is not None
        memory, padding_mask = self._encoder(ops.convert_to_tensor(ids), training=False)
        padding_mask = ops.expand_dims(padding_mask, (1, 2))
        return padding_mask, [block.context_cache(memory) for block in self.blocks]

    def _step(self, arrays: Any, caches: Any) -> tuple[Tensor, Any]:
        *arrays, encoded_sources = arrays
        ids, start, padding = (ops.convert_to_tensor(array) for array in arrays)
        tokens = ids, start, padding, encoded_sources
        update_cache = functools.partial(backend.update_cache, start=start)
        return self.apply(tokens, caches, caches[0][0].shape[2], update_cache)

    def apply(
        self, tokens: Any, caches: Any, capacity: Any, update_cache: Callable[[Any, Tensor], Tensor]
    ) -> tuple[Tensor, Any]:
        """Computes the logits after the next tokens, (B, V), and the caches with these tokens.

        Args:
            tokens: Ids of the next tokens, (B, T); cache index of the first; number of cache
                indices of padding before each prompt, (B,); results of `encode`, or ().
            caches: Keys and values of each block, as `update_cache` takes them.
            capacity: Number of cache indices after the update.
            update_cache: As for `TransformerBlock.call_with_cache`.
        """
        ids, start, padding, encoded_sources = tokens
        context_mask, contexts = encoded_sources or (None, [None] * len(self.blocks))
        queries = start + ops.arange(ops.shape(ids)[1], dtype="int32")  # cache indices, (T,)
        positions = ops.maximum(queries[None] - padding[:, None], 0)  # (B, T)
        keys = ops.arange(capacity, dtype="int32")  # cache indices, (capacity,)
        # Neither later tokens nor padding is attended to. A query always attends to itself, because
        # the softmax of a padding position needs one key.
        attention_mask = (keys <= queries[:, None])[None] & (keys >= padding[:, None])[:, None]
        attention_mask = attention_mask | (keys == queries[:, None])[None]
        attention_mask = attention_mask[:, None]  # (B, 1, T, capacity)

        embedding, *layers = self._layers
        x = embedding.embed_unchecked(ids)
        new_caches: list[Any] = []
        for layer in layers:
            if isinstance(layer, Positions):
                x = layer(x, positions)
            elif isinstance(layer, TransformerBlock):
                number = len(new_caches)
                x, cache = layer.call_with_cache(
                    x, caches[number], update_cache, attention_mask, positions,
                    contexts[number], context_mask,
                )  # fmt: skip
                new_caches.append(cache)
                if layer is self.blocks[-1]:
                    x = x[:, -1:]  # only the last token's logits are used
            else:
                x = layer(x)
        if self._tied:
            x = embedding(x, reverse=True)
        return ops.cast(x[:, -1], "float32"), new_caches


@validated
def is_encoder_decoder(model: keras.Model) -> bool:
    """Whether the model is an encoder-decoder, such as a `transformer`."""
    return len(model.inputs) == 2


def _encoder(model: keras.Model) -> keras.Model:
    """Encoder of a `transformer`: (B, S) ids to the output (B, S, hidden_dim) and padding mask."""
    *_, last = (layer for layer in model.layers if layer.name.startswith("encoder"))
    return keras.Model(model.inputs[0], [last.output, model.get_layer("source_mask").output])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@validated
def max_length(model: keras.Model) -> int:
    """Context of a transformer: the maximum sequence length, in tokens."""
    lengths = [
        layer.max_length
        for layer in model._flatten_layers()
        if isinstance(layer, Positions)
        or (isinstance(layer, Attention) and layer.rotary_base is not None)
    ]
    if not lengths:
        raise ValueError(
            f"`model` must have positions: a gpt or transformer. Received: model={model.name}"
        )
    return min(lengths)


@validated
def decoder_for(model: keras.Model) -> Any:
    """Creates a decoder of the model, with state of its own.

    The compiled step is stored on the model, so that all decoders of a model share it.
    """
    check_language_model(model)
    if "_decoder" not in vars(model):
        is_transformer = any(isinstance(layer, TransformerBlock) for layer in model.layers)
        vars(model)["_decoder"] = (KVCacheDecoder if is_transformer else RecurrentDecoder)(model)
    return copy.copy(vars(model)["_decoder"])
