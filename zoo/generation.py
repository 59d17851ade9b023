"""Text from a recurrent language model: states that are handed on, tokens that are drawn.

A model reads a sequence in one piece; `stepwise` gives the same layers as a model that takes and
returns the states, so that a token more is one step.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from zoo import random
from zoo.backends import backend
from zoo.layers import check_sizes

Tensor = Any


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
