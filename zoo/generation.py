"""Text from a language model, token by token.

    for ids in stream(model, [[5, 3, 8], [7]], max_new_tokens=100, temperature=0.8):
        ...
    translations = beam_search(model, [[1], [1]], 100, sources=[[5, 3, 8], [7]], stop_tokens=[2])

A model reads a sequence in one piece. Here it reads a token more in one step: a recurrent model
with the states that the tokens before have left, a transformer with their keys and values, and an
encoder-decoder also with those of what its encoder made of the source.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax, softmax

from zoo import random
from zoo.attention import Attention, Positions
from zoo.backends import backend
from zoo.blocks import TransformerBlock
from zoo.layers import Embedding, check_sizes

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

    def begin(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, sources: None = None
    ) -> Tensor:
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

    def reorder(self, rows: np.ndarray) -> None:
        """Goes on with these rows, (B,), in place of those there are."""
        self._states = [ops.take(state, rows, axis=0) for state in self._states]


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
            and not layer.name.startswith(("encoder", "source"))
        ]
        self._blocks = [layer for layer in self._layers if isinstance(layer, TransformerBlock)]
        self._tied = not isinstance(self._layers[-1], keras.layers.Dense)
        self._max_length = max_length(model)
        self._forward = backend.decoder(model, self._step)
        self._encoder = _encoder(model) if reads_sources(model) else None
        self._encode = backend.forward(model, self._contexts)
        self._sources: Any = ()  # what `_encode` made of them
        self._caches: Any = ()
        self._padding = np.zeros(0, np.int32)
        self._rows: list[list[int]] = []
        self._place = 0  # in the caches, of the next token

    def begin(
        self,
        prompts: Sequence[np.ndarray],
        max_new_tokens: int,
        sources: Sequence[np.ndarray] | None = None,
    ) -> Tensor:
        """Logits of the token after each prompt, (B, V)."""
        self._check_lengths("prompts", prompts)
        if self._encoder is not None and sources is not None:
            self._check_lengths("sources", sources)
            width = _rounded_up(max(map(len, sources)), 16)
            ids = np.full(
                (len(sources), min(width, self._max_length)),
                self._encoder.get_layer("source_mask").padding,
                np.int32,
            )
            for row, source in zip(ids, sources):
                row[: len(source)] = source
            self._sources = self._encode(ids)
        return self._begin(prompts, max_new_tokens)

    def _check_lengths(self, argument: str, sequences: Sequence[np.ndarray]) -> None:
        longest = max(map(len, sequences))
        if longest > self._max_length:
            raise ValueError(
                f"Each of `{argument}` must have at most `max_length` = {self._max_length} tokens, "
                f"the model's context. Received: {longest}"
            )

    def _begin(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> Tensor:
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
        self._caches = [(backend.cache(*spec), backend.cache(*spec)) for spec in specs]
        return self._logits(ids)

    def read(self, ids: np.ndarray) -> Tensor:
        """Logits after one token more, (B, 1)."""
        for row, (token,) in zip(self._rows, ids):
            row.append(token)
        if max(map(len, self._rows)) > self._max_length:
            # The context is full: the later half of it is read again, as a beginning.
            half = max(self._max_length // 2, 1)
            return self._begin([np.array(row[-half:]) for row in self._rows], self._max_length)
        return self._logits(ids)

    def reorder(self, rows: np.ndarray) -> None:
        """Goes on with these rows, (B,), in place of those there are; sources stay."""
        self._rows = [list(self._rows[row]) for row in rows]
        self._caches = backend.reorder(self._caches, rows)

    def _logits(self, ids: np.ndarray) -> Tensor:
        arrays = ids, np.array(self._place, np.int32), self._padding, self._sources
        logits, self._caches = self._forward(arrays, self._caches)
        self._place += ids.shape[1]
        return logits

    def _contexts(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Which tokens of the sources count, (B, 1, 1, S), and each block's keys and values."""
        assert self._encoder is not None
        memory, counts = self._encoder(ops.convert_to_tensor(ids), training=False)
        return counts[:, None, None], [block.context_cache(memory) for block in self._blocks]

    def _step(self, arrays: Any, caches: Any) -> tuple[Tensor, Any]:
        *arrays, sources = arrays
        context_visible, contexts = sources or (None, [None] * len(self._blocks))
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
                number = len(kept)
                x, cache = layer.step(
                    x, caches[number], write, visible, positions, contexts[number], context_visible
                )
                kept.append(cache)
                if layer is self._blocks[-1]:
                    x = x[:, -1:]  # the others' logits are of no use
            else:
                x = layer(x)
        if self._tied:
            x = embedding(x, reverse=True)
        return ops.cast(x[:, -1], "float32"), kept


