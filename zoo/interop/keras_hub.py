"""Adapter of KerasHub's language models for fine-tuning and evaluation with the zoo.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import initializers

Tensor = Any


def load_causal_lm(
    preset: str,
    rank: int,
    seed: int = 0,
    dtype: str | None = None,
    sampler: str = "greedy",
) -> Any:
    """Loads a KerasHub `CausalLM` for generation and for fine-tuning by LoRA.

    Only the low-rank matrices are trainable. Their product is initially 0.

    Args:
        preset: Name of a KerasHub preset, or a directory written by `save_to_preset`.
        rank: Rank of the low-rank matrices.
        seed: Seed of the initial low-rank matrices; the same values on every backend.
        dtype: Dtype or dtype policy of the model; by default Keras' global policy.
        sampler: Name of the KerasHub sampler that generates text.

    Returns:
        The compiled `CausalLM`.

    Raises:
        ImportError: If KerasHub is not installed.
        ValueError: If the preset is not that of a `CausalLM`, or KerasHub cannot add LoRA to its
            layers.
    """
    try:
        import keras_hub  # takes seconds, which `--help` would wait for
    except ImportError as error:
        raise ImportError(f"{error}. `pip install keras-hub` installs KerasHub") from error
    try:
        model = keras_hub.models.CausalLM.from_preset(preset, dtype=dtype)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            "`preset` must be that of a KerasHub CausalLM, a name such as gpt2_base_en or a folder "
            f"that its `save_to_preset` wrote. Received: preset={preset} "
            f"({str(error).split('. ')[0]})"
        ) from error
    model.backbone.enable_lora(rank)
    for number, variable in enumerate(model.trainable_variables):
        # KerasHub would also train the biases of these layers, which `save_lora_weights` omits.
        variable.trainable = variable.name.startswith("lora_kernel")
        if variable.name == "lora_kernel_a":
            initializer = initializers.FanInUniform(seed, f"lora{number}")
            variable.assign(initializer(variable.shape))
    if not model.trainable_variables or set(model.input) != {"token_ids", "padding_mask"}:
        raise ValueError(
            "`preset` must be that of a model whose only input is text, and which has layers with "
            "one of the names that KerasHub adapts: "
            f"{', '.join(model.backbone.default_lora_layer_names())}. "
            f"Received: preset={preset}, a {type(model).__name__}"
        )
    model.compile(sampler=sampler)
    return model


class CausalLMAdapter(keras.Model):  # type: ignore[misc]
    """Model that gives a `CausalLM` the interface of the zoo's language models.

    The model maps ids (B, T) to logits (B, T, V). It prepends the start token, if the preprocessor
    of the `CausalLM` adds one. Dropout is disabled in training, too, since the random numbers of
    Keras' dropout depend on the backend.

    Args:
        causal_lm: KerasHub `CausalLM` with a preprocessor.

    Attributes:
        context: Maximum number of tokens of a sequence, including the start token.
    """

    def __init__(self, causal_lm: Any):
        super().__init__(name=f"{causal_lm.name}_adapter")
        self.causal_lm = causal_lm
        preprocessor = causal_lm.preprocessor
        start = preprocessor.tokenizer.start_token_id if preprocessor.add_start_token else None
        self._start_tokens = () if start is None else (start,)
        max_length = getattr(causal_lm.backbone, "max_sequence_length", None)
        self.context = max_length or preprocessor.sequence_length

    def call(self, ids: Tensor, training: bool = False) -> Tensor:
        for start in self._start_tokens:
            ids = ops.pad(ids, [[0, 0], [1, 0]], constant_values=start)
        inputs = {"token_ids": ids, "padding_mask": ops.ones_like(ids)}
        return self.causal_lm(inputs, training=False)[:, len(self._start_tokens) :]

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text as token ids, (T,) int32, without a start token."""
        return np.asarray(self.causal_lm.preprocessor.tokenizer(text), np.int32)

    def check_length(self, length: int, train: int, test: int) -> None:
        """Raises ValueError unless windows of `length` tokens fit the context and both texts.

        Args:
            length: Number of input tokens of a window.
            train: Number of training tokens.
            test: Number of held-out tokens.
        """
        max_length = min(train, test, self.context) - 1
        if length > max_length:
            raise ValueError(
                f"`length` must be at most {max_length}: the model's context is {self.context} "
                f"tokens, and the text has {train} to train on and {test} held out. Received: "
                f"length={length}. Give a longer text or a smaller length"
            )

    def generate(self, prompt: str, max_new_tokens: int) -> str:
        """Generates a continuation of a prompt, at most to the end of the context.

        Args:
            prompt: Text to continue.
            max_new_tokens: Maximum number of generated tokens.

        Returns:
            The prompt and its continuation.

        Raises:
            ValueError: If the prompt fills the context.
        """
        num_tokens = len(self._start_tokens) + len(self.encode(prompt))
        if num_tokens >= self.context:
            raise ValueError(
                "`prompt` must have fewer tokens than the model's context. Received: "
                f"{num_tokens} tokens and a context of {self.context}"
            )
        max_length = min(num_tokens + max_new_tokens, self.context)
        return str(self.causal_lm.generate(prompt, max_length=max_length))
