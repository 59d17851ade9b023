"""Text from a language model, token by token.

    for ids in stream(model, [[5, 3, 8], [7]], max_new_tokens=100, temperature=0.8):
        ...

A model reads a sequence in one piece. Here it reads a token more in one step: a recurrent model
with the states that the tokens before have left, a transformer with their keys and values.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import softmax

from zoo import random
from zoo.attention import Attention, Positions
from zoo.backends import backend
from zoo.blocks import TransformerBlock
from zoo.layers import check_sizes

Tensor = Any


# ------------------------------------------------------------------ states handed on


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


class _Recurrent:
    """Reads on from the states that the tokens before have left."""

    def __init__(self, model: keras.Model):
        self._stepper = stepwise(model)

        def step(*arrays: Tensor) -> Any:
            logits, *states = self._stepper(
                [ops.convert_to_tensor(array) for array in arrays], training=False
            )
            return ops.cast(logits[:, -1], "float32"), *states

        self._forward = backend.forward(self._stepper, step)
        self._states: Sequence[Any] = ()

    def begin(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> Tensor:
        """Logits of the token after each prompt, (B, V)."""
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError(
                "`prompts` of a recurrent model must be equally long, since it reads them side by "
                f"side. Received: {[len(p) for p in prompts]} tokens. Ask for one after the other"
            )
        self._states = initial_states(self._stepper, len(prompts))
        return self.read(np.stack(prompts))

    def read(self, ids: np.ndarray) -> Tensor:
        """Logits after these tokens, (B, T)."""
        logits, *self._states = self._forward(ids, *self._states)
        return logits


class _Cached:
    """Reads on with the keys and values of the tokens before, which are kept.

    Prompts of different lengths end at the same place: shorter ones are padded on the left, and
    what is there is hidden. Lengths are rounded up, so that few shapes are compiled.
    """

    def __init__(self, model: keras.Model):
        self._layers = [
            layer
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer | random.Dropout)
        ]
        self._blocks = [layer for layer in self._layers if isinstance(layer, TransformerBlock)]
        self._tied = not isinstance(self._layers[-1], keras.layers.Dense)
        self._max_length = max_length(model)
        self._forward = backend.decoder(model, self._step)
        self._caches: Any = ()
        self._padding = np.zeros(0, np.int32)
        self._rows: list[list[int]] = []
        self._place = 0  # in the caches, of the next token

    def begin(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> Tensor:
        """Logits of the token after each prompt, (B, V)."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        if longest > self._max_length:
            raise ValueError(
                f"Each of `prompts` must have at most `max_length` = {self._max_length} tokens, "
                f"the model's context. Received: {longest}"
            )
        width = _rounded_up(longest, 16)
        capacity = _rounded_up(min(width + max_new_tokens, self._max_length + 16), 64)
        ids = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(ids, prompts):
            row[width - len(prompt) :] = prompt
        self._rows = [list(prompt) for prompt in prompts]
        self._padding = (width - lengths).astype(np.int32)
        self._place = 0
        specs = (block.cache_spec(len(ids), capacity) for block in self._blocks)
        self._caches = [(backend.cache(*spec), backend.cache(*spec)) for spec in specs]
        return self._logits(ids)

    def read(self, ids: np.ndarray) -> Tensor:
        """Logits after one token more, (B, 1)."""
        for row, (token,) in zip(self._rows, ids):
            row.append(token)
        if max(map(len, self._rows)) > self._max_length:
            # The context is full: the later half of it is read again, as a beginning.
            half = max(self._max_length // 2, 1)
            return self.begin([np.array(row[-half:]) for row in self._rows], self._max_length)
        return self._logits(ids)

    def _logits(self, ids: np.ndarray) -> Tensor:
        arrays = ids, np.array(self._place, np.int32), self._padding
        logits, self._caches = self._forward(arrays, self._caches)
        self._place += ids.shape[1]
        return logits

    def _step(self, arrays: Any, caches: Any) -> tuple[Tensor, Any]:
        ids, start, padding = (ops.convert_to_tensor(array) for array in arrays)
        places = start + ops.arange(ids.shape[1], dtype="int32")  # (T,)
        positions = ops.maximum(places[None] - padding[:, None], 0)  # (B, T)
        keys = ops.arange(caches[0][0].shape[2], dtype="int32")  # (capacity,)
        # Not what is yet to come, and not the padding; which sees itself, so as to see something.
        visible = (keys <= places[:, None])[None] & (keys >= padding[:, None])[:, None]
        visible = visible | (keys == places[:, None])[None]
        visible = visible[:, None]  # (B, 1, T, capacity)

        def write(cache: Tensor, new: Tensor) -> Tensor:
            return backend.write(cache, new, start)

        embedding, *layers = self._layers
        x = embedding.look_up(ids)
        kept: list[Any] = []
        for layer in layers:
            if isinstance(layer, Positions):
                x = layer(x, positions)
            elif isinstance(layer, TransformerBlock):
                x, cache = layer.step(x, caches[len(kept)], write, visible, positions)
                kept.append(cache)
                if layer is self._blocks[-1]:
                    x = x[:, -1:]  # the others' logits are of no use
            else:
                x = layer(x)
        if self._tied:
            x = embedding(x, reverse=True)
        return ops.cast(x[:, -1], "float32"), kept


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


def _reader(model: keras.Model) -> Any:
    """The model's, which has its compiled steps, so that it compiles them once."""
    if "_reader" not in vars(model):
        cached = any(isinstance(layer, TransformerBlock) for layer in model.layers)
        vars(model)["_reader"] = _Cached(model) if cached else _Recurrent(model)
    return vars(model)["_reader"]


# ------------------------------------------------------------------ writing


def stream(
    model: keras.Model,
    prompts: Sequence[Any],
    max_new_tokens: int,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
) -> Iterator[np.ndarray]:
    """Continues prompts and gives the tokens as they come.

    Args:
        model: a `gpt` or an `rnn_language_model`.
        prompts: token ids of each, at least one; an `rnn_language_model` wants them equally long.
        max_new_tokens: how many are to come. A transformer whose context is full goes on from the
            later half of it.
        seed: of the draws; the same on every backend.
        temperature: 1 draws from the model's own distribution, less from its likelier tokens, 0
            takes the likeliest.
        top_k: draw from so many of the likeliest tokens only; by default from all.
        top_p: draw from the likeliest tokens only that together have this probability, in (0, 1].
        stop_tokens: a prompt's continuation ends with one of these.

    Yields:
        (B,) int32, a token of each prompt; -1 for those that have ended. It ends when all have.

    Raises:
        ValueError: for no or an empty prompt, one longer than the context, an id outside the
            vocabulary, `max_new_tokens` or `top_k` below 1, `temperature` below 0, or `top_p`
            outside (0, 1].
    """
    checked = _checked_prompts(prompts, int(model.output.shape[-1]))
    check_sizes(max_new_tokens=max_new_tokens, top_k=1 if top_k is None else top_k)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be 0 or more. Received: temperature={temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1]. Received: top_p={top_p}")
    return _draw(
        _reader(model), checked, max_new_tokens, seed, temperature, top_k, top_p, list(stop_tokens)
    )


def _draw(
    reader: Any,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_tokens: list[int],
) -> Iterator[np.ndarray]:
    key = random.key(seed, "generate")
    running = np.ones(len(prompts), bool)
    logits = reader.begin(prompts, max_new_tokens)
    for number in range(max_new_tokens):
        uniform = random.uniform(random.fold_in(key, number), len(prompts))
        ids = choose(ops.convert_to_numpy(logits), uniform, temperature, top_k, top_p)
        yield np.where(running, ids, -1).astype(np.int32)
        running &= ~np.isin(ids, stop_tokens)
        if not running.any() or number + 1 == max_new_tokens:
            return
        logits = reader.read(ids[:, None])


def generate(
    model: keras.Model, prompts: Sequence[Any], max_new_tokens: int, **options: Any
) -> list[np.ndarray]:
    """Continues each prompt.

    Args:
        model: as for `stream`.
        prompts: likewise.
        max_new_tokens: likewise.
        **options: `seed`, `temperature`, `top_k`, `top_p` and `stop_tokens`, likewise.

    Returns:
        For each prompt (N,) int32 without the prompt, N at most `max_new_tokens`.
    """
    drawn = np.stack(list(stream(model, prompts, max_new_tokens, **options)), axis=1)
    return [row[row >= 0] for row in drawn]


def _checked_prompts(prompts: Sequence[Any], vocabulary_size: int) -> list[np.ndarray]:
    checked = [np.asarray(prompt) for prompt in prompts]
    if not checked:
        raise ValueError("`prompts` must hold at least one prompt. Received: none")
    for number, prompt in enumerate(checked):
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise ValueError(
                "Each of `prompts` must be a sequence of integers, at least one. Received: "
                f"shape={prompt.shape}, dtype={prompt.dtype} at index {number}"
            )
        wrong = prompt[(prompt < 0) | (prompt >= vocabulary_size)]
        if wrong.size:
            raise ValueError(
                f"`prompts` must hold ids in [0, {vocabulary_size}), the model's vocabulary. "
                f"Received: id {wrong[0]} at index {number}"
            )
    return [prompt.astype(np.int32) for prompt in checked]


def choose(
    logits: np.ndarray,
    uniform: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Tokens drawn by given uniform numbers: (B, V) and (B,) in [0, 1) to (B,) int32.

    The first token at which the sum of probabilities exceeds the number. `top_p` keeps the
    likeliest tokens up to the first with which their probabilities sum to as much.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(-1), np.int32)
    logits = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = np.partition(logits, -top_k, axis=-1)[:, -top_k, None]
        logits = np.where(logits < least, -np.inf, logits)
    probabilities = softmax(logits, axis=-1)
    if top_p is not None and top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=-1)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        np.put_along_axis(probabilities, order, ordered, axis=-1)
    sums = probabilities.cumsum(-1)
    return np.asarray((sums <= uniform[:, None] * sums[:, -1:]).sum(-1), np.int32)
