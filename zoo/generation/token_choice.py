"""Choice of the next tokens in tensor operations, for a loop that the backend compiles.

The tokens are those of `zoo.generation.sampling.sample_tokens`: the same uniform numbers, and
probabilities in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from zoo import random

Tensor = Any
State = dict[str, Tensor]


@dataclass(frozen=True)
class TokenChoice:
    """How the next token is chosen.

    Attributes:
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_k: Number of most likely tokens to sample from; None means all tokens.
        top_p: Probability that the most likely tokens to sample from must reach together; None
            means all tokens.
        repetition_penalty: Penalty of tokens that the prompt or its continuation has; 1 changes
            nothing.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float

    @property
    def function(self) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """Function of logits, (B, V), and a state that returns tokens, (B,) int32, and a state.

        What it does depends on the state's names alone, so that it is compiled once for each set of
        them.
        """
        return _choose_greedily if self.temperature == 0 else _sample

    def state(self, key: random.Key, index: int, seen: np.ndarray) -> State:
        """State of `function` before a token.

        Args:
            key: Key of the random numbers, (2,) int32.
            index: Number of the next token, whose random numbers are drawn with it.
            seen: Whether the prompt or its continuation has each token, (B, V).
        """
        state: State = {}
        if self.repetition_penalty != 1:
            state |= {"seen": seen, "penalty": np.float64(self.repetition_penalty)}
        if self.temperature == 0:
            return state
        state |= {"key": key, "index": np.int32(index)}
        state["temperature"] = np.float64(self.temperature)
        if self.top_k is not None and self.top_k < seen.shape[-1]:
            state["top_k"] = np.int32(self.top_k)
        if self.top_p is not None and self.top_p < 1:
            state["top_p"] = np.float64(self.top_p)
        return state


def _choose_greedily(logits: Tensor, state: State) -> tuple[Tensor, State]:
    tokens = ops.cast(ops.argmax(_penalized(logits, state), axis=-1), "int32")
    return tokens, _with_seen(tokens, logits.shape[-1], state)


def _sample(logits: Tensor, state: State) -> tuple[Tensor, State]:
    """Inverse transform sampling: the first token whose cumulative probability is above uniform."""
    rows, size = logits.shape
    uniform = random.uniform(random.fold_in(state["key"], state["index"]), rows)
    logits = ops.cast(_penalized(logits, state), "float64")
    logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / state["temperature"]
    if "top_k" in state:
        threshold = ops.take(ops.sort(logits, axis=-1), size - state["top_k"], axis=-1)
        logits = ops.where(logits < threshold[:, None], -np.inf, logits)
    probabilities = ops.softmax(logits, axis=-1)
    if "top_p" in state:
        order = ops.argsort(-probabilities, axis=-1)
        ordered = ops.take_along_axis(probabilities, order, axis=-1)
        is_kept = ops.cumsum(ordered, axis=-1) - ordered < state["top_p"]
        is_kept = ops.take_along_axis(is_kept, ops.argsort(order, axis=-1), axis=-1)
        probabilities = ops.where(is_kept, probabilities, ops.zeros_like(probabilities))
    sums = ops.cumsum(probabilities, axis=-1)
    limits = ops.cast(uniform, "float64")[:, None] * sums[:, -1:]
    tokens = ops.cast(ops.sum(ops.cast(sums <= limits, "int32"), axis=-1), "int32")
    state = _with_seen(tokens, size, state)
    return tokens, {**state, "index": state["index"] + 1}


def _penalized(logits: Tensor, state: State) -> Tensor:
    if "penalty" not in state:
        return logits
    logits, penalty = ops.cast(logits, "float64"), state["penalty"]
    weaker = ops.where(logits < 0, logits * penalty, logits / penalty)
    return ops.where(state["seen"], weaker, logits)


def _with_seen(tokens: Tensor, size: int, state: State) -> State:
    if "seen" not in state:
        return state
    return {**state, "seen": ops.logical_or(state["seen"], ops.one_hot(tokens, size, dtype="bool"))}
