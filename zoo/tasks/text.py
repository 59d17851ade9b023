"""Text tasks: completion, next words, translation."""

from collections.abc import Iterator

import keras

from zoo.datasets.tokenizer import Tokenizer
from zoo.files.weights import Card
from zoo.generation.completion import TextGenerator
from zoo.generation.next_word import next_token, next_words
from zoo.generation.translate import translate
from zoo.tasks.task import Task
from zoo.validation import Beams, NewTokens, NonNegative, Seed, Size, TextList, validated


class TextTask(Task):
    """Trained model of texts.

    Args:
        model: A `gpt`, an `rnn_language_model` or a `transformer`.
        tokenizer: Tokenizer of the model.
        card: Card of its weights folder; None for a run.
    """

    @validated
    def __init__(self, model: keras.Model, tokenizer: Tokenizer, card: Card | None = None):
        super().__init__(model, card)
        self.tokenizer = tokenizer


class TextCompletion(TextTask):
    """Language model that continues a text."""

    @validated
    def generate(
        self,
        prompt: str,
        max_new_tokens: NewTokens = 300,
        temperature: NonNegative = 0.8,
        seed: Seed = 0,
    ) -> str:
        """Continues a text.

        Args:
            prompt: Beginning of the text.
            max_new_tokens: Maximum number of generated tokens.
            temperature: Sampling temperature: 1 samples from the model's distribution, less favours
                likelier tokens, 0 decodes greedily.
            seed: Seed of the sampled tokens; the same text on every backend.

        Returns:
            The prompt with its continuation.

        Raises:
            ValueError: If the prompt is empty or has a character that the tokenizer cannot encode.
        """
        pieces = self.stream(prompt, max_new_tokens, temperature, seed)
        return prompt.rstrip(" ") + "".join(pieces)

    @validated
    def stream(
        self,
        prompt: str,
        max_new_tokens: NewTokens = 300,
        temperature: NonNegative = 0.8,
        seed: Seed = 0,
    ) -> Iterator[str]:
        """Returns an iterator over the pieces of the continuation that `generate` returns."""
        generator = TextGenerator(self.tokenizer, prompt, seed, temperature)
        return generator.stream(self.model, max_new_tokens)


class NextWord(TextCompletion):
    """Recurrent language model that continues a text, and predicts the next word.

    Args:
        model: An `rnn_language_model`.
        tokenizer: Tokenizer of the model.
        card: Card of its weights folder; None for a run.
    """

    @validated
    def __init__(self, model: keras.Model, tokenizer: Tokenizer, card: Card | None = None):
        super().__init__(model, tokenizer, card)
        self._predict = next_token(model)

    @validated
    def next_words(self, prompt: str, num_words: Size = 5) -> list[tuple[str, float]]:
        """Finds the most likely next words.

        Args:
            prompt: Text before the next word; its last word is complete.
            num_words: Number of words to return.

        Returns:
            (word, probability) pairs in descending order of probability.

        Raises:
            ValueError: If the prompt is empty or has a character that the tokenizer cannot encode.
        """
        return next_words(self._predict, self.tokenizer, prompt, num_words)


class Translator(TextTask):
    """Encoder-decoder that translates sentences."""

    @validated
    def translate(
        self, sentences: TextList, num_beams: Beams = 4, verbose: bool = False
    ) -> list[str]:
        """Translates sentences by beam search.

        Args:
            sentences: Sentences to translate.
            num_beams: Number of beams of the search.
            verbose: Whether to print the progress.

        Raises:
            ValueError: If a sentence is empty, too long, or has a character that the tokenizer
                cannot encode.
        """
        return translate(self.model, self.tokenizer, sentences, num_beams, verbose=verbose)
