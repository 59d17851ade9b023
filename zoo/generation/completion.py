"""Text completion with a trained language model."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from zoo.datasets.tokenizer import Tokenizer
from zoo.generation import decoding, sampling
from zoo.generation.next_word import next_token, next_words

_TOP_K = 40  # tokens that a text is drawn from


class TextGenerator:
    """Writes on from a prompt, or translates it.

    Made before a long training, it refuses at once what it would refuse at the end.

    Args:
        vocabulary: the model's.
        prompt: what stands before, or is to be translated.
        seed: of the text.
        temperature: of the text, as in `zoo.generation.sampling.stream`; by default 0.8, and 0 of a
            translation.

    Raises:
        ValueError: for an empty prompt, one that `vocabulary` cannot encode, or `temperature` below
            0.
    """

    def __init__(
        self,
        vocabulary: Tokenizer,
        prompt: str,
        seed: int = 0,
        temperature: float | None = None,
    ):
        if temperature is not None and not temperature >= 0:
            raise ValueError(
                f"`temperature` must be 0 or more. Received: temperature={temperature}"
            )
        self.vocabulary = vocabulary
        self.prompt = prompt.rstrip(" ")
        self.ids = vocabulary.encode(self.prompt, "prompt")
        self.seed = seed
        self.temperature = temperature

    def write(self, model: keras.Model, console: Console, count: int = 300) -> None:
        """Prints the prompt and so many tokens after it, or its translation, as they come."""

        def show(text: str) -> None:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

        options: dict[str, Any] = {"seed": self.seed, "top_k": _TOP_K}
        if decoding.is_encoder_decoder(model):
            begin = Tokenizer.BOS
            prompts: list[Any] = [[begin]]
            options |= {"sources": [self.ids], "stop_tokens": [begin]}
            temperature = 0.0
        else:
            show(self.prompt)
            prompts, temperature = [self.ids], 0.8
        if self.temperature is not None:
            temperature = self.temperature
        written: list[int] = []
        shown = ""
        for (token,) in sampling.stream(model, prompts, count, temperature=temperature, **options):
            written.append(token)
            text = self.vocabulary.decode(np.array(written))
            if not text.endswith("\ufffd"):  # a character may be several tokens
                show(text[len(shown) :])
                shown = text
        show("\n")


class NextWordDemo(TextGenerator):
    """What a recurrent model says after a prompt: the five likeliest words, and then a text."""

    def write(self, model: keras.Model, console: Console, count: int = 120) -> None:
        """Asks an `rnn_language_model`, and prints what it says."""
        words = next_words(next_token(model), self.vocabulary, self.prompt)
        likeliest = ", ".join(f"{word} {probability:.1%}" for word, probability in words)
        console.print(f"After {self.prompt!r}: {likeliest}\n", markup=False, highlight=False)
        super().write(model, console, count)


def load_run(folder: Path) -> tuple[keras.Model, Tokenizer]:
    """The model and the vocabulary of a finished run of a language model.

    Raises:
        ValueError: if the directory holds no such run; the text names the file that is missing.
    """
    folder = Path(folder)
    for name in ("metrics.json", "model.json", "model.weights.h5", "vocabulary.json"):
        if not (folder / name).exists():
            raise ValueError(
                "`run_dir` must hold a finished run of recipes/shakespeare.py, "
                "recipes/translate.py or recipes/next_word.py. "
                f"Received: {folder}, which has no {name}"
            )
    model = keras.models.model_from_json((folder / "model.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    return model, Tokenizer.load(folder / "vocabulary.json")
