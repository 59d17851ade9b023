"""What gradient accumulation asks of a trainer."""

from typing import Any

import keras

from zoo.random import DrawCounter
from zoo.training import cluster


def check_accumulation(trainer: keras.Model, parts: int) -> None:
    """Checks that a batch in parts gives the losses of the whole batch.

    Args:
        trainer: The `zoo.Trainer`.
        parts: Number of parts of a batch.

    Raises:
        ValueError: If several devices train, a layer computes something of all examples of a
            batch, or a layer keeps a state for each of them.
    """
    if cluster.current() is not None:
        raise ValueError(
            "`gradient_accumulation` must be 1 where several devices train, each of which computes "
            f"a part of the batch already. Received: gradient_accumulation={parts}. Use more "
            "devices or smaller batches"
        )
    for layer in trainer._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise ValueError(
                "`gradient_accumulation` must be 1 with a batch normalization, whose statistics "
                f"would be those of a part. Received: gradient_accumulation={parts} and the layer "
                f"{layer.name}. Use `GroupNormalization` or `LayerNormalization`, or freeze the "
                "layer"
            )
        if getattr(layer, "stateful", False):
            raise ValueError(
                "`gradient_accumulation` must be 1 with a stateful layer, which keeps a state for "
                f"each row of a batch. Received: gradient_accumulation={parts} and the layer "
                f"{layer.name}"
            )


def draw_counters(trainer: keras.Model) -> list[Any]:
    """The variables that count the random draws of a trainer's layers."""
    layers = [layer for layer in trainer._flatten_layers() if isinstance(layer, DrawCounter)]
    return [layer.counter.state for layer in layers if hasattr(layer, "counter")]
