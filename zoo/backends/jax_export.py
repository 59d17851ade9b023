"""Files that JAX writes: StableHLO programs of `jax.export`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import export

from zoo.backends.exporting import Graph, exporting

Tensor = Any


def write_stablehlo(graph: Graph, path: Path) -> None:
    variables = graph.model.variables
    values = [jnp.asarray(variable.value) for variable in variables]
    stored = [jnp.asarray(array) for array in graph.stored_arrays()]

    def function(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        scope = keras.StatelessScope(state_mapping=list(zip(variables, values)))
        with exporting(), scope, graph.weights_scope(stored):
            outputs = graph.function(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, outputs, strict=True))

    limits = [f"{axis} <= {graph.limits[axis]}" for axis in graph.axes if axis in graph.limits]
    symbols = export.symbolic_shape(",".join(graph.axes), constraints=limits)
    sizes: dict[int | str, Any] = dict(zip(graph.axes, symbols))
    signature = {
        name: jax.ShapeDtypeStruct([sizes.get(s, s) for s in spec.shape], spec.dtype)
        for name, spec in graph.inputs.items()
    }
    exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(signature)
    path.write_bytes(exported.serialize())
