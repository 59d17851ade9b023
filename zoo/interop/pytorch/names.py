"""Names of PyTorch's modules for the layers of a model."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from zoo.interop.pytorch.graph import NO_GRAPH, Call
from zoo.interop.pytorch.layout import NORMALIZATIONS, RECURRENT
from zoo.layers.transformer_block import TransformerBlock

Rename = Mapping[str, str] | Callable[[str], str]

_NO_CHAIN = NO_GRAPH.format("which layer it reads")


def module_name(call: Call) -> str:
    """Returns the name of the PyTorch module of a layer.

    A layer has its own name behind those of the models around it. Transformer blocks
    `encoder_block1` and `encoder_block2` and the normalization `encoder_norm` behind them are the
    modules `encoder.layers.0`, `encoder.layers.1` and `encoder.norm`.

    Raises:
        ValueError: If the layer belongs to a stack of transformer blocks or recurrent layers and
            does not read the output of the layer before it, or no graph tells what it reads.
    """
    prefix = call.path[:-1]
    previous = call.inputs[0].layer
    block = _stack_and_number(call.layer)
    if isinstance(call.layer, RECURRENT):
        _check_recurrent_stack(call)
    elif block is not None:
        stack, number = block
        if number > 1 and not call.has_graph:
            raise call.error(_NO_CHAIN)
        if number > 1 and _stack_and_number(previous) != (stack, number - 1):
            raise call.error(f"it must read the output of block {number - 1} of the stack {stack}")
        return ".".join((*prefix, *filter(None, [stack]), "layers", str(number - 1)))
    elif isinstance(call.layer, NORMALIZATIONS):
        stack, _ = _stack_and_number(previous) or ("", 0)
        if stack and call.layer.name == f"{stack}_norm":
            return ".".join((*prefix, stack, "norm"))
    return call.name


def _stack_and_number(layer: object) -> tuple[str, int] | None:
    """Name of a transformer block's stack and number of the block, from 1."""
    if isinstance(layer, TransformerBlock):
        match = re.fullmatch(r"(?:(.+)_)?block([1-9]\d*)", layer.name)
        if match is not None:
            return match[1] or "", int(match[2])
    return None


def _check_recurrent_stack(call: Call) -> None:
    """Raises ValueError if recurrent layer n > 1 does not continue the stack of layer n - 1."""
    match = re.match(r"(.*?)(\d+)", call.path[-1])
    if match is None or int(match[2]) < 2:
        return
    if not call.has_graph:
        raise call.error(_NO_CHAIN)
    name, number = match[1], int(match[2])
    previous = call.inputs[0].layer
    layers = [getattr(layer, "forward_layer", layer) for layer in (previous, call.layer)]
    if (
        type(previous) is not type(call.layer)
        or not re.match(rf"{re.escape(name)}{number - 1}(\D|$)", previous.name)
        or type(layers[0]) is not type(layers[1])
        or layers[0].units != layers[1].units
        or layers[0].activation != layers[1].activation
    ):
        raise call.error(
            f"layer {number} of the stack {name} must read the outputs of {name}{number - 1}, of "
            "its kind, with as many units and the same activation. Recurrent layers apart have "
            "other names, such as left1 and right1"
        )


def renamed(names: Iterable[str], rename: Rename | None) -> dict[str, str]:
    """Returns the names that PyTorch has for the tensors of a model.

    Args:
        names: Names of the tensors, made of the names of the layers.
        rename: PyTorch's name of each module with another name, by the name of the layer (or the
            beginning or the whole of a tensor's name); or a function from name to name.

    Raises:
        ValueError: If an entry of `rename` belongs to no tensor, or two tensors get one name.
    """
    names = list(names)
    used: set[str] = set()

    def replace(name: str) -> str:
        if rename is None:
            return name
        if not isinstance(rename, Mapping):
            try:
                return rename(name)
            except Exception as error:  # of a function of the user's
                raise ValueError(
                    "`rename` must return PyTorch's name of each tensor. Received: for "
                    f"{name}, {type(error).__name__}: {error}"
                ) from error
        parts = name.split(".")
        for length in range(len(parts), 0, -1):  # the longest of the entries that fit
            start = ".".join(parts[:length])
            if start in rename:
                used.add(start)
                return ".".join((rename[start], *parts[length:]))
        return name

    result = {name: replace(name) for name in names}
    if isinstance(rename, Mapping):
        unused = [name for name in rename if name not in used]
        if unused:
            layers = {".".join(name.split(".")[:-1]) for name in names}
            near = difflib.get_close_matches(str(unused[0]), sorted(layers), 3)
            raise ValueError(
                "`rename` must have names of layers of the model as its keys. Received: "
                f"{unused[0]}. Near it: {', '.join(near) or ', '.join(sorted(layers)[:8])}"
            )
    numbers = Counter(map(str, result.values()))
    for name, new in result.items():
        if not isinstance(new, str) or numbers[new] > 1:
            raise ValueError(
                "`rename` must give each tensor a name of its own. Received: "
                f"{new!r} for {name}" + (" and another" if numbers[str(new)] > 1 else "")
            )
    return result
