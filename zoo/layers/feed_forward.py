"""Position-wise feed-forward network of the transformer.

    feed_forward(x) = down(activation(up(x)))             two dense layers
    feed_forward(x) = down(silu(gate(x)) * up(x))         SwiGLU

Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.3; Shazeer, "GLU Variants
Improve Transformer", 2020.
"""

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import ops

from zoo.layers.core import call_built, dense_projection
from zoo.validation import NonNegative, Seed, Size, validated

Tensor = Any
FeedForwardActivation = Literal["relu", "gelu", "gelu_tanh", "swiglu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "swiglu": ops.silu,
}


@keras.saving.register_keras_serializable("zoo")
class FeedForward(keras.layers.Layer):  # type: ignore[misc]
    """Position-wise feed-forward network of two dense layers; keeps (B, T, hidden_dim).

    Args:
        intermediate_dim: Width between the two layers.
        activation: "relu", "gelu", "gelu_tanh" (the tanh approximation of GPT-2), or "swiglu",
            where the SiLU of a third dense layer gates the first layer's output.
        use_bias: Whether the dense layers have biases.
        stddev: Standard deviation of the initial kernels; by default 1/sqrt(fan_in).
        output_stddev: Standard deviation of the last layer's initial kernel; by default
            1/sqrt(fan_in).
        seed: Seed of the initial weights.
        stream: Name of the random stream of the initial weights, unique within a model.
    """

    @validated
    def __init__(
        self,
        intermediate_dim: Size,
        activation: FeedForwardActivation = "relu",
        use_bias: bool = True,
        stddev: NonNegative | None = None,
        output_stddev: NonNegative | None = None,
        seed: Seed = 0,
        stream: str = "feed_forward",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.stddev = stddev
        self.output_stddev = output_stddev
        self.seed = seed
        self.stream = stream

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        inner_width = self.intermediate_dim
        self.up = dense_projection(self, "up", width, inner_width, self.stddev)
        if self.activation == "swiglu":
            self.gate = dense_projection(self, "gate", width, inner_width, self.stddev)
        self.down = dense_projection(self, "down", inner_width, width, self.output_stddev)

    def call(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        if self.activation == "swiglu":
            inner = activate(call_built(self.gate, x)) * call_built(self.up, x)
        else:
            inner = activate(call_built(self.up, x))
        return call_built(self.down, inner)

    def get_config(self) -> dict[str, Any]:
        names = (
            "intermediate_dim", "activation", "use_bias", "stddev", "output_stddev", "seed",
            "stream",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
