"""Reading token by token: a token more in one step, from what the tokens before have left.

A recurrent model reads on from its states; a transformer from the keys and values of the tokens
before, and an encoder-decoder also from those of what its encoder made of the source.
"""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.layers.attention import Attention, Positions
from zoo.layers.transformer_block import TransformerBlock

Tensor = Any

# ------------------------------------------------------------------ states handed on


def with_explicit_states(model: keras.Model) -> keras.Model:
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
        if isinstance(layer, keras.layers.RNN):
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


# ------------------------------------------------------------------ reading token by token


class RecurrentDecoder:
    """Reads on from the states that the tokens before have left."""

    def __init__(self, model: keras.Model):
        self._stepper = with_explicit_states(model)

        def step(*arrays: Tensor) -> Any:
            logits, *states = self._stepper(
                [ops.convert_to_tensor(array) for array in arrays], training=False
            )
            return ops.cast(logits[:, -1], "float32"), *states

        self._forward = backend.inference_function(self._stepper, step)
        self._states: Sequence[Any] = ()

    def check(self, prompts: Sequence[np.ndarray], sources: None) -> None:
        """Raises ValueError for what it cannot read."""
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError(
                "`prompts` of a recurrent model must be equally long, since it reads them side by "
                f"side. Received: {[len(p) for p in prompts]} tokens. Ask for one after the other"
            )

    def prefill(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, sources: None = None
    ) -> Tensor:
        """Logits of the token after each prompt, (B, V)."""
        self._states = initial_states(self._stepper, len(prompts))
        return self.decode(np.stack(prompts))

    def decode(self, ids: np.ndarray) -> Tensor:
        """Logits after these tokens, (B, T)."""
        logits, *self._states = self._forward(ids, *self._states)
        return logits

    def reorder(self, rows: np.ndarray) -> None:
        """Goes on with these rows, (B,), in place of those there are."""
        self._states = [ops.take(state, rows, axis=0) for state in self._states]


