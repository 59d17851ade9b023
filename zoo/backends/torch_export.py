"""Files that PyTorch writes: `.pt2` programs of `torch.export`, and ONNX from them."""

from pathlib import Path
from typing import Any

import torch

from zoo.backends.exporting import Graph, exporting

Tensor = Any

# A file has at most 2 GiB, and the program takes its part of them.
MAX_ONNX_BYTES = 2**31 - 2**27


class _Module(torch.nn.Module):  # type: ignore[misc]
    """A graph as a PyTorch module from inputs by name to outputs by name."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        arrays = graph.stored_arrays()
        self.names = [f"stored_{number}" for number, _ in enumerate(arrays)]
        for name, array in zip(self.names, arrays):
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = [getattr(self, name) for name in self.names]
        with self.graph.weights_scope(tensors):
            outputs = self.graph.function(*(inputs[name] for name in self.graph.inputs))
        return dict(zip(self.graph.outputs, outputs, strict=True))


def program(graph: Graph) -> torch.export.ExportedProgram:
    """Traces a graph with dynamic axes.

    Raises:
        Exception: If an operation cannot be traced, or fixes an axis that must be dynamic; of the
            kinds that PyTorch raises.
    """
    arrays = dict(zip(graph.inputs, map(torch.from_numpy, graph.example())))
    dynamic = {
        name: {i: torch.export.Dim.DYNAMIC for i, s in enumerate(spec.shape) if isinstance(s, str)}
        for name, spec in graph.inputs.items()
    }
    with exporting(), torch.no_grad():
        return torch.export.export(
            _Module(graph).eval(), (arrays,), dynamic_shapes=(dynamic,), strict=False
        )


def write_pt2(graph: Graph, path: Path) -> None:
    torch.export.save(program(graph), path, extra_files=dict(graph.metadata))


def write_onnx(graph: Graph, path: Path) -> None:
    """Writes an ONNX file; weights above `MAX_ONNX_BYTES` go to a second one, PATH.data."""
    axes = {
        name: {i: s for i, s in enumerate(entry.shape) if isinstance(s, str)}
        for name, entry in graph.inputs.items()
    }
    # The names of the axes are all that is taken from `dynamic_shapes`: the program has its own.
    onnx_program = torch.onnx.export(
        program(graph), dynamic_shapes=(axes,), dynamo=True, verbose=False, external_data=False,
        optimize=not graph.stored,
    )  # fmt: skip
    if graph.stored:
        from onnxscript import optimizer  # ONNX alone needs it

        optimizer.optimize_ir(onnx_program.model, should_fold=_should_fold)
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()  # of the exporter; often longer than the weights
    _rename(onnx_program.model.graph, graph)
    onnx_program.model.metadata_props.update(graph.metadata)
    parameters = [*graph.model.parameters(), *graph.model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in parameters)
    onnx_program.save(path, external_data=size > MAX_ONNX_BYTES)


def _should_fold(node: Any) -> bool | None:
    """Leaves stored weights as they are, which folding would turn into float32."""
    dtype = node.inputs[0].dtype if node.op_type == "Cast" else None
    return False if dtype is not None and dtype.name in ("INT8", "FLOAT16") else None


def _rename(onnx_graph: Any, graph: Graph) -> None:
    """Gives inputs and outputs the names of the model's, which no other value keeps."""
    ends = [*zip(onnx_graph.inputs, graph.inputs), *zip(onnx_graph.outputs, graph.outputs)]
    names = {name for _, name in ends}
    values = [*onnx_graph.initializers.values()]
    values += [value for node in onnx_graph for value in node.outputs]
    for value in values:
        if value.name in names:
            value.name += "_value"
    for value, name in ends:
        value.name = name
