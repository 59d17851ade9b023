"""Translation with beam search."""

from collections.abc import Sequence

import keras

from zoo.datasets.tokenizer import Tokenizer
from zoo.generation.beam_search import beam_search


def translate(
    model: keras.Model,
    vocabulary: Tokenizer,
    texts: Sequence[str],
    num_beams: int = 4,
    batch_size: int = 32,
) -> list[str]:
    """Translations of sentences.

    Args:
        model: a `transformer` that was trained on `vocabulary`'s ids, where 0 begins and ends.
        vocabulary: of both languages.
        texts: sentences.
        num_beams: of `zoo.generation.beam_search.beam_search`.
        batch_size: sentences that are translated at once. One that does not end is cut at one and a
            half times the length of the longest beside it.

    Raises:
        ValueError: for a text that is empty, too long, or has characters that `vocabulary` lacks.
    """
    sources = [vocabulary.encode(text) for text in texts]
    found: dict[int, str] = {}
    batch_size = min(batch_size, len(sources))
    # Sentences of like length side by side, so that none waits long for another.
    order = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    for first in range(0, len(order), batch_size):
        # The last batch is filled up, so that no other shape is compiled.
        batch = [order[min(first + i, len(order) - 1)] for i in range(batch_size)]
        longest = len(sources[batch[-1]])
        written = beam_search(
            model, [[Tokenizer.BOS]] * batch_size, longest + longest // 2 + 10, num_beams,
            stop_tokens=[Tokenizer.BOS], sources=[sources[place] for place in batch],
        )  # fmt: skip
        found |= {place: vocabulary.decode(ids).strip() for place, ids in zip(batch, written)}
    return [found[place] for place in range(len(sources))]
