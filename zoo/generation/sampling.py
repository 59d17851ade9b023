"""Text from a language model, token by token.

    for ids in stream(model, [[5, 3, 8], [7]], max_new_tokens=100, temperature=0.8):
        ...

What is the same on every backend is the draw: see `choose`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import softmax

from zoo import random
from zoo.generation.decoding import decoder_for, is_encoder_decoder, max_length
from zoo.layers.core import Embedding
from zoo.validation import check_sizes


def stream(
    model: keras.Model,
    prompts: Sequence[Any],
    max_new_tokens: int,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    sources: Sequence[Any] | None = None,
) -> Iterator[np.ndarray]:
    """Continues prompts and gives the tokens as they come.

    Args:
        model: a `gpt`, a `transformer` or an `rnn_language_model`.
        prompts: token ids of each, at least one; an `rnn_language_model` wants them equally long.
        max_new_tokens: how many are to come. A `gpt` whose context is full goes on from the later
            half of it; a `transformer` ends where the longest of its prompts has filled it.
        seed: of the draws; the same on every backend.
        temperature: 1 draws from the model's own distribution, less from its likelier tokens, 0
            takes the likeliest.
        top_k: draw from so many of the likeliest tokens only; by default from all.
        top_p: draw from the likeliest tokens only that together have this probability, in (0, 1].
        stop_tokens: a prompt's continuation ends with one of these.
        sources: token ids of what a `transformer` reads for each prompt.

    Yields:
        (B,) int32, a token of each prompt; -1 for those that have ended. It ends when all have.

    Raises:
        ValueError: for no or an empty prompt, one longer than the context, an id outside the
            vocabulary, other than a source for each prompt of a `transformer`, `max_new_tokens` or
            `top_k` below 1, `temperature` below 0, or `top_p` outside (0, 1].
    """
    decoder, (ids, source_ids), max_new_tokens = prepare_generation(
        model, prompts, sources, max_new_tokens
    )
    check_sizes(top_k=1 if top_k is None else top_k)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be 0 or more. Received: temperature={temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1]. Received: top_p={top_p}")
    key = random.key(seed, "generate")

    def drawn() -> Iterator[np.ndarray]:
        running = np.ones(len(ids), bool)
        logits = decoder.prefill(ids, max_new_tokens, source_ids)
        for number in range(max_new_tokens):
            uniform = np.zeros(len(ids))
            if temperature:
                uniform = random.uniform(random.fold_in(key, number), len(ids))
            chosen = sample_tokens(ops.convert_to_numpy(logits), uniform, temperature, top_k, top_p)
            yield np.where(running, chosen, -1).astype(np.int32)
            running &= ~np.isin(chosen, list(stop_tokens))
            if not running.any() or number + 1 == max_new_tokens:
                return
            logits = decoder.decode(chosen[:, None])

    return drawn()


def generate(
    model: keras.Model, prompts: Sequence[Any], max_new_tokens: int, **options: Any
) -> list[np.ndarray]:
    """Continues each prompt.

    Args:
        model: as for `stream`.
        prompts: likewise.
        max_new_tokens: likewise.
        **options: `seed`, `temperature`, `top_k`, `top_p`, `stop_tokens` and `sources`, likewise.

    Returns:
        For each prompt (N,) int32 without the prompt, N at most `max_new_tokens`.
    """
    drawn = np.stack(list(stream(model, prompts, max_new_tokens, **options)), axis=1)
    return [row[row >= 0] for row in drawn]


def prepare_generation(
    model: keras.Model, prompts: Sequence[Any], sources: Sequence[Any] | None, max_new_tokens: int
) -> tuple[Any, tuple[list[np.ndarray], list[np.ndarray] | None], int]:
    """A reader, what it is to read, and how many tokens may follow; or a ValueError."""
    check_sizes(max_new_tokens=max_new_tokens)
    ids = _checked_ids("prompts", prompts, int(model.output.shape[-1]))
    source_ids = None
    if is_encoder_decoder(model):
        count = 0 if sources is None else len(sources)
        if sources is None or count != len(ids):
            raise ValueError(
                "`sources` must hold one for each of `prompts`, since the model is an "
                f"encoder-decoder. Received: {count} sources for {len(ids)} prompts"
            )
        (embedding, *_) = (layer for layer in model.layers if isinstance(layer, Embedding))
        source_ids = _checked_ids("sources", sources, embedding.input_dim)
    elif sources is not None:
        raise ValueError(
            "`sources` are read by an encoder-decoder only. Received: "
            f"{len(sources)} sources for {model.name}"
        )
    decoder = decoder_for(model)
    decoder.check(ids, source_ids)
    if is_encoder_decoder(model):
        max_new_tokens = min(max_new_tokens, max_length(model) + 1 - max(map(len, ids)))
    return decoder, (ids, source_ids), max_new_tokens


def _checked_ids(argument: str, sequences: Sequence[Any], size: int) -> list[np.ndarray]:
    checked = [np.asarray(sequence) for sequence in sequences]
    if not checked:
        raise ValueError(f"`{argument}` must hold at least one sequence. Received: none")
    for number, ids in enumerate(checked):
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ValueError(
                f"Each of `{argument}` must be a sequence of integers, at least one. Received: "
                f"shape={ids.shape}, dtype={ids.dtype} at index {number}"
            )
        wrong = ids[(ids < 0) | (ids >= size)]
        if wrong.size:
            raise ValueError(
                f"`{argument}` must hold ids in [0, {size}), the model's vocabulary. "
                f"Received: id {wrong[0]} at index {number}"
            )
    return [ids.astype(np.int32) for ids in checked]


def sample_tokens(
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
