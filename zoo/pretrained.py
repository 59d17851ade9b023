"""Trained weights by name, in one line; what reads them is imported by the first call only.

zoo.load("mlp-mnist").classify("digit.png")
zoo.mlp(weights="mnist")
"""

from collections.abc import Mapping
from typing import Any

import keras

from zoo import registry
from zoo.validation import Source, validated


@validated
def load(source: Source) -> Any:
    """Loads a trained model with all that its task needs.

    Args:
        source: Name that `list_weights` gives, a weights folder, or the directory of a finished
            run.

    Returns:
        A task of `zoo.tasks` with `model`, the plain Keras model, and `card`, None for a run:
        `ImageClassifier` with `classify`, `TextCompletion` with `generate`, `NextWord` with
        `next_words` and `generate`, `Translator` with `translate`, `ImageSampler` with `sample`; a
        `Task` without a method for any other model.

    Raises:
        ValueError: If there is no such model, the run is not finished, or a file has changed, is
            damaged or does not fit; the text names it.
        OSError: If a file cannot be read.
    """
    from zoo.tasks import load as load_task

    return load_task(source)


def list_weights() -> list[str]:
    """Returns the names of the trained weights in the package, for `load`."""
    from zoo.files import weights

    return weights.packed_names()


def _build(builder: str, source: Any, arguments: Mapping[str, Any]) -> keras.Model:
    from zoo.files import weights

    return weights.build_pretrained(builder, source, arguments)


registry.set_pretrained_builder(_build)
