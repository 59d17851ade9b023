"""Graph capture for PyTorch: a function's tensor operations are captured once and then replayed.

Between two PyTorch operations, Keras inspects dtypes, devices and shapes. In a step of incremental
decoding this overhead takes twice as long as the computation. `torch.compile` would require a C++
compiler.
"""

import contextvars
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.backends import torch_sharding

Tensor = Any

# Operations that return a tensor's values to Python, on which later operations could depend.
_VALUE_ACCESS = {
    "__array__", "__bool__", "__float__", "__index__", "__int__", "allclose", "equal", "is_nonzero",
    "item", "nonzero", "numpy", "tolist", "unique",
}  # fmt: skip

_IN_PLACE = {
    "__iadd__",
    "__iand__",
    "__imul__",
    "__ior__",
    "__isub__",
    "__itruediv__",
    "__setitem__",
}


def _is_in_place(name: str) -> bool:
    """Whether an operation modifies its first tensor."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


_capturing = contextvars.ContextVar("_capturing", default=False)


def is_capturing() -> bool:
    """Whether operations are being captured, so that they must not depend on tensors' values."""
    return _capturing.get()


@contextmanager
def capturing() -> Iterator[None]:
    """Context manager in which operations are being captured."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def captured(
    model: Any, function: Callable[..., Any], mode: Callable[[], Any] = torch.inference_mode
) -> Callable[..., Any]:
    """Wraps a function so that its operations are captured once and replayed afterwards.

    The operations are captured for each combination of shapes, strides, dtypes and devices.

    Args:
        model: Model whose weights the function may use. A replay uses their current values.
        function: Function of nested tuples, lists and dicts of tensors, each of which occurs once.
            The function may modify these tensors in place. Its operations must not depend on the
            tensors' values.
        mode: Context manager of the calls: `torch.no_grad` if the results are to be trained on, to
            which PyTorch does not admit tensors of its faster `torch.inference_mode`.

    Returns:
        Function with the same arguments and results as `function`.

    Raises:
        TypeError: If an operation reads a tensor's values, or modifies a tensor that is neither an
            argument nor computed from arguments or weights.
    """
    if torch_sharding.is_sharding():  # weights that are gathered are other tensors each time
        return torch.no_grad()(function)  # type: ignore[no-any-return]
    programs: dict[Any, Callable[..., Any]] = {}

    def replayed(*inputs: Any) -> Any:
        tensors: list[Tensor] = []

        def to_tensor(x: Any) -> Tensor:
            tensors.append(x if torch.is_tensor(x) else keras.ops.convert_to_tensor(x))
            return tensors[-1]

        with mode():
            inputs = map_aggregate(inputs, to_tensor)
            key = tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
            if key in programs:
                return programs[key](*tensors)
            weights = [variable.value for variable in model.variables]
            with capturing(), _Capture(weights, tensors) as capture:
                outputs = function(*inputs)
            programs[key] = capture.program(outputs)
            return outputs

    return replayed


class _Capture(TorchFunctionMode):  # type: ignore[misc]
    """Captures the operations on inputs, weights and their results as an FX graph.

    The results of all other operations become constants of the graph.

    Args:
        weights: Tensors whose values may change between replays.
        inputs: Tensors that replace the placeholders of the graph.
    """

    def __init__(self, weights: Sequence[Tensor], inputs: Sequence[Tensor]):
        super().__init__()
        self._graph = torch.fx.Graph()
        self._nodes = WeakTensorKeyDictionary()  # weak keys: activations are freed
        for number, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input{number}")
        self._first = next(iter(self._graph.nodes))
        self._constants: list[Tensor] = []
        self._weights = {id(weight) for weight in weights}

    def program(self, outputs: Any) -> Callable[..., Any]:
        """Returns the captured operations as a Python function of the inputs."""
        self._graph.output(map_aggregate(outputs, self._node))
        graph_function = torch.fx.GraphModule({}, self._graph).forward
        constants = self._constants
        return lambda *inputs: graph_function(*constants, *inputs)

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
        depends_on_inputs = any(x in self._nodes or id(x) in self._weights for x in tensors)
        name = func.__name__
        if depends_on_inputs and name in _VALUE_ACCESS:
            raise TypeError(
                "The operations of a captured `function` must not depend on its tensors' values. "
                f"Received: a function that calls `{name}`. Use tensor operations, such as "
                "`keras.ops.where`"
            )
        result = func(*arguments[0], **arguments[1])
        unchanged = bool(tensors) and result is tensors[0] and not _is_in_place(name)
        if depends_on_inputs and not unchanged:
            self._add_node(func, arguments, result)
        return result

    def _add_node(self, func: Any, arguments: Any, result: Any) -> None:
        """Adds an operation to the graph, and its result to the tensors that have a node."""
        has_parts = isinstance(result, tuple | list) and any(map(torch.is_tensor, result))
        if not (has_parts or torch.is_tensor(result) or func is torch.Tensor.__setitem__):
            return  # not a tensor, such as a shape
        name = func.__name__
        if _is_in_place(name) and arguments[0][0] not in self._nodes:
            # The tensor would be a constant of the graph, but a new tensor at the next call.
            raise TypeError(
                "A captured `function` must not modify tensors other than its arguments. Received: "
                f"a function that calls `{name}` on one. Pass the tensor as an argument"
            )
        args, kwargs = map_aggregate(arguments, self._node)
        if name == "__get__":  # access to a property
            node = self._graph.call_function(getattr, (args[0], func.__self__.__name__))
        else:
            node = self._graph.call_function(func, args, kwargs)
        if has_parts:
            for number, part in enumerate(result):
                self._nodes[part] = self._graph.call_function(operator.getitem, (node, number))
        elif torch.is_tensor(result):
            self._nodes[result] = node

    def _node(self, x: Any) -> Any:
        """Returns the graph's node of a tensor, and anything else unchanged."""
        if not torch.is_tensor(x):
            return x
        if x not in self._nodes:
            with self._graph.inserting_before(self._first):
                self._nodes[x] = self._graph.placeholder(f"constant{len(self._constants)}")
            self._constants.append(x)
        return self._nodes[x]
