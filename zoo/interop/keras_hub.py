"""Language models of KerasHub, to be fine-tuned and scored as the zoo's own are.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

import types
from typing import Any

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
    """A KerasHub `CausalLM`, ready to write and to be fine-tuned by LoRA.

    Args:
        preset: a name that KerasHub knows, or a folder that `save_to_preset` wrote.
        rank: columns of the thin matrices, which alone are trainable; their products are still 0.
        seed: of the thin matrices; the same on every backend.
        dtype: a dtype or dtype policy; by default Keras' global one.
        sampler: KerasHub's name of its way to choose tokens.

    Raises:
        ImportError: if KerasHub is not installed.
        ValueError: for a preset of anything else, or one whose layers KerasHub does not adapt.
    """
    try:
        import keras_hub  # takes seconds, which --help need not
    except ImportError as error:
        raise ImportError(f'{error}. `pip install "keras-zoo[hub]"` installs KerasHub') from error
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
        # KerasHub would train the biases beside them, too, which `save_lora_weights` leaves out.
        variable.trainable = variable.name.startswith("lora_kernel")
        if variable.name == "lora_kernel_a":
            first = initializers.FanInUniform(seed, f"lora{number}")
            variable.assign(first(variable.shape))
    if not model.trainable_variables or set(model.input) != {"token_ids", "padding_mask"}:
        raise ValueError(
            "`preset` must be that of a model that reads text alone and has layers with one of the "
            f"names that KerasHub adapts: {', '.join(model.backbone.default_lora_layer_names())}. "
            f"Received: preset={preset}, a {type(model).__name__}"
        )
    model.compile(sampler=sampler)
    return model


class Reader:
    """A `CausalLM` as the zoo takes a language model: ids (B, T) in, logits (B, T, V) out.

    It reads the ids behind the token that the model's texts begin with, if they do. Nothing is
    dropped, in training either: the dropout of Keras draws numbers of the backend's own.
    """

    def __init__(self, model: Any):
        self.model, self.variables = model, model.variables
        self.tokenizer = model.preprocessor.tokenizer
        start = self.tokenizer.start_token_id if model.preprocessor.add_start_token else None
        self.start = [] if start is None else [start]
        longest = getattr(model.backbone, "max_sequence_length", None)
        self.context = longest or model.preprocessor.sequence_length

    def __call__(self, ids: Tensor, training: bool = False) -> Tensor:
        for start in self.start:
            ids = ops.pad(ids, [[0, 0], [1, 0]], constant_values=start)
        inputs = {"token_ids": ids, "padding_mask": ops.ones_like(ids)}
        return self.model(inputs, training=False)[:, len(self.start) :]

    @property
    def trained(self) -> types.SimpleNamespace:
        """What a training step and its checkpoints see of it; other weights are the preset's."""
        weights = self.model.trainable_variables
        return types.SimpleNamespace(
            variables=weights,
            trainable_variables=weights,
            non_trainable_variables=self.model.non_trainable_variables,
        )

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (T,) int32."""
        return np.asarray(self.tokenizer(text), np.int32)

    def check_length(self, length: int, train: int, test: int) -> None:
        """Raises ValueError unless pieces of `length` tokens fit the model and both texts."""
        longest = min(train, test, self.context) - 1
        if length > longest:
            raise ValueError(
                f"`length` must be at most {longest}: the model's context is {self.context} "
                f"tokens, and the text has {train} to train on and {test} held out. Received: "
                f"length={length}. Give a longer text or a smaller length"
            )

    def write(self, prompt: str, max_new_tokens: int) -> str:
        """The prompt and what the model writes after it, at most to the end of its context.

        Raises:
            ValueError: for a prompt that fills the context.
        """
        count = len(self.start) + len(self.encode(prompt))
        if count >= self.context:
            raise ValueError(
                "`prompt` must have fewer tokens than the model's context. Received: "
                f"{count} tokens and a context of {self.context}"
            )
        longest = min(count + max_new_tokens, self.context)
        return str(self.model.generate(prompt, max_length=longest))
