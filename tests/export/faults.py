"""Faulty exports: each writes a file with one fault, in place of `zoo.export.tasks.write`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from zoo.backends.exporting import Axes, Graph
from zoo.export.parts import DecodingSource, decoding_parts
from zoo.export.source import Source
from zoo.files import tensors


def _write_onnx(graph: Graph, path: Path) -> None:
    from zoo.backends import torch_export  # in a worker with PyTorch

    torch_export.write_onnx(graph, path)


def _with_size(graph: Graph, axis: str, size: int) -> Graph:
    """The graph with a fixed size in place of a dynamic axis."""
    inputs = {
        name: Axes(entry.dtype, tuple(size if s == axis else s for s in entry.shape))
        for name, entry in graph.inputs.items()
    }
    return dataclasses.replace(graph, inputs=inputs)


def time_frozen(source: Source, format_name: str, path: Path) -> None:
    _write_onnx(_with_size(source.graph(), "length", 5), path)


def batch_frozen(source: Source, format_name: str, path: Path) -> None:
    _write_onnx(_with_size(source.graph(), "batch", 1), path)


def bias_in_wrong_gate(source: Source, format_name: str, path: Path) -> None:
    graph = source.graph()
    bias = graph.model.get_layer("gru").cell.bias
    bias.assign(np.roll(ops.convert_to_numpy(bias), bias.shape[1] // 3, axis=1))
    _write_onnx(graph, path)


def channels_swapped(source: Source, format_name: str, path: Path) -> None:
    graph = source.graph()

    def function(images: Any) -> list[Any]:
        channels_first = ops.reshape(images, (-1, 3, 6, 6))
        return graph.function(ops.transpose(channels_first, (0, 2, 3, 1)))

    _write_onnx(dataclasses.replace(graph, function=function), path)


def other_seed(source: Source, format_name: str, path: Path) -> None:
    graph = source.graph()
    generator = np.random.default_rng(1)
    weights = [generator.normal(size=w.shape) for w in graph.model.get_weights()]
    graph.model.set_weights(weights)
    _write_onnx(graph, path)


class OneTokenForgotten(DecodingSource):
    """A part of a language model for which the first token is padding, in the file as in Keras."""

    def graph(self, for_file: bool = False) -> Graph:
        graph = super().graph(for_file)

        def function(ids: Any, padding: Any, *past: Any) -> list[Any]:
            return graph.function(ids, padding + 1, *past)

        return dataclasses.replace(graph, function=function)


def step_forgets(source: Source) -> dict[str, Source]:
    parts = decoding_parts(source)
    return parts | {"step": OneTokenForgotten(**vars(parts["step"]))}


def one_weight_moved(source: Source, format_name: str, path: Path) -> None:
    model, _ = source.load_model()
    bias = model.get_layer("conv").bias
    bias.assign(ops.convert_to_numpy(bias) + 1e-7)
    path.write_bytes(tensors.save_weights(model, "float32"))


def onnx_in_two_files(source: Source, format_name: str, path: Path) -> None:
    """No fault: the limit of one file is lower."""
    from zoo.backends import torch_export  # in a worker with PyTorch

    limit, torch_export.MAX_ONNX_BYTES = torch_export.MAX_ONNX_BYTES, 0
    try:
        torch_export.write_onnx(source.graph(), path)
    finally:
        torch_export.MAX_ONNX_BYTES = limit
