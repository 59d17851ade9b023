"""Parameter counts worked out by hand, as the document does it."""

import math

import keras


def parameter_formula(layer: keras.layers.Layer) -> str:
    """How a layer's parameter count comes about, such as "(3·3·3 + 1)·32".

    Empty for a layer without weights.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        return " + ".join(
            parameter_formula(one) for one in (layer.forward_layer, layer.backward_layer)
        )
    if isinstance(layer, keras.layers.SimpleRNN | keras.layers.LSTM | keras.layers.GRU):
        inputs, columns = layer.cell.kernel.shape
        biases = math.prod(layer.cell.bias.shape) // columns if layer.use_bias else 0
        gates = columns // layer.units
        units = f"{layer.units}" if gates == 1 else f"{gates}·{layer.units}"
        return f"{units}·({inputs} + {layer.units} + {biases})"
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if len(shapes) == 2 and len(shapes[0]) > 1 and shapes[1] == shapes[0][-1:]:
        *inputs, units = shapes[0]  # each unit has a weight for each input, and a bias
        return f"({_product(inputs)} + 1)·{units}"
    return " + ".join(_product(shape) for shape in shapes)


def _product(shape: tuple[int, ...] | list[int]) -> str:
    return "·".join(str(size) for size in shape) or "1"


def rows(model: keras.Model) -> list[tuple[str, str, str, str, int]]:
    """A row a layer: name, kind, output shape, arithmetic, parameters.

    A model within the model is shown layer by layer, too.
    """
    result = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            result += [(f"{layer.name}/{row[0]}", *row[1:]) for row in rows(layer)]
            continue
        output = keras.tree.flatten(layer.output)[0]  # a recurrent layer's states stand behind it
        # The first axis left open is the batch, the second the steps.
        sizes = [
            name if size is None else str(size)
            for name, size in zip(("B", "T", *["?"] * len(output.shape)), output.shape)
        ]
        shape = f"({', '.join(sizes)})"
        count = sum(math.prod(weight.shape) for weight in layer.weights)
        kind = type(layer).__name__
        activation = getattr(layer, "activation", None)
        ordinary = keras.activations.linear, None
        if isinstance(layer, keras.layers.RNN):
            ordinary = keras.activations.tanh, None
        if activation not in ordinary:
            kind += f", {activation.__name__}"
        result.append((layer.name, kind, shape, parameter_formula(layer), count))
    return result
