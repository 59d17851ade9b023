"""Layer tables of a model, with the parameter count of each layer as a formula."""

import math

import keras

from zoo.validation import validated


@validated
def parameter_formula(layer: keras.layers.Layer) -> str:
    """Returns the parameter count of a layer as a formula, such as "(3·3·3 + 1)·32".

    Args:
        layer: A built layer.

    Returns:
        The formula, empty for a layer without weights.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        directions = layer.forward_layer, layer.backward_layer
        return " + ".join(parameter_formula(direction) for direction in directions)
    if isinstance(layer, keras.layers.SimpleRNN | keras.layers.LSTM | keras.layers.GRU):
        inputs, columns = layer.cell.kernel.shape
        biases = math.prod(layer.cell.bias.shape) // columns if layer.use_bias else 0
        num_gates = columns // layer.units
        units = f"{layer.units}" if num_gates == 1 else f"{num_gates}·{layer.units}"
        return f"{units}·({inputs} + {layer.units} + {biases})"
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if len(shapes) == 2 and len(shapes[0]) > 1 and shapes[1] == shapes[0][-1:]:
        *inputs, units = shapes[0]  # a weight for each input, and a bias
        return f"({_product(inputs)} + 1)·{units}"
    return " + ".join(_product(shape) for shape in shapes)


def _product(shape: tuple[int, ...] | list[int]) -> str:
    return "·".join(str(size) for size in shape) or "1"


@validated
def rows(model: keras.Model) -> list[tuple[str, str, str, str, int]]:
    """Returns the layer table of a model.

    Args:
        model: Model to describe. The layers of a nested model are listed one by one.

    Returns:
        One row for each layer: name, class and activation, output shape, formula of the parameter
        count, and parameter count.
    """
    table = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            table += [(f"{layer.name}/{row[0]}", *row[1:]) for row in rows(layer)]
            continue
        # The outputs of a recurrent layer are its output and its states.
        output = keras.tree.flatten(layer.output)[0]
        # An unknown first axis is the batch, an unknown second axis the time steps.
        sizes = [
            name if size is None else str(size)
            for name, size in zip(("B", "T", *["?"] * len(output.shape)), output.shape)
        ]
        shape = f"({', '.join(sizes)})"
        parameter_count = sum(math.prod(weight.shape) for weight in layer.weights)
        kind = type(layer).__name__
        activation = getattr(layer, "activation", None)
        default_activations = keras.activations.linear, None
        if isinstance(layer, keras.layers.RNN):
            default_activations = keras.activations.tanh, None
        if activation not in default_activations:
            kind += f", {activation.__name__}"
        table.append((layer.name, kind, shape, parameter_formula(layer), parameter_count))
    return table