def reads_sources(model: keras.Model) -> bool:
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
    sources: Sequence[Any] | None = None,
) -> Iterator[np.ndarray]:
    """Continues prompts and gives the tokens as they come.

    Args:
        model: a `gpt`, a `transformer` or an `rnn_language_model`.
        prompts: token ids of each, at least one; an `rnn_language_model` wants them equally long.
        max_new_tokens: how many are to come. A transformer whose context is full goes on from the
            later half of it.
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
    checked, checked_sources = _checked(model, prompts, sources)
    check_sizes(max_new_tokens=max_new_tokens, top_k=1 if top_k is None else top_k)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be 0 or more. Received: temperature={temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1]. Received: top_p={top_p}")
    key = random.key(seed, "generate")

    def drawn() -> Iterator[np.ndarray]:
        running = np.ones(len(checked), bool)
        reader = _reader(model)
        logits = reader.begin(checked, max_new_tokens, checked_sources)
        for number in range(max_new_tokens):
            uniform = random.uniform(random.fold_in(key, number), len(checked))
            ids = choose(ops.convert_to_numpy(logits), uniform, temperature, top_k, top_p)
            yield np.where(running, ids, -1).astype(np.int32)
            running &= ~np.isin(ids, list(stop_tokens))
            if not running.any() or number + 1 == max_new_tokens:
                return
            logits = reader.read(ids[:, None])

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


def _checked(
    model: keras.Model, prompts: Sequence[Any], sources: Sequence[Any] | None
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Both as arrays of ids, or a ValueError."""
    checked = _checked_ids("prompts", prompts, int(model.output.shape[-1]))
    if not reads_sources(model):
        if sources is not None:
            raise ValueError(
                "`sources` are read by an encoder-decoder only. Received: "
                f"{len(sources)} sources for {model.name}"
            )
        return checked, None
    if sources is None or len(sources) != len(checked):
        raise ValueError(
            "`sources` must hold one for each of `prompts`, since the model is an encoder-decoder. "
            f"Received: {len(sources or ())} sources for {len(checked)} prompts"
        )
    (embedding, *_) = (layer for layer in model.layers if isinstance(layer, Embedding))
    return checked, _checked_ids("sources", sources, embedding.input_dim)


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


# ------------------------------------------------------------------ searching


