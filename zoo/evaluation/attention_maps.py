"""Where attention looks: the weights that a fused kernel does not show, and a picture of them."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from zoo.layers.attention import asked_for


def attention_maps(model: keras.Model, inputs: Any) -> dict[str, np.ndarray]:
    """Where each head of each layer looks, in inference mode.

    Args:
        model: with `Attention` layers, such as a `gpt` or a `transformer`.
        inputs: a batch of what it takes.

    Returns:
        By the path of the layer, such as "block1/attention", (B, heads, T, S): each row sums to 1.
    """
    maps: dict[str, Any] = {}
    token = asked_for.set(maps)
    try:
        model(inputs, training=False)
    finally:
        asked_for.reset(token)
    return {path: ops.convert_to_numpy(weights) for path, weights in maps.items()}


def plot_attention(weights: np.ndarray, queries: Sequence[str], keys: Sequence[str]) -> Figure:
    """One picture a head: (heads, T, S) with T and S tokens.

    Raises:
        ValueError: if there are not as many tokens as rows or columns.
    """
    heads, rows, columns = weights.shape
    if (rows, columns) != (len(queries), len(keys)):
        raise ValueError(
            "`queries` and `keys` must be as many tokens as `weights` has rows and columns. "
            f"Received: {len(queries)} and {len(keys)}, weights.shape={weights.shape}"
        )
    across = min(heads, 4)
    down = math.ceil(heads / across)
    figure = Figure(
        figsize=(across * (1.5 + 0.22 * columns), down * (1.5 + 0.22 * rows)), layout="constrained"
    )
    for head, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        if head >= heads:
            axes.axis("off")
            continue
        axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(columns), keys, rotation=90, fontsize=7)
        axes.set_yticks(range(rows), queries, fontsize=7)
        axes.set_title(f"head {head + 1}", fontsize=8)
    return figure
