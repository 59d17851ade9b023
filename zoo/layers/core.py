"""Keras layers with an implementation chosen for each backend.

The weights and the results are those of Keras' own layers. `zoo.backends` chooses the fastest
computation on each backend.
"""

from typing import Any

import keras
from keras import ops

from zoo import initializers
from zoo.backends import backend
from zoo.validation import Activation, Positive, Size, TokenId, validated

Tensor = Any


def check_token_ids(ids: Tensor, size: int, layer: str) -> Tensor:
    """Returns the ids, or raises an error that names the layer if one is not in [0, size).

    In a compiled step the error is of the backend's own kind and may follow the step.
    """
    rule = f"Ids must lie in [0, {size}), the vocabulary of the layer {layer}. Received: id"
    return backend.check_range(ids, size, rule)


@keras.saving.register_keras_serializable("zoo")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Two-dimensional convolution, (B, H, W, C) to (B, H', W', filters): `keras.layers.Conv2D`."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.conv2d(self, inputs)


@keras.saving.register_keras_serializable("zoo")
class MaxPooling2D(keras.layers.MaxPooling2D):  # type: ignore[misc]
    """Max pooling of images, (B, H, W, C) to (B, H', W', C): `keras.layers.MaxPooling2D`."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.max_pool2d(self, inputs)


@keras.saving.register_keras_serializable("zoo")
class GroupNormalization(keras.layers.GroupNormalization):  # type: ignore[misc]
    """Group normalization with an activation and an optional modulation; keeps (B, H, W, C).

    The optional second input `scale_shift`, (B, 2·C), modulates the channels of each image by
    `x * (1 + scale) + shift`. The first half is the scale and the second half the shift
    (adaptive group normalization: Dhariwal and Nichol, 2021, section 3).

    Args:
        groups: Number of groups of channels.
        activation: Name of the Keras activation of the output; by default none.
        epsilon: Constant added to the variance for numerical stability.
        **kwargs: Further arguments of `keras.layers.GroupNormalization`.
    """

    @validated
    def __init__(
        self,
        groups: Size,
        activation: Activation | None = None,
        epsilon: Positive = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(groups, epsilon=epsilon, **kwargs)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Any, *_: Any) -> None:
        super().build(input_shape)

    def call(self, inputs: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        return self.activation(backend.group_norm(self, inputs, scale_shift))

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}


@keras.saving.register_keras_serializable("zoo")
class Dense(keras.layers.Dense):  # type: ignore[misc]
    """Dense layer whose output keeps the compute dtype: (..., inputs) to (..., units).

    On PyTorch and JAX, Keras computes a float32 product of two float64 tensors if there is no bias.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return ops.cast(backend.dense(self, inputs), self.compute_dtype)


@keras.saving.register_keras_serializable("zoo")
class Embedding(keras.layers.ReversibleEmbedding):  # type: ignore[misc]
    """Token embedding that checks its ids: `keras.layers.ReversibleEmbedding`.

    Maps ids (B, T) to vectors (B, T, width) and, with `reverse=True`, vectors (B, T, width) to
    logits (B, T, vocabulary).

    Without the check the backends differ for an id outside the vocabulary: an error that does not
    name the id, NaN, or another row of the table.

    Raises:
        ValueError: If an id lies outside the vocabulary. The text names the id and the vocabulary
            size. Compiled code raises the backend's own error with the same text; XLA on
            TensorFlow drops the check.
    """

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        if not reverse:
            inputs = check_token_ids(inputs, self.input_dim, self.name)
        return ops.cast(super().call(inputs, reverse=reverse), self.compute_dtype)

    def embed_unchecked(self, ids: Tensor) -> Tensor:
        """Embeds ids that the caller has checked; on JAX the check slows the call of compiled code.

        Args:
            ids: Token ids in [0, vocabulary), (B, T).

        Returns:
            Vectors of the tokens, (B, T, width).
        """
        return super().call(ids)


@keras.saving.register_keras_serializable("zoo")
class PaddingMask(keras.layers.Layer):  # type: ignore[misc]
    """Boolean padding mask of token ids, (B, T) int to (B, T) bool, false at padding.

    The first token is never masked, so that attention always has at least one key.

    Args:
        padding: Token id of padding.
    """

    @validated
    def __init__(self, padding: TokenId, **kwargs: Any):
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, ids: Tensor) -> Tensor:
        return ops.logical_or(
            ids != self.padding, ops.arange(ops.shape(ids)[1], dtype="int32") == 0
        )

    def compute_output_spec(self, ids: Tensor) -> Any:
        return keras.KerasTensor(ids.shape, "bool")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.padding}


def dense_projection(
    owner: Any,
    name: str,
    inputs: int,
    units: int,
    stddev: float | None,
    use_bias: bool | None = None,
) -> keras.layers.Layer:
    """Creates and builds a `Dense` sublayer with normal initial weights.

    Args:
        owner: Layer that contains the projection. Its `use_bias`, `seed`, `stream` and
            `dtype_policy` apply to the projection.
        name: Name of the projection.
        inputs: Input width.
        units: Output width.
        stddev: Standard deviation of the initial kernel; None means 1/sqrt(inputs).
        use_bias: Whether the projection has a bias; by default if `owner` has biases.

    Returns:
        The built layer.
    """
    layer = Dense(
        units,
        use_bias=bool(owner.use_bias) if use_bias is None else use_bias,
        kernel_initializer=initializers.Normal(owner.seed, f"{owner.stream}/{name}", stddev),
        dtype=owner.dtype_policy,
        name=name,
    )
    layer.build((None, None, inputs))
    return layer


def call_built(layer: keras.layers.Layer, *inputs: Tensor, **options: Any) -> Tensor:
    """Calls a built sublayer of another layer without the overhead of `Layer.__call__`.

    In eager execution, Keras' work around `call` takes longer than the arithmetic of a small layer.
    Within another layer that work is needed only to cast the inputs.

    Args:
        layer: Built sublayer.
        *inputs: Positional arguments of its `call`.
        **options: Keyword arguments of its `call`.

    Returns:
        Output of the sublayer.
    """
    if layer.compute_dtype == layer.variable_dtype:
        return layer.call(*inputs, **options)
    return layer(*inputs, **options)