class KVCacheDecoder:
    """Reads on with the keys and values of the tokens before, which are kept.

    Prompts of different lengths end at the same place: shorter ones are padded on the left, and
    what is there is hidden. Lengths are rounded up, so that few shapes are compiled.
    """

    def __init__(self, model: keras.Model):
        self._layers = [
            layer
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer | random.Dropout)
            and not layer.name.startswith(("encoder", "source"))
        ]
        self._blocks = [layer for layer in self._layers if isinstance(layer, TransformerBlock)]
        self._tied = not isinstance(self._layers[-1], keras.layers.Dense)
        self._max_length = max_length(model)
        self._forward = backend.decode_function(model, self._step)
        self._encoder = _encoder(model) if is_encoder_decoder(model) else None
        self._encode = backend.inference_function(model, self._contexts)
        self._sources: Any = ()  # what `_encode` made of them
        self._caches: Any = ()
        self._padding = np.zeros(0, np.int32)
        self._rows: list[list[int]] = []
        self._place = 0  # in the caches, of the next token

    def check(self, prompts: Sequence[np.ndarray], sources: Sequence[np.ndarray] | None) -> None:
        """Raises ValueError for what it cannot read."""
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
        """Logits of the token after each prompt, (B, V)."""
        if self._encoder is not None and sources is not None:
            width = _rounded_up(max(map(len, sources)), 16)
            ids = np.full(
                (len(sources), min(width, self._max_length)),
                self._encoder.get_layer("source_mask").padding,
                np.int32,
            )
            for row, source in zip(ids, sources):
                row[: len(source)] = source
            self._sources = self._encode(ids)
        return self._prefill(prompts, max_new_tokens)

    def _prefill(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> Tensor:
        lengths = np.array([len(prompt) for prompt in prompts])
        width = _rounded_up(int(lengths.max()), 16)
        capacity = _rounded_up(min(width + max_new_tokens, self._max_length + 16), 64)
        ids = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(ids, prompts):
            row[width - len(prompt) :] = prompt
        self._rows = [list(prompt) for prompt in prompts]
        self._padding = (width - lengths).astype(np.int32)
        self._place = 0
        specs = (block.cache_spec(len(ids), capacity) for block in self._blocks)
        self._caches = [
            (backend.create_cache(*spec), backend.create_cache(*spec)) for spec in specs
        ]
        return self._logits(ids)

    def decode(self, ids: np.ndarray) -> Tensor:
        """Logits after one token more, (B, 1)."""
        for row, (token,) in zip(self._rows, ids):
            row.append(token)
        if max(map(len, self._rows)) > self._max_length:
            # A context that is full: the later half of it is read again, as a beginning.
            half = max(self._max_length // 2, 1)
            rows = (row[-half:] if len(row) > self._max_length else row for row in self._rows)
            return self._prefill([np.array(row) for row in rows], self._max_length)
        return self._logits(ids)

    def reorder(self, rows: np.ndarray) -> None:
        """Goes on with these rows, (B,), in place of those there are; sources stay."""
        if (rows == np.arange(len(rows))).all():
            return
        self._rows = [list(self._rows[row]) for row in rows]
        self._caches = backend.reorder_caches(self._caches, rows)

    def _logits(self, ids: np.ndarray) -> Tensor:
        arrays = ids, np.array(self._place, np.int32), self._padding, self._sources
        logits, self._caches = self._forward(arrays, self._caches)
        self._place += ids.shape[1]
        return logits

    def _contexts(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Which tokens of the sources count, (B, 1, 1, S), and each block's keys and values."""
        assert self._encoder is not None
        memory, padding_mask = self._encoder(ops.convert_to_tensor(ids), training=False)
        return padding_mask[:, None, None], [block.context_cache(memory) for block in self._blocks]

    def _step(self, arrays: Any, caches: Any) -> tuple[Tensor, Any]:
        *arrays, sources = arrays
        context_mask, contexts = sources or (None, [None] * len(self._blocks))
        ids, start, padding = (ops.convert_to_tensor(array) for array in arrays)
        places = start + ops.arange(ids.shape[1], dtype="int32")  # (T,)
        positions = ops.maximum(places[None] - padding[:, None], 0)  # (B, T)
        keys = ops.arange(caches[0][0].shape[2], dtype="int32")  # (capacity,)
        # Not what is yet to come, and not the padding; which sees itself, so as to see something.
        attention_mask = (keys <= places[:, None])[None] & (keys >= padding[:, None])[:, None]
        attention_mask = attention_mask | (keys == places[:, None])[None]
        attention_mask = attention_mask[:, None]  # (B, 1, T, capacity)

        def write(cache: Tensor, new: Tensor) -> Tensor:
            return backend.update_cache(cache, new, start)

        embedding, *layers = self._layers
        x = embedding.look_up(ids)
        kept: list[Any] = []
        for layer in layers:
            if isinstance(layer, Positions):
                x = layer(x, positions)
            elif isinstance(layer, TransformerBlock):
                number = len(kept)
                x, cache = layer.step(
                    x,
                    caches[number],
                    write,
                    attention_mask,
                    positions,
                    contexts[number],
                    context_mask,
                )
                kept.append(cache)
                if layer is self._blocks[-1]:
                    x = x[:, -1:]  # the others' logits are of no use
            else:
                x = layer(x)
        if self._tied:
            x = embedding(x, reverse=True)
        return ops.cast(x[:, -1], "float32"), kept


def is_encoder_decoder(model: keras.Model) -> bool:
    """Whether it is an encoder-decoder, such as a `transformer`."""
    return len(model.inputs) == 2


def _encoder(model: keras.Model) -> keras.Model:
    """What a `transformer` makes of sources: (B, S) to (B, S, hidden_dim), and which count."""
    *_, last = (layer for layer in model.layers if layer.name.startswith("encoder"))
    return keras.Model(model.inputs[0], [last.output, model.get_layer("source_mask").output])


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def max_length(model: keras.Model) -> int:
    """The longest sequence that a transformer reads."""
    found = [
        layer.max_length
        for layer in model._flatten_layers()
        if isinstance(layer, Positions)
        or (isinstance(layer, Attention) and layer.rotary_base is not None)
    ]
    return min(found)


def decoder_for(model: keras.Model) -> Any:
    """One that reads on by itself; the compiled steps are the model's, which compiles them once."""
    if "_reader" not in vars(model):
        cached = any(isinstance(layer, TransformerBlock) for layer in model.layers)
        vars(model)["_reader"] = KVCacheDecoder(model) if cached else RecurrentDecoder(model)
    return copy.copy(vars(model)["_reader"])
