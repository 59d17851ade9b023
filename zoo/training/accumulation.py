"""What computing a batch in parts, one after another or on several devices, asks of a trainer."""

from typing import Any

import keras

from zoo.random import DrawCounter


def check_accumulation(trainer: keras.Model, parts: int) -> None:
    """Checks that a batch in parts gives the losses of the whole batch.

    Args:
        trainer: The `zoo.Trainer`.
        parts: Number of parts of a batch.

    Raises:
        ValueError: If a layer computes something of all examples of a batch, or keeps a state for
            each of them.
    """
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


def check_distributed(trainer: keras.Model) -> None:
    """Checks that several devices give the losses of one.

    Raises:
        ValueError: If a layer or metric computes something of all examples of a batch, or a layer
            draws random numbers that would be the same on each device.
    """
    for layer in trainer._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise ValueError(
                "Several devices must not train a batch normalization, since each would compute "
                f"the statistics of its own rows. Received: the layer {layer.name}. Use "
                "`GroupNormalization` or `LayerNormalization`, or freeze the layer"
            )
        if _draws_by_keras(layer):
            raise ValueError(
                "A layer must draw random numbers by the place of an example in the whole batch "
                f"where several devices train. Received: {layer.name}, a layer of Keras that draws "
                "the same on each device. Use `zoo.random.Dropout`, or a `zoo.random.DrawCounter` "
                "of your own"
            )
    for metric in trainer.metrics:
        for variable in metric.variables:
            if variable.aggregation != "sum":
                raise ValueError(
                    "The variables of a metric must be sums over the examples where several "
                    f"devices train. Received: {variable.path} of the metric {metric.name} with "
                    f"aggregation={variable.aggregation!r}. Use another metric"
                )


def _draws_by_keras(layer: keras.Layer) -> bool:
    """Whether a layer draws from a generator of Keras in training."""
    if isinstance(layer, DrawCounter) or not layer._seed_generators:
        return False
    # Recurrent layers have a generator even without dropout.
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    rates = [rate for rate in rates if isinstance(rate, float | int)]
    return not rates or any(rates)


def draw_counters(trainer: keras.Model) -> list[Any]:
    """The variables that count the random draws of a trainer's layers."""
    layers = [layer for layer in trainer._flatten_layers() if isinstance(layer, DrawCounter)]
    return [layer.counter.state for layer in layers if hasattr(layer, "counter")]
