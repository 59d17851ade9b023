"""Files that TensorFlow writes: SavedModel directories and LiteRT."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from zoo.backends.exporting import Graph, exporting

Tensor = Any


def _module(graph: Graph) -> tf.Module:
    """A graph as a module with one signature, from inputs by name to outputs by name."""
    module = tf.Module()
    if graph.stored:
        module.variables_ = [tf.Variable(array, False) for array in graph.stored_arrays()]
    else:
        module.variables_ = [variable.value for variable in graph.model.variables]

    def serve(**inputs: Tensor) -> dict[str, Tensor]:
        with exporting(), graph.weights_scope(module.variables_):
            outputs = graph.function(*(inputs[name] for name in graph.inputs))
        return {
            name: tf.identity(output, name)
            for name, output in zip(graph.outputs, outputs, strict=True)
        }

    signature = {
        name: tf.TensorSpec(
            [None if isinstance(s, str) else s for s in spec.shape], spec.dtype, name
        )
        for name, spec in graph.inputs.items()
    }
    module.serve = tf.function(serve).get_concrete_function(**signature)
    return module


def write_saved_model(graph: Graph, path: Path) -> None:
    module = _module(graph)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    extra = path / "assets.extra"  # the folder that the format leaves to users
    extra.mkdir()
    (extra / "metadata.json").write_text(json.dumps(dict(graph.metadata), indent=2), "utf-8")


def write_litert(graph: Graph, path: Path) -> None:
    # The converter would compute the weights itself, and store them in float32.
    module = _module(dataclasses.replace(graph, stored=()))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if graph.dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]  # int8
    if graph.dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())
