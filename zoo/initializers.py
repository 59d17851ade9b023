"""Initializers whose values are the same bits on every backend."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.random import key, normal, uniform

Tensor = Any


@keras.saving.register_keras_serializable("zoo")
class FanInUniform(keras.initializers.Initializer):  # type: ignore[misc]
    """Uniform in ±1/sqrt(fan_in): how PyTorch's `nn.Linear` and `nn.Conv2d` begin.

    Args:
        seed: the model's seed.
        stream: names the weight, so that no two of a model begin alike.
        fan_in: inputs of each unit; by default read off the shape of the weight (all axes but the
            last). Biases need it.
    """

    def __init__(self, seed: int, stream: str, fan_in: int | None = None):
        self.seed = seed
        self.stream = stream
        self.fan_in = fan_in

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        fan_in = self.fan_in or math.prod(shape[:-1])
        limit = 1 / math.sqrt(fan_in)
        values = uniform(key(self.seed, "weights", self.stream), shape, -limit, limit)
        return ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "stream": self.stream, "fan_in": self.fan_in}


@keras.saving.register_keras_serializable("zoo")
class Normal(keras.initializers.Initializer):  # type: ignore[misc]
    """Normal of mean 0, as transformers begin.

    Args:
        seed: the model's seed.
        stream: names the weight, so that no two of a model begin alike.
        stddev: by default 1/sqrt(inputs of each unit), read off the shape (all axes but the last).
    """

    def __init__(self, seed: int, stream: str, stddev: float | None = None):
        self.seed = seed
        self.stream = stream
        self.stddev = stddev

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        stddev = 1 / math.sqrt(math.prod(shape[:-1])) if self.stddev is None else self.stddev
        values = normal(key(self.seed, "weights", self.stream), shape, stddev)
        return ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "stream": self.stream, "stddev": self.stddev}


@keras.saving.register_keras_serializable("zoo")
class Orthogonal(keras.initializers.Initializer):  # type: ignore[misc]
    """Square blocks side by side, (n, n·blocks), each a random rotation: no signal grows or dies.

    Args:
        seed: the model's seed.
        stream: names the weight, so that no two of a model begin alike.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", ICLR 2014.
    """

    def __init__(self, seed: int, stream: str):
        self.seed = seed
        self.stream = stream

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        rows, columns = shape
        drawn = normal(key(self.seed, "weights", self.stream), (columns // rows, rows, rows))
        # In float64, so that what libraries round differently is gone in float32.
        q, r = np.linalg.qr(drawn.astype(np.float64))
        blocks = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
        values = np.concatenate(list(blocks), axis=1).astype(np.float32)
        return ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "stream": self.stream}
