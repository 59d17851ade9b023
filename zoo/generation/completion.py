"""Text completion with a trained language model."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from zoo.datasets.tokenizer import Tokenizer
from zoo.generation import decoding, sampling
from zoo.generation.next_word import next_token, next_words

_TOP_K = 40  # tokens that a text is sampled from


class TextGenerator:
    """Text generator that continues a prompt, or translates it with an encoder-decoder.

    A recipe creates the generator before its training, so that invalid arguments are rejected at
    once and not after hours.

    Args:
        tokenizer: Tokenizer of the model.
        prompt: Text to continue or to translate.
        seed: Seed of the sampled text.
        temperature: Sampling temperature, 0 or more; 0 is greedy decoding. By default 0.8, and 0
            for a translation.

    Raises:
        ValueError: If the prompt is empty or has a character that `tokenizer` cannot encode, or
            `temperature` is below 0.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        seed: int = 0,
        temperature: float | None = None,
    ):
        if temperature is not None and not temperature >= 0:
            raise ValueError(
                f"`temperature` must be 0 or more. Received: temperature={temperature}"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt.rstrip(" ")
        self.ids = tokenizer.encode(self.prompt, "prompt")
        self.seed = seed
        self.temperature = temperature

    def print_text(self, model: keras.Model, console: Console, max_new_tokens: int = 300) -> None:
        """Prints the prompt and its continuation, or its translation, token by token.

        Args:
            model: Trained language model or encoder-decoder.
            console: Console to print on.
            max_new_tokens: Maximum number of generated tokens.
        """

        def show(text: str) -> None:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

        options: dict[str, Any] = {"seed": self.seed, "top_k": _TOP_K}
        if decoding.is_encoder_decoder(model):
            bos = Tokenizer.BOS
            prompts: list[Any] = [[bos]]
            options |= {"sources": [self.ids], "stop_tokens": [bos]}
            temperature = 0.0
        else:
            show(self.prompt)
            prompts, temperature = [self.ids], 0.8
        if self.temperature is not None:
            temperature = self.temperature
        generated: list[int] = []
        printed = ""
        for (token,) in sampling.stream(
            model, prompts, max_new_tokens, temperature=temperature, **options
        ):
            generated.append(token)
            text = self.tokenizer.decode(np.array(generated))
            if not text.endswith("\ufffd"):  # a character may be several tokens
                show(text[len(printed) :])
                printed = text
        show("\n")


class NextWordDemo(TextGenerator):
    """Text generator for recurrent models that also prints the five most likely next words."""

    def print_text(self, model: keras.Model, console: Console, max_new_tokens: int = 120) -> None:
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


def load_run(folder: Path) -> tuple[keras.Model, Tokenizer]:
    """Loads the model and the tokenizer of a finished run of a language model.

    Args:
        folder: Run directory.

    Raises:
        ValueError: If the directory holds no such run; the text names the missing file.
    """
    folder = Path(folder)
    for name in ("metrics.json", "model.json", "model.weights.h5", "vocabulary.json"):
        if not (folder / name).exists():
            raise ValueError(
                "`run_dir` must hold a finished run of `zoo train` with the recipe shakespeare, "
                f"translate or next_word. Received: {folder}, which has no {name}"
            )
    model = keras.models.model_from_json((folder / "model.json").read_text("utf-8"))
    model.load_weights(folder / "model.weights.h5")
    return model, Tokenizer.load(folder / "vocabulary.json")
