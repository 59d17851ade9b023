"""Rotary position embeddings: rotation of queries and keys by angles that grow with the position.

The pair of elements i and i + head_dim/2 at position p is rotated by the angle p·f_i, where

    f_i = base^(-2·i/head_dim)          i = 0, ..., head_dim/2 - 1

A model for longer contexts than those of its pretraining scales the frequencies f_i.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# Positions are written as coarse·_BLOCK + fine, so that the tables of a context of 131,072 tokens
# have some thousand rows.
_BLOCK = 1024


@dataclass(frozen=True)
class RotaryScaling:
    """Scaling of the frequencies of rotary embeddings.

    With "linear" each frequency is divided by `factor`. With "llama3" a frequency is divided by
    `factor` if it has fewer than `low_freq_factor` periods within the context of the pretraining,
    kept if it has more than `high_freq_factor`, and interpolated in between.

    Args:
        type: "linear" or "llama3".
        factor: Divisor of the frequencies, at least 1.
        low_freq_factor: Number of periods below which a frequency is low, for "llama3" only.
        high_freq_factor: Number of periods above which a frequency is high, for "llama3" only.
        original_max_length: Context length of the pretraining in tokens, for "llama3" only.

    Raises:
        ValueError: If an argument is missing, out of range or of the other type of scaling.

    Source: Chen et al., "Extending Context Window of Large Language Models via Positional
    Interpolation", 2023 (linear); Grattafiori et al., "The Llama 3 Herd of Models", 2024, and
    `apply_scaling` of Meta's llama-models (llama3).
    """

    type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_length: int | None = None

    def __post_init__(self) -> None:
        names = ("low_freq_factor", "high_freq_factor", "original_max_length")
        bounds = self.low_freq_factor, self.high_freq_factor, self.original_max_length
        numbers = [self.factor, *(bounds if self.type == "llama3" else ())]
        if self.type not in ("linear", "llama3"):
            rule = "have the type linear or llama3"
        elif self.type == "linear" and any(number is not None for number in bounds):
            rule = f"have none of {', '.join(names)} with the type linear"
        elif not all(_is_positive(number) for number in numbers) or self.factor < 1:
            rule = "have positive numbers, and a factor of at least 1"
            if self.type == "llama3":
                rule += f", and with the type llama3 each of {', '.join(names)}"
        elif self.type == "llama3" and not bounds[0] < bounds[1]:  # type: ignore[operator]
            rule = "have a `low_freq_factor` below its `high_freq_factor`"
        else:
            return
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in settings.items() if value is not None}
        raise ValueError(f"`rotary_scaling` must {rule}. Received: rotary_scaling={given}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> "RotaryScaling | None":
        """Creates a scaling from its arguments by name; None for no scaling.

        Raises:
            ValueError: If the arguments are not those of a scaling.
        """
        if config is None:
            return None
        names = [field.name for field in fields(cls)]
        if not isinstance(config, Mapping) or not {"type", "factor"} <= set(config) <= set(names):
            raise ValueError(
                "`rotary_scaling` must be None or a dictionary with type, factor and possibly "
                f"{', '.join(names[2:])}. Received: rotary_scaling={config!r}"
            )
        return cls(**config)

    def scale(self, frequencies: np.ndarray) -> np.ndarray:
        """Scales frequencies in radians per token."""
        unscaled_share = np.zeros_like(frequencies)  # share of each frequency that is not divided
        if self.type == "llama3":
            assert self.low_freq_factor is not None
            assert self.high_freq_factor is not None
            assert self.original_max_length is not None
            periods = self.original_max_length * frequencies / (2 * math.pi)
            width = self.high_freq_factor - self.low_freq_factor
            unscaled_share = np.clip((periods - self.low_freq_factor) / width, 0.0, 1.0)
        return frequencies * (unscaled_share + (1 - unscaled_share) / self.factor)


def _is_positive(number: Any) -> bool:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and 0 < number < math.inf


def rotary_frequencies(
    dim: int, base: float = 10000.0, scaling: RotaryScaling | None = None
) -> np.ndarray:
    """Returns the frequencies of rotary embeddings in radians per token, (dim/2,) float64.

    Args:
        dim: Width of a head, an even number.
        base: Base of the wavelengths.
        scaling: Scaling of the frequencies; by default none.
    """
    frequencies = np.asarray(base ** -(np.arange(0, dim, 2) / dim))
    return frequencies if scaling is None else scaling.scale(frequencies)


@functools.lru_cache(maxsize=16)
def rotary_tables(
    positions: range,
    dim: int,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    dtype: str = "float64",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosines and sines of rotary embeddings, (len(positions), dim) each.

    Args:
        positions: Positions of the rows.
        dim: Width of a head, an even number.
        base: Base of the wavelengths.
        scaling: Scaling of the frequencies; by default none.
        dtype: Dtype of the tables.
    """
    angles = np.asarray(positions)[:, None] * rotary_frequencies(dim, base, scaling)
    angles = np.tile(angles, 2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rotations(
    positions: Tensor,
    max_length: int,
    dim: int,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    dtype: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of the rotations at given positions, (B, T, 1, dim) each.

    Args:
        positions: Positions of the tokens, (B, T) int in [0, max_length).
        max_length: Number of positions.
        dim: Width of a head, an even number.
        base: Base of the wavelengths.
        scaling: Scaling of the frequencies; by default none.
        dtype: Dtype of the cosines and sines.
    """

    def look_up(rows: range, indices: Tensor) -> list[Tensor]:
        tables = rotary_tables(rows, dim, base, scaling, dtype)
        return [
            ops.expand_dims(ops.take(ops.convert_to_tensor(table, dtype=dtype), indices, axis=0), 2)
            for table in tables
        ]

    if max_length <= _BLOCK:
        cosines, sines = look_up(range(max_length), positions)
        return cosines, sines
    # cos(a + b) and sin(a + b) of the angles at coarse·_BLOCK and at fine
    coarse_cos, coarse_sin = look_up(range(0, max_length, _BLOCK), positions // _BLOCK)
    fine_cos, fine_sin = look_up(range(_BLOCK), positions % _BLOCK)
    cosines = coarse_cos * fine_cos - coarse_sin * fine_sin
    return cosines, coarse_sin * fine_cos + coarse_cos * fine_sin


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Applies rotary embeddings: rotates each pair of elements i and i + head_dim/2.

    Args:
        x: Queries or keys, (B, T, heads, head_dim).
        cosines: Cosines of the angles, broadcastable to x.
        sines: Sines of the angles, broadcastable to x.

    Returns:
        The rotated queries or keys, with the shape and dtype of x.
    """
    dtype = x.dtype
    x = ops.cast(x, cosines.dtype)  # 16-bit floats are too coarse for angles
    first, second = ops.split(x, 2, axis=-1)
    return ops.cast(x * cosines + ops.concatenate([-second, first], axis=-1) * sines, dtype)
