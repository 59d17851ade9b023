"""Checks of arguments that several rooms share."""

from typing import Any

import keras


def check_activation(name: str) -> str:
    """The name, if Keras has an activation of it that keeps the width and takes no arguments.

    Raises:
        ValueError: if not; the text lists them all.
    """
    others = ("deserialize", "get", "glu", "serialize", "threshold")
    known = [n for n in dir(keras.activations) if not n.startswith("_") and n not in others]
    if name not in known:
        raise ValueError(
            f"`activation` must be one of {', '.join(known)}. Received: activation={name}"
        )
    return name


def check_sizes(**sizes: Any) -> None:
    """Raises ValueError unless each is a whole number of at least 1."""
    for argument, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"`{argument}` must be a whole number of at least 1. Received: {argument}={size}"
            )


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless it lies in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1). Received: dropout={dropout}")
