"""Sampling of text from a language model, token by token.

    for ids in stream(model, [[5, 3, 8], [7]], max_new_tokens=100, temperature=0.8):
        ...

Tokens are sampled by inverse transform sampling from uniform numbers that are the same on every
backend: see `sample_tokens`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops
from scipy.special import softmax

from zoo import random
from zoo.generation.decoding import (
    check_language_model,
    decoder_for,
    is_encoder_decoder,
    max_length,
)
from zoo.generation.token_choice import TokenChoice
from zoo.layers.core import Embedding
from zoo.validation import (
    NewTokens,
    NonNegative,
    Nucleus,
    Seed,
    Size,
    TokenIds,
    TokenSequences,
    number,
    validated,
)

Penalty = Annotated[float, number("[0.01, 100]")]

_LOOP_TOKENS = 64  # fewer are not worth the compilation of a loop besides that of a step


@validated
def stream(
    model: keras.Model,
    prompts: TokenSequences,
    max_new_tokens: NewTokens,
    seed: Seed = 0,
    temperature: NonNegative = 1.0,
    top_k: Size | None = None,
    top_p: Nucleus | None = None,
    stop_tokens: TokenIds = (),
    sources: TokenSequences | None = None,
    repetition_penalty: Penalty = 1.0,
) -> Iterator[np.ndarray]:
    """Continues prompts and yields the tokens one by one.

    Args:
        model: A `gpt`, `transformer` or `rnn_language_model`.
        prompts: Token ids of each prompt, at least one; of equal length for an
            `rnn_language_model`.
        max_new_tokens: Maximum number of tokens of each continuation. A `gpt` whose context is full
            continues from the later half of its context. A `transformer` stops where the longest
            prompt has filled its context.
        seed: Seed of the random numbers; the same numbers on every backend.
        temperature: Divisor of the logits. 1 samples from the distribution of the model, a lower
            value prefers likely tokens, and 0 is greedy decoding.
        top_k: Number of most likely tokens to sample from; by default all tokens.
        top_p: Nucleus sampling: probability in (0, 1] that the most likely tokens to sample from
            must reach together; by default all tokens.
        stop_tokens: Token ids that end a continuation.
        sources: Token ids of the source sequence of each prompt, for a `transformer` only.
        repetition_penalty: Divisor of the positive logits, and factor of the negative ones, of
            tokens that the prompt or its continuation has, in [0.01, 100]. 1 changes nothing.

    Yields:
        Next token of each prompt, (B,) int32; -1 for continuations that have ended. The iterator
        stops when all have ended.

    Raises:
        ValueError: If there is no prompt, a prompt is empty or longer than the context, an id is
            outside the vocabulary, `sources` do not fit the model and the prompts,
            `max_new_tokens` or `top_k` is below 1, `temperature` is below 0, `top_p` is outside
            (0, 1], or `repetition_penalty` is outside [0.01, 100].
        FloatingPointError: In the iteration, if the logits of a token are not finite.

    Source: Fan et al., "Hierarchical Neural Story Generation", 2018 (top-k); Holtzman et al., "The
    Curious Case of Neural Text Degeneration", 2020 (top-p); Keskar et al., "CTRL: A Conditional
    Transformer Language Model for Controllable Generation", 2019 (repetition penalty).
    """
    options = TokenChoice(temperature, top_k, top_p, repetition_penalty)
    return _tokens(model, prompts, max_new_tokens, seed, options, stop_tokens, sources)


def _tokens(
    model: keras.Model,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    seed: int,
    options: TokenChoice,
    stop_tokens: Sequence[int],
    sources: Sequence[np.ndarray] | None,
    in_loop: bool = False,
) -> Iterator[np.ndarray]:
    """Iterator of `stream`, which may compute many tokens before it yields the first."""
    decoder, (ids, source_ids), max_new_tokens = prepare_generation(
        model, prompts, sources, max_new_tokens
    )
    key = random.key(seed, "generate")

    def iterate() -> Iterator[np.ndarray]:
        running = np.ones(len(ids), bool)
        seen = np.zeros((len(ids), int(model.output.shape[-1])), bool)
        for row, prompt in zip(seen, ids):
            row[prompt] = True

        def running_tokens(tokens: np.ndarray) -> np.ndarray:
            """The chosen tokens, -1 in rows that had ended before."""
            nonlocal running
            result = np.where(running, tokens, -1).astype(np.int32)
            seen[np.arange(len(ids)), tokens] = True
            running = running & ~np.isin(tokens, list(stop_tokens))
            return result

        logits = decoder.prefill(ids, max_new_tokens, source_ids)
        index = 0
        while True:
            if in_loop and decoder.has_loop and max_new_tokens - index > _LOOP_TOKENS:
                # All but the last token, after which nothing is decoded.
                many, logits = decoder.decode_many(
                    logits, options.function, options.state(key, index, seen),
                    max_new_tokens - 1 - index, stop_tokens,
                )  # fmt: skip
                for tokens in many:
                    yield running_tokens(tokens)
                index += len(many)
                if not running.any():
                    return
            uniform = np.zeros(len(ids))
            if options.temperature:
                uniform = random.uniform(random.fold_in(key, index), len(ids))
            scores = check_logits(ops.convert_to_numpy(logits), index)
            if options.repetition_penalty != 1:
                scores = _penalize_repetition(scores, seen, options.repetition_penalty)
            tokens = sample_tokens(
                scores, uniform, options.temperature, options.top_k, options.top_p
            )
            yield running_tokens(tokens)
            index += 1
            if not running.any() or index == max_new_tokens:
                return
            logits = decoder.decode(tokens[:, None])

    return iterate()


@validated
def generate(
    model: keras.Model,
    prompts: TokenSequences,
    max_new_tokens: NewTokens,
    seed: Seed = 0,
    temperature: NonNegative = 1.0,
    top_k: Size | None = None,
    top_p: Nucleus | None = None,
    stop_tokens: TokenIds = (),
    sources: TokenSequences | None = None,
    repetition_penalty: Penalty = 1.0,
) -> list[np.ndarray]:
    """Continues prompts and returns the whole continuations.

    Args:
        model: A `gpt`, `transformer` or `rnn_language_model`.
        prompts: Token ids of each prompt, at least one; of equal length for an
            `rnn_language_model`.
        max_new_tokens: Maximum number of tokens of each continuation.
        seed: Seed of the random numbers; the same numbers on every backend.
        temperature: Divisor of the logits; 0 is greedy decoding.
        top_k: Number of most likely tokens to sample from; by default all tokens.
        top_p: Probability that the most likely tokens to sample from must reach together; by
            default all tokens.
        stop_tokens: Token ids that end a continuation.
        sources: Token ids of the source sequence of each prompt, for a `transformer` only.
        repetition_penalty: Penalty of tokens that the prompt or its continuation has; 1 changes
            nothing.

    Returns:
        Continuation of each prompt without the prompt, (N,) int32, N at most `max_new_tokens`.

    Raises:
        ValueError: If an argument is invalid, for the reasons that `stream` lists.
    """
    options = TokenChoice(temperature, top_k, top_p, repetition_penalty)
    steps = _tokens(
        model, prompts, max_new_tokens, seed, options, stop_tokens, sources, in_loop=True
    )
    tokens = np.stack(list(steps), axis=1)
    return [row[row >= 0] for row in tokens]


@validated
def prepare_generation(
    model: keras.Model,
    prompts: TokenSequences,
    sources: TokenSequences | None,
    max_new_tokens: NewTokens,
) -> tuple[Any, tuple[list[np.ndarray], list[np.ndarray] | None], int]:
    """Validates the inputs of a generation and creates its decoder.

    Args:
        model: A `gpt`, `transformer` or `rnn_language_model`.
        prompts: Token ids of each prompt.
        sources: Token ids of the source sequence of each prompt, or None.
        max_new_tokens: Requested number of new tokens.

    Returns:
        The decoder, the token ids of prompts and sources, and the number of new tokens that fit the
        context of an encoder-decoder.

    Raises:
        ValueError: If an argument is invalid, for the reasons that `stream` lists.
    """
    check_language_model(model)
    ids = _as_token_ids("prompts", prompts, int(model.output.shape[-1]))
    source_ids = None
    if is_encoder_decoder(model):
        num_sources = 0 if sources is None else len(sources)
        if sources is None or num_sources != len(ids):
            raise ValueError(
                "`sources` must hold one for each of `prompts`, since the model is an "
                f"encoder-decoder. Received: {num_sources} sources for {len(ids)} prompts"
            )
        (embedding, *_) = (layer for layer in model.layers if isinstance(layer, Embedding))
        source_ids = _as_token_ids("sources", sources, embedding.input_dim)
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


def _as_token_ids(argument: str, sequences: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    for index, ids in enumerate(sequences):
        if not ids.size:
            raise ValueError(
                f"Each of `{argument}` must be a sequence of integers, at least one. Received: "
                f"none at index {index}"
            )
        invalid = ids[(ids < 0) | (ids >= size)]
        if invalid.size:
            raise ValueError(
                f"`{argument}` must hold ids in [0, {size}), the model's vocabulary. "
                f"Received: id {invalid[0]} at index {index}"
            )
    return [ids.astype(np.int32) for ids in sequences]


def check_logits(logits: np.ndarray, index: int, rows_per_prompt: int = 1) -> np.ndarray:
    """Returns logits after checking that a token can be chosen from each row.

    Args:
        logits: Logits of the next token, (B, V). A token with -infinity is never chosen.
        index: Number of tokens that have been generated.
        rows_per_prompt: Number of rows that continue the same prompt.

    Raises:
        FloatingPointError: If a row has NaN, infinity or nothing but -infinity.
    """
    is_valid = np.isfinite(logits.max(-1))  # the maximum of a row with NaN is NaN
    if not is_valid.all():
        prompt = int(is_valid.argmin()) // rows_per_prompt
        raise FloatingPointError(
            f"The model's logits are not finite at token {index + 1} after prompt {prompt + 1}. "
            "Its weights may have diverged in training, or are too large for its dtype"
        )
    return logits


def _penalize_repetition(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Divides the positive logits of seen tokens by a penalty and multiplies the negative ones.

    Args:
        logits: Logits of the next token, (B, V).
        seen: Whether the prompt or its continuation has the token, (B, V).
        penalty: Number above 1 for less repetition, below 1 for more.
    """
    logits = logits.astype(np.float64)
    return np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)


def sample_tokens(
    logits: np.ndarray,
    uniform: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Samples one token per row by inverse transform sampling.

    The token is the first one at which the cumulative probability exceeds the uniform number.

    Args:
        logits: Logits of the next token, (B, V).
        uniform: Uniform random numbers in [0, 1), (B,).
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_k: Number of most likely tokens to sample from; by default all tokens.
        top_p: Probability that the most likely tokens to sample from must reach together; the
            token that reaches it is included. By default all tokens.

    Returns:
        Token ids, (B,) int32.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(-1), np.int32)
    # The largest logit becomes 0, so that no temperature is too small: others may become -infinity.
    logits = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = np.partition(logits, -top_k, axis=-1)[:, -top_k, None]
        logits = np.where(logits < threshold, -np.inf, logits)
    probabilities = softmax(logits, axis=-1)
    if top_p is not None and top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=-1)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        np.put_along_axis(probabilities, order, ordered, axis=-1)
    sums = probabilities.cumsum(-1)
    return np.asarray((sums <= uniform[:, None] * sums[:, -1:]).sum(-1), np.int32)
