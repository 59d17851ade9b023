"""Nested arrays of JAX as one flat array of each dtype."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Tensor = Any


@partial(
    jax.tree_util.register_dataclass, data_fields=["flat"], meta_fields=["structure", "shapes"]
)
@dataclass(frozen=True)
class Packed:
    """Nested arrays as one (1, elements) of each dtype, to be added in one operation."""

    flat: dict[str, Tensor]
    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def pack(cls, tree: Any) -> "Packed":
        leaves, structure = jax.tree.flatten(tree)
        rows: dict[str, list[Tensor]] = {}
        for leaf in leaves:
            rows.setdefault(leaf.dtype.name, []).append(leaf.reshape(1, -1))
        flat = {dtype: jnp.concatenate(parts, axis=1) for dtype, parts in rows.items()}
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        return cls(flat, structure, shapes)

    def unpack(self) -> Any:
        """The arrays again, of sums without the first axis."""
        used = dict.fromkeys(self.flat, 0)
        leaves = []
        for shape in self.shapes:
            dtype = shape.dtype.name
            start, used[dtype] = used[dtype], used[dtype] + shape.size
            leaves.append(self.flat[dtype][start : used[dtype]].reshape(shape.shape))
        return jax.tree.unflatten(self.structure, leaves)
