"""Incremental decoding: one token a step, from cached keys and values or recurrent states.

A recurrent model continues from its states. A transformer continues from the cached keys and values
of the previous tokens; an encoder-decoder also caches those of the encoder's output.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.generation.recurrent_decoding import RecurrentDecoder, is_recurrent, maps_ids_to_logits
from zoo.layers.attention import Attention, Positions
from zoo.layers.transformer_block import TransformerBlock
from zoo.validation import validated

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
    has_blocks = any(isinstance(layer, TransformerBlock) for layer in model.layers)
    if not (is_recurrent(model) or (has_blocks and maps_ids_to_logits(model))):
        raise ValueError(
            f"`{argument}` must be a gpt, transformer or rnn_language_model. "
            f"Received: {argument}={model.name}"
        )


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
        self._model = model
        self._max_length = max_length(model)
        self.has_loop = backend.decode_loop is not None
        self._compiled_step = backend.decode_function(model, self._step)
        self._loops: dict[Any, Callable[..., Any]] = {}  # by the function that chooses a token
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

    def decode_many(
        self,
        logits: Tensor,
        choose: Callable[[Tensor, Any], tuple[Tensor, Any]],
        state: Any,
        count: int,
        stop_tokens: Sequence[int],
    ) -> tuple[np.ndarray, Tensor]:
        """Chooses and processes tokens in one compiled loop, if `has_loop` is true.

        The loop ends where the context is full, all rows have had a stop token, or logits are not
        finite.

        Args:
            logits: Logits of the next token, (B, V).
            choose: Function of logits and the state that returns the tokens, (B,) int, and the next
                state. The loop is compiled once for each function and for each set of shapes.
            state: Nested arrays.
            count: Largest number of tokens.
            stop_tokens: Token ids after which a row has ended.

        Returns:
            The chosen tokens, (N, B) int32, N at most `count`, and the logits after them, (B, V).
        """
        assert backend.decode_loop is not None
        count = min(count, self._max_length - max(map(len, self._rows)))
        if count < 1:
            return np.zeros((0, len(self._rows)), np.int32), logits
        if choose not in self._loops:
            self._loops[choose] = backend.decode_loop(self._model, self._step_in_loop, choose)
        number, tokens, logits, self._caches = self._loops[choose](
            logits, self._index, (self._padding, self._contexts), self._caches, count,
            np.array(stop_tokens, np.int32), state,
        )  # fmt: skip
        tokens = ops.convert_to_numpy(tokens)[: int(number)]
        self._index += len(tokens)
        for row, new_tokens in zip(self._rows, tokens.T):
            row.extend(new_tokens)
        return tokens, logits

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

    def _step_in_loop(self, arrays: Any, caches: Any) -> tuple[Tensor, Any]:
        _, start, *_ = arrays
        zero = ops.zeros_like(start)

        def update_cache(cache: Tensor, new: Tensor) -> Tensor:
            return ops.slice_update(cache, (zero, zero, start, zero), new)

        return self.apply(arrays, caches, caches[0][0].shape[2], update_cache)

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
