"""Weight initializers whose values are the same bits on every backend."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from threadpoolctl import threadpool_limits

from zoo.random import key, normal, uniform
from zoo.validation import NonNegative, Seed, Size, validated

Tensor = Any


@keras.saving.register_keras_serializable("zoo")
class FanInUniform(keras.initializers.Initializer):  # type: ignore[misc]
    """Uniform initializer in ±1/sqrt(fan_in), the default of PyTorch's `nn.Linear` and `nn.Conv2d`.

    Args:
        seed: Seed of the model's initial weights.
        stream: Name of the weight, which gives each weight of a model values of its own.
        fan_in: Number of inputs of each unit. By default the product of all axes of the weight's
            shape but the last; for a bias `fan_in` is required.
    """

    @validated
    def __init__(self, seed: Seed, stream: str, fan_in: Size | None = None):
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
    """Normal initializer with mean 0, as transformers use.

    Args:
        seed: Seed of the model's initial weights.
        stream: Name of the weight, which gives each weight of a model values of its own.
        stddev: Standard deviation. By default 1/sqrt(fan_in), where fan_in is the product of all
            axes of the weight's shape but the last.
    """

    @validated
    def __init__(self, seed: Seed, stream: str, stddev: NonNegative | None = None):
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
    """Orthogonal initializer of a weight (n, n·blocks), for recurrent kernels.

    Each of the square blocks side by side is a random orthogonal matrix, which preserves the norm
    of signals and gradients.

    Args:
        seed: Seed of the model's initial weights.
        stream: Name of the weight, which gives each weight of a model values of its own.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", ICLR 2014.
    """

    @validated
    def __init__(self, seed: Seed, stream: str):
        self.seed = seed
        self.stream = stream

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        rows, columns = shape
        matrices = normal(key(self.seed, "weights", self.stream), (columns // rows, rows, rows))
        # In float64: rounding differences between libraries vanish in the cast to float32. In one
        # thread: OpenBLAS' threads wait by spinning, so beside two other processes on two cores,
        # four matrices of size 128 took 1.1 s instead of 5 ms.
        with threadpool_limits(1, "blas"):
            q, r = np.linalg.qr(matrices.astype(np.float64))
        blocks = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
        values = np.concatenate(list(blocks), axis=1).astype(np.float32)
        return ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "stream": self.stream}
