"""Parameter counts worked out by hand, as the document does it."""

import math

import keras


def arithmetic(layer: keras.layers.Layer) -> str:
    """How a layer's parameter count comes about, such as "(3·3·3 + 1)·32".

    Empty for a layer without weights.
    """
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if len(shapes) == 2 and len(shapes[0]) > 1 and shapes[1] == shapes[0][-1:]:
        *inputs, units = shapes[0]  # each unit has a weight for each input, and a bias
        return f"({_product(inputs)} + 1)·{units}"
    return " + ".join(_product(shape) for shape in shapes)


def _product(shape: tuple[int, ...] | list[int]) -> str:
    return "·".join(str(size) for size in shape) or "1"


def rows(model: keras.Model) -> list[tuple[str, str, str, str, int]]:
    """A row a layer: name, kind, output shape, arithmetic, parameters."""
    result = []
    for layer in model.layers:
        shape = "(" + ", ".join("B" if n is None else str(n) for n in layer.output.shape) + ")"
        count = sum(math.prod(weight.shape) for weight in layer.weights)
        kind = type(layer).__name__
        activation = getattr(layer, "activation", None)
        if activation is not None and activation is not keras.activations.linear:
            kind += f", {activation.__name__}"
        result.append((layer.name, kind, shape, arithmetic(layer), count))
    return result
