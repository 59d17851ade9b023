"""PyTorch: what a function does to tensors is recorded once and done again without the function.

Between two of PyTorch's operations, Keras asks for dtypes, devices and shapes. For one token more
that takes twice as long as the arithmetic. `torch.compile` would ask the user for a C++ compiler.
"""

import contextvars
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import torch
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Tensor = Any

# What asks for a tensor's numbers, on which operations to come might depend.
_READING = {
    "__array__", "__bool__", "__float__", "__index__", "__int__", "allclose", "equal", "is_nonzero",
    "item", "nonzero", "numpy", "tolist", "unique",
}  # fmt: skip

_WRITING = {
    "__iadd__",
    "__iand__",
    "__imul__",
    "__ior__",
    "__isub__",
    "__itruediv__",
    "__setitem__",
}


def _writes(name: str) -> bool:
    """Whether an operation changes its first tensor."""
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


_capturing = contextvars.ContextVar("_recording", default=False)


def is_capturing() -> bool:
    """Whether operations are written down, so that their numbers must not matter."""
    return _capturing.get()


def captured(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `function(*inputs)` be recorded once for each combination of shapes and dtypes.

    Args:
        model: whose weights it may use; their values are those of each call.
        function: of nested tuples, lists and dicts of tensors, each there once, which it may write
            to. What it does must not depend on their numbers.
    """
    programs: dict[Any, Callable[..., Any]] = {}

    def replayed(*inputs: Any) -> Any:
        tensors: list[Tensor] = []

        def to_tensor(x: Any) -> Tensor:
            tensors.append(x if torch.is_tensor(x) else keras.ops.convert_to_tensor(x))
            return tensors[-1]

        with torch.inference_mode():
            inputs = map_aggregate(inputs, to_tensor)
            key = tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
            if key in programs:
                return programs[key](*tensors)
            token = _capturing.set(True)
            try:
                with _Capture([variable.value for variable in model.variables], tensors) as tape:
                    outputs = function(*inputs)
            finally:
                _capturing.reset(token)
            programs[key] = tape.program(outputs)
            return outputs

    return replayed


class _Capture(TorchFunctionMode):  # type: ignore[misc]
    """Writes down each operation on the inputs, the weights and what was made of them.

    Of all others the result is written down, as a constant.
    """

    def __init__(self, weights: Sequence[Tensor], inputs: Sequence[Tensor]):
        super().__init__()
        self._graph = torch.fx.Graph()
        self._nodes = WeakTensorKeyDictionary()  # so that it keeps no activation
        for number, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input{number}")
        self._first = next(iter(self._graph.nodes))
        self._constants: list[Tensor] = []
        self._weights = {id(weight) for weight in weights}

    def program(self, outputs: Any) -> Callable[..., Any]:
        """The operations as a function of the inputs, in Python's own code."""
        self._graph.output(map_aggregate(outputs, self._node))
        run = torch.fx.GraphModule({}, self._graph).forward
        constants = self._constants
        return lambda *inputs: run(*constants, *inputs)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = tuple(args), dict(kwargs or {})
        tensors: list[Tensor] = []
        map_aggregate(arguments, lambda x: tensors.append(x) if torch.is_tensor(x) else None)
        known = any(x in self._nodes or id(x) in self._weights for x in tensors)
        name = func.__name__
        if known and name in _READING:
            raise TypeError(
                "The operations of a `decoder`'s function must not depend on its tensors' numbers. "
                f"Received: a function that calls `{name}`"
            )
        result = func(*arguments[0], **arguments[1])
        unchanged = bool(tensors) and result is tensors[0] and not _writes(name)
        if known and not unchanged:
            self._write(func, arguments, result)
        return result

    def _write(self, func: Any, arguments: Any, result: Any) -> None:
        several = isinstance(result, tuple | list) and any(map(torch.is_tensor, result))
        if not (several or torch.is_tensor(result) or func is torch.Tensor.__setitem__):
            return  # a shape or the like
        name = func.__name__
        if _writes(name) and arguments[0][0] not in self._nodes:
            # It would be a constant, and another one at the next call.
            raise TypeError(
                "A `decoder`'s function must not write to tensors that it has not been given. "
                f"Received: a function that calls `{name}` on one"
            )
        args, kwargs = map_aggregate(arguments, self._node)
        if name == "__get__":  # of a property
            node = self._graph.call_function(getattr, (args[0], func.__self__.__name__))
        else:
            node = self._graph.call_function(func, args, kwargs)
        if several:
            for number, part in enumerate(result):
                self._nodes[part] = self._graph.call_function(operator.getitem, (node, number))
        elif torch.is_tensor(result):
            self._nodes[result] = node

    def _node(self, x: Any) -> Any:
        """What stands for a tensor."""
        if not torch.is_tensor(x):
            return x
        if x not in self._nodes:
            with self._graph.inserting_before(self._first):
                self._nodes[x] = self._graph.placeholder(f"constant{len(self._constants)}")
            self._constants.append(x)
        return self._nodes[x]
