"""Attention maps: attention weights, which fused kernels do not return, and their plots."""

import math
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from zoo.layers.attention import collected_attention_maps
from zoo.validation import TextList, array, validated


@validated
def attention_maps(model: keras.Model, inputs: Any) -> dict[str, np.ndarray]:
    """Computes the attention weights of each layer and head in inference mode.

    Args:
        model: Model with `Attention` layers, such as a `gpt` or a `transformer`.
        inputs: Batch of inputs of the model.

    Returns:
        Weights (B, heads, T, S) by the path of the layer, such as "block1/attention". Each row sums
        to 1.
    """
    maps: dict[str, Any] = {}
    token = collected_attention_maps.set(maps)
    try:
        model(inputs, training=False)
    finally:
        collected_attention_maps.reset(token)
    return {path: ops.convert_to_numpy(weights) for path, weights in maps.items()}


@validated
def plot_attention(
    weights: Annotated[np.ndarray, array("f", "(heads, T, S)")], queries: TextList, keys: TextList
) -> Figure:
    """Plots the attention weights of each head as an image.

    Args:
        weights: Attention weights, (heads, T, S).
        queries: Labels of the T query tokens.
        keys: Labels of the S key tokens.

    Raises:
        ValueError: If the number of labels differs from the number of rows or columns.
    """
    heads, rows, columns = weights.shape
    if (rows, columns) != (len(queries), len(keys)):
        raise ValueError(
            "`queries` and `keys` must be as many tokens as `weights` has rows and columns. "
            f"Received: {len(queries)} and {len(keys)}, weights.shape={weights.shape}"
        )
    plot_columns = min(heads, 4)
    plot_rows = math.ceil(heads / plot_columns)
    size = plot_columns * (1.5 + 0.22 * columns), plot_rows * (1.5 + 0.22 * rows)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Attention weights: a row for each query, a column for each key", fontsize=9)
    for head, axes in enumerate(figure.subplots(plot_rows, plot_columns, squeeze=False).flat):
        if head >= heads:
            axes.axis("off")
            continue
        axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(columns), keys, rotation=90, fontsize=7)
        axes.set_yticks(range(rows), queries, fontsize=7)
        axes.set_title(f"head {head + 1}", fontsize=8)
    return figure
