"""Text completion with a trained language model."""

import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from rich.console import Console

from zoo.datasets.tokenizer import VOCABULARY_BYTES, Tokenizer
from zoo.files.weights import open_saved
from zoo.generation import sampling
from zoo.generation.next_word import next_token, next_words
from zoo.validation import NewTokens, NonNegative, Seed, Source, validated

_TOP_K = 40  # tokens that a text is sampled from


class TextGenerator:
    """Text generator that continues a prompt.

    A recipe creates the generator before its training, so that invalid arguments are rejected at
    once and not after hours.

    Args:
        tokenizer: Tokenizer of the model.
        prompt: Text to continue.
        seed: Seed of the sampled text.
        temperature: Sampling temperature, 0 or more; 0 is greedy decoding.

    Raises:
        ValueError: If the prompt is empty or has a character that `tokenizer` cannot encode, or
            `temperature` is below 0.
    """

    @validated
    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        seed: Seed = 0,
        temperature: NonNegative = 0.8,
    ):
        self.tokenizer = tokenizer
        self.prompt = prompt.rstrip(" ")
        self.ids = tokenizer.encode(self.prompt, "prompt")
        self.seed = seed
        self.temperature = temperature

    @validated
    def stream(self, model: keras.Model, max_new_tokens: NewTokens = 300) -> Iterator[str]:
        """Yields the text that follows the prompt, in pieces of whole characters.

        Args:
            model: Trained language model.
            max_new_tokens: Maximum number of generated tokens.
        """
        generated: list[int] = []
        yielded = ""
        for (token,) in sampling.stream(
            model, [self.ids], max_new_tokens, seed=self.seed, temperature=self.temperature,
            top_k=_TOP_K,
        ):  # fmt: skip
            generated.append(token)
            text = self.tokenizer.decode(np.array(generated))
            if not text.endswith("\ufffd"):  # a character may be several tokens
                yield text[len(yielded) :]
                yielded = text

    @validated
    def print_text(
        self, model: keras.Model, console: Console, max_new_tokens: NewTokens = 300
    ) -> None:
        """Prints the prompt and its continuation, token by token.

        Args:
            model: Trained language model.
            console: Console to print on.
            max_new_tokens: Maximum number of generated tokens.
        """
        texts = itertools.chain([self.prompt], self.stream(model, max_new_tokens), ["\n"])
        for text in texts:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


class NextWordDemo(TextGenerator):
    """Text generator for recurrent models that also prints the five most likely next words."""

    @validated
    def print_text(
        self, model: keras.Model, console: Console, max_new_tokens: NewTokens = 120
    ) -> None:
        """Prints the most likely words after the prompt, and then the continued prompt.

        Args:
            model: Trained `rnn_language_model`.
            console: Console to print on.
            max_new_tokens: Maximum number of generated tokens.
        """
        words = next_words(next_token(model), self.tokenizer, self.prompt)
        likeliest = ", ".join(f"{word} {probability:.1%}" for word, probability in words)
        console.print(f"After {self.prompt!r}: {likeliest}\n", markup=False, highlight=False)
        super().print_text(model, console, max_new_tokens)


LANGUAGE_MODELS = ("gpt", "rnn_language_model", "transformer")


@validated
def load_run(
    source: Source, builders: Sequence[str] = LANGUAGE_MODELS
) -> tuple[keras.Model, Tokenizer]:
    """Loads a trained language model and its tokenizer.

    Args:
        source: Directory of a finished run, a weights folder, or the name of weights in the
            package.
        builders: Names of the builders that may have made the model.

    Raises:
        ValueError: If there is no such model, or a file has changed or is damaged; the text names
            the file.
        OSError: If a file cannot be read.
    """
    recipes = ("shakespeare", "translate", "next_word")
    saved = open_saved(source, recipes, ("vocabulary.json",))
    content = saved.read_bytes("vocabulary.json", VOCABULARY_BYTES)
    path = saved.folder / "vocabulary.json"
    tokenizer = Tokenizer.from_json(content, str(path))
    model = saved.load_model(builders=builders)
    outputs = model.outputs[0].shape[-1]
    if len(tokenizer) != outputs:
        raise ValueError(
            f"{path} must have the {outputs} tokens of the model. Received: {len(tokenizer)} "
            "tokens. Train the run again"
        )
    return model, tokenizer