def beam_search(
    model: keras.Model,
    prompts: Sequence[Any],
    max_new_tokens: int,
    num_beams: int = 4,
    length_penalty: float = 0.6,
    stop_tokens: Sequence[int] = (),
    sources: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """The likeliest continuation of each prompt that a search finds which follows several at once.

    At each step the `num_beams` likeliest beginnings stay. The likeliest of all is that with the
    greatest log p / ((5 + length)/6)^length_penalty; the search ends when so many have ended, or
    none that goes on can come to more.

    Args:
        model: as for `stream`.
        prompts: likewise.
        max_new_tokens: likewise.
        num_beams: beginnings that are followed; 1 takes the likeliest token each time.
        length_penalty: 0 or more; 0 prefers short ones, which have lost less probability.
        stop_tokens: as for `stream`.
        sources: likewise.

    Returns:
        For each prompt (N,) int32 without the prompt, N at most `max_new_tokens`.

    Raises:
        ValueError: as `stream`; and for `num_beams` below 1, or `length_penalty` below 0.

    Source: Wu et al., "Google's Neural Machine Translation System", 2016, section 7; Vaswani et
    al., 2017, section 6.1.
    """
    checked, checked_sources = _checked(model, prompts, sources)
    check_sizes(max_new_tokens=max_new_tokens, num_beams=num_beams)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(
            f"`length_penalty` must be 0 or more. Received: length_penalty={length_penalty}"
        )

    def repeated(sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [ids for ids in sequences for _ in range(num_beams)]

    searches = [_Search(num_beams, length_penalty, stop_tokens) for _ in checked]
    reader = _reader(model)
    if checked_sources is not None:
        checked_sources = repeated(checked_sources)
    logits = reader.begin(repeated(checked), max_new_tokens, checked_sources)
    while True:
        scores = log_softmax(ops.convert_to_numpy(logits).astype(np.float64), axis=-1)
        places = [
            search.grow(rows) + num_beams * number
            for number, (search, rows) in enumerate(zip(searches, np.split(scores, len(checked))))
        ]
        if all(search.ended(max_new_tokens) for search in searches):
            return [search.best()[1] for search in searches]
        reader.reorder(np.concatenate(places))
        logits = reader.read(np.concatenate([search.beams[:, -1:] for search in searches]))


class _Search:
    """The beginnings that are followed after one prompt, the likeliest first."""

    def __init__(self, num_beams: int, length_penalty: float, stop_tokens: Sequence[int]):
        self._length_penalty = length_penalty
        self._stop_tokens = list(stop_tokens)
        # All begin alike, so only the first is followed at first.
        self._totals = np.array([0.0] + [-math.inf] * (num_beams - 1))
        self._ended: tuple[float, np.ndarray] = -math.inf, np.zeros(0, np.int32)  # the best
        self._ends = 0
        self.beams = np.zeros((num_beams, 0), np.int32)

    def grow(self, log_probabilities: np.ndarray) -> np.ndarray:
        """Goes on by a token each, (num_beams, V), and says which beam each goes on from."""
        count, vocabulary_size = log_probabilities.shape
        scores = (self._totals[:, None] + log_probabilities).ravel()
        # Each beam ends with each stop token at most once, so as many are left that go on.
        wanted = min(count * (1 + len(self._stop_tokens)), len(scores))
        likeliest = np.argpartition(-scores, wanted - 1)[:wanted]
        likeliest = likeliest[np.lexsort((likeliest, -scores[likeliest]))]
        stops = np.isin(likeliest % vocabulary_size, self._stop_tokens)
        for place in likeliest[:count][stops[:count]]:
            self._ends += 1
            ended = np.append(self.beams[place // vocabulary_size], place % vocabulary_size)
            score = self._normalized(scores[place], len(ended))
            self._ended = max(self._ended, (score, ended), key=lambda pair: pair[0])
        # A vocabulary may be too small for so many beams: the first stands for those that lack.
        kept = np.resize(likeliest[~stops], count)
        parents: np.ndarray = kept // vocabulary_size
        self._totals = scores[kept]
        self._totals[(~stops).sum() :] = -math.inf
        tokens = (kept % vocabulary_size).astype(np.int32)
        self.beams = np.append(self.beams[parents], tokens[:, None], axis=1)
        return parents

    def _normalized(self, total: float, length: int) -> float:
        return float(total / ((5 + length) / 6) ** self._length_penalty)

    def ended(self, max_new_tokens: int) -> bool:
        """Whether enough have, or no beam can come to more."""
        count, length = self.beams.shape
        hope = self._normalized(self._totals[0], max_new_tokens)
        return self._ends >= count or self._ended[0] >= hope or length == max_new_tokens

    def best(self) -> tuple[float, np.ndarray]:
        """The greatest score, and its tokens."""
        going_on = self._normalized(self._totals[0], self.beams.shape[1]), self.beams[0]
        return max(self._ended, going_on, key=lambda pair: pair[0])
