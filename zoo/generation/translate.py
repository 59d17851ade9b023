"""Translation by beam search."""

import keras

from zoo.datasets.tokenizer import Tokenizer
from zoo.generation.beam_search import beam_search
from zoo.progress import Progress
from zoo.validation import Beams, Size, TextList, validated


@validated
def translate(
    model: keras.Model,
    tokenizer: Tokenizer,
    texts: TextList,
    num_beams: Beams = 4,
    batch_size: Size = 32,
    verbose: bool = False,
) -> list[str]:
    """Translates sentences.

    Args:
        model: A `transformer` trained on the ids of `tokenizer`, where `BOS` begins and ends a
            sentence.
        tokenizer: Tokenizer of both languages.
        texts: Sentences to translate.
        num_beams: Number of beams of the beam search.
        batch_size: Number of sentences translated at once. A translation that does not end is
            truncated to one and a half times the tokens of the longest sentence of its batch,
            plus 10.
        verbose: Whether to print the progress.

    Returns:
        Translations in the order of `texts`; none of no texts.

    Raises:
        ValueError: If a text is empty, too long, or has a character that `tokenizer` cannot
            encode.
    """
    sources = [tokenizer.encode(text) for text in texts]
    translations: dict[int, str] = {}
    batch_size = min(batch_size, max(len(sources), 1))
    # Sentences of similar length form a batch, so that short ones do not wait for a long one.
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    batches = range(0, len(order), batch_size)
    progress = Progress("translation", len(batches), quiet=not verbose)
    for first in batches:
        # The last batch is padded with copies, so that no other shape is compiled.
        batch = [order[min(first + i, len(order) - 1)] for i in range(batch_size)]
        longest = len(sources[batch[-1]])
        outputs = beam_search(
            model, [[Tokenizer.BOS]] * batch_size, longest + longest // 2 + 10, num_beams,
            stop_tokens=[Tokenizer.BOS], sources=[sources[index] for index in batch],
        )  # fmt: skip
        for index, ids in zip(batch, outputs):
            translations[index] = tokenizer.decode(ids).strip()
        progress.advance()
    return [translations[index] for index in range(len(sources))]
