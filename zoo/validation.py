"""Checks of arguments that several packages share."""

from typing import Any

import keras


def check_activation(name: str) -> str:
    """Returns the name of a Keras activation after checking it.

    Args:
        name: Name of an activation that keeps the width and takes no arguments.

    Raises:
        ValueError: If Keras has no such activation. The text lists all names.
    """
    excluded = ("deserialize", "get", "glu", "serialize", "threshold")
    known = [n for n in dir(keras.activations) if not n.startswith("_") and n not in excluded]
    if name not in known:
        raise ValueError(
            f"`activation` must be one of {', '.join(known)}. Received: activation={name}"
        )
    return name


def check_sizes(**sizes: Any) -> None:
    """Checks that sizes are whole numbers of at least 1.

    Args:
        **sizes: Size of each argument, by the argument's name.

    Raises:
        ValueError: If a size is not a whole number of at least 1. The text names the argument.
    """
    for argument, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"`{argument}` must be a whole number of at least 1. Received: {argument}={size}"
            )


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless a dropout rate lies in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1). Received: dropout={dropout}")
