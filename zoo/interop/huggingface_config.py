"""Settings of Hugging Face's GPT-2, Llama and Qwen2, and of its text generation.

Source: `configuration_gpt2.py`, `configuration_llama.py`, `configuration_qwen2.py` and
`modeling_rope_utils.py` of Hugging Face's transformers 5.
"""

from abc import abstractmethod
from collections.abc import Mapping, Set
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from zoo.interop.huggingface_schema import Settings, require

Size = Annotated[int, Field(ge=1, le=2**20)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Vocabulary = Annotated[int, Field(ge=1, le=2**24)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
TokenIds = int | list[int] | None

# ------------------------------------------------------------------ models

# Settings of text generation that old versions wrote into the config.json.
_GENERATION_KEYS = {
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip


class ModelSettings(Settings):
    """Settings that GPT-2, Llama and Qwen2 share."""

    no_effect = _GENERATION_KEYS | {
        # provenance, file format and execution
        "_name_or_path", "name_or_path", "architectures", "transformers_version", "_commit_hash",
        "torch_dtype", "dtype", "use_cache", "torchscript", "use_bfloat16", "tf_legacy_loss",
        "gradient_checkpointing", "attn_implementation", "_attn_implementation",
        "_attn_implementation_autoset", "_attn_implementation_internal", "_flash_attn_2_enabled",
        "experts_implementation", "_experts_implementation", "chunk_size_feed_forward",
        "output_attentions", "_output_attentions", "output_hidden_states", "output_past",
        "return_dict", "xla_device", "loss_type", "unsloth_fixed", "unsloth_version",
        "transformers.js_config",
        # tokens, other tasks and training
        "bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class",
        "prefix", "task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id",
        "num_labels", "_num_labels", "is_decoder", "cross_attention_hidden_size",
        "tie_encoder_decoder", "initializer_range",
    }  # fmt: skip
    only_value: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": False, "add_cross_attention": False, "pruned_heads": {},
    }  # fmt: skip

    model_type: str
    eos_token_id: TokenIds = None

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `zoo.gpt`."""


# Activations of GPT-2 and of the zoo; the first name of each is the one to save.
GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
}  # fmt: skip


def _alias(default: int, *names: str) -> Any:
    return Field(default, validation_alias=AliasChoices(*names))


class GPT2Settings(ModelSettings):
    """Settings of a GPT-2."""

    no_effect = ModelSettings.no_effect | {
        "n_ctx", "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn",
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout", "predict_special_tokens",
    }  # fmt: skip
    only_value: ClassVar[Mapping[str, Any]] = {
        **ModelSettings.only_value,
        "scale_attn_by_inverse_layer_idx": False, "n_special": 0,
    }  # fmt: skip

    model_type: Literal["gpt2"]
    vocab_size: Vocabulary = 50257
    n_positions: Size = _alias(1024, "n_positions", "max_position_embeddings")
    n_embd: Size = _alias(768, "n_embd", "hidden_size")
    n_layer: Layers = _alias(12, "n_layer", "num_hidden_layers")
    n_head: Size = _alias(12, "n_head", "num_attention_heads")
    n_inner: Size | None = None
    activation_function: Literal[*GPT2_ACTIVATIONS] = "gelu_new"  # type: ignore[valid-type]
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: Literal[True] = True
    tie_word_embeddings: bool = True
    eos_token_id: TokenIds = 50256

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        require(
            self.n_embd % self.n_head == 0, "`n_embd` must be divisible by `n_head`",
            n_embd=self.n_embd, n_head=self.n_head,
        )  # fmt: skip
        return self

    def arguments(self) -> dict[str, Any]:
        return {
            "vocabulary_size": self.vocab_size, "max_length": self.n_positions,
            "num_layers": self.n_layer, "num_heads": self.n_head, "hidden_dim": self.n_embd,
            "intermediate_dim": self.n_inner or 4 * self.n_embd,
            "activation": GPT2_ACTIVATIONS[self.activation_function],
            "epsilon": self.layer_norm_epsilon, "tie_embeddings": self.tie_word_embeddings,
        }  # fmt: skip


class RopeSettings(Settings):
    """Settings of rotary embeddings: `rope_scaling`, or `rope_parameters` of transformers 5."""

    no_effect: ClassVar[Set[str]] = {"type"}  # the older name of `rope_type`; see `_rename_type`
    only_value: ClassVar[Mapping[str, Any]] = {"partial_rotary_factor": 1.0}
    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: Positive | None = None
    factor: Annotated[float, Field(ge=1, le=1e6)] | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename_type(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("type") is None:
            return data
        rope_type = data.get("rope_type", data["type"])
        require(
            rope_type == data["type"], "`rope_type` must equal its older name `type`",
            rope_type=rope_type, type=data["type"],
        )  # fmt: skip
        return {**data, "rope_type": rope_type}

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        needed = {"default": (), "linear": names[:1], "llama3": names}[self.rope_type]
        for name in (*names, "original_max_position_embeddings"):
            value = getattr(self, name)
            is_optional = self.rope_type == "llama3" and name not in needed
            verb = "be given" if name in needed else "not be given"
            require(
                is_optional or (value is not None) == (name in needed),
                f"`{name}` must {verb} with the rope_type {self.rope_type}", **{name: value},
            )  # fmt: skip
        if self.low_freq_factor is not None and self.high_freq_factor is not None:
            require(
                self.low_freq_factor < self.high_freq_factor,
                "`low_freq_factor` must be below `high_freq_factor`",
                low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor,
            )  # fmt: skip
        return self

    def scaling(self, max_length: int) -> dict[str, Any] | None:
        """Returns the `rotary_scaling` of `zoo.gpt` for a context of `max_length` tokens."""
        if self.rope_type == "default":
            return None
        if self.rope_type == "linear":
            return {"type": "linear", "factor": self.factor}
        return {
            "type": "llama3", "factor": self.factor, "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_length": self.original_max_position_embeddings or max_length,
        }  # fmt: skip


class RotarySettings(ModelSettings):
    """Settings that Llama and Qwen2 share."""

    no_effect = ModelSettings.no_effect | {"attention_dropout"}
    only_value: ClassVar[Mapping[str, Any]] = {
        **ModelSettings.only_value, "partial_rotary_factor": 1.0,
    }  # fmt: skip

    vocab_size: Vocabulary
    hidden_size: Size = 4096
    intermediate_size: Size
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None
    head_dim: Size | None = None
    hidden_act: Literal["silu", "swish"] = "silu"
    max_position_embeddings: Size
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: Positive = 10000.0
    rope_scaling: RopeSettings | None = None
    rope_parameters: RopeSettings | None = None

    @field_validator("rope_scaling", "rope_parameters", mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        return value or None

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads or 1
        require(
            heads % kv_heads == 0,
            "`num_attention_heads` must be divisible by `num_key_value_heads`",
            num_attention_heads=heads, num_key_value_heads=kv_heads,
        )  # fmt: skip
        require(
            self.head_dim is not None or self.hidden_size % heads == 0,
            "`hidden_size` must be divisible by `num_attention_heads` unless `head_dim` is given",
            hidden_size=self.hidden_size, num_attention_heads=heads,
        )  # fmt: skip
        head_dim = self.head_dim or self.hidden_size // heads
        require(head_dim % 2 == 0, "`head_dim` must be even", head_dim=head_dim)
        require(
            self.rope_scaling is None or self.rope_parameters is None,
            "`rope_scaling` must not be given beside its newer name `rope_parameters`",
            rope_scaling=self.rope_scaling, rope_parameters=self.rope_parameters,
        )  # fmt: skip
        return self

    def arguments(self) -> dict[str, Any]:
        rope = self.rope_scaling or self.rope_parameters or RopeSettings()
        heads = self.num_attention_heads
        return {
            "vocabulary_size": self.vocab_size, "max_length": self.max_position_embeddings,
            "num_layers": self.num_hidden_layers, "num_heads": heads,
            "num_kv_heads": self.num_key_value_heads or heads,
            "head_dim": self.head_dim or self.hidden_size // heads,
            "hidden_dim": self.hidden_size, "intermediate_dim": self.intermediate_size,
            "activation": "swiglu", "norm": "rms_norm", "positions": "rotary",
            "rotary_base": rope.rope_theta or self.rope_theta,
            "rotary_scaling": rope.scaling(self.max_position_embeddings),
            "epsilon": self.rms_norm_eps, "use_bias": False,
            "tie_embeddings": self.tie_word_embeddings,
        }  # fmt: skip


class LlamaSettings(RotarySettings):
    """Settings of a Llama."""

    no_effect = RotarySettings.no_effect | {
        "pretraining_tp", "max_sequence_length", "is_llama_config",
    }  # fmt: skip
    only_value: ClassVar[Mapping[str, Any]] = {
        **RotarySettings.only_value, "rope_interleaved": False,
    }  # fmt: skip

    model_type: Literal["llama"]
    vocab_size: Vocabulary = 32000
    intermediate_size: Size = 11008
    num_key_value_heads: Size | None = None
    max_position_embeddings: Size = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: TokenIds = 2

    def arguments(self) -> dict[str, Any]:
        biases = {"use_bias": self.mlp_bias, "attention_bias": self.attention_bias}
        return {**super().arguments(), **biases}


class Qwen2Settings(RotarySettings):
    """Settings of a Qwen2, a Llama with biases of the queries, keys and values."""

    # Windows are used with `use_sliding_window` only.
    no_effect = RotarySettings.no_effect | {"sliding_window", "max_window_layers"}
    only_value: ClassVar[Mapping[str, Any]] = {
        **RotarySettings.only_value, "use_sliding_window": False, "use_mrope": False,
    }  # fmt: skip

    model_type: Literal["qwen2"]
    vocab_size: Vocabulary = 151936
    intermediate_size: Size = 22016
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32768
    layer_types: list[Literal["full_attention"]] | None = None

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "attention_bias": "qkv"}


# ------------------------------------------------------------------ generation


# Settings that are used with `do_sample` only: those of which one value is supported, and fields.
_SAMPLING_VALUES = {
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_p": 0.0,
}  # fmt: skip
_SAMPLING_KEYS = {*_SAMPLING_VALUES, "temperature", "top_k", "top_p", "top_h"}


class GenerationSettings(Settings):
    """Settings of a `generation_config.json`."""

    no_effect: ClassVar[Set[str]] = {
        "_from_model_config", "transformers_version", "trust_remote_code", "bos_token_id",
        "pad_token_id", "decoder_start_token_id", "remove_invalid_values",
        # lengths and outputs, which the caller of `stream` decides
        "max_length", "max_new_tokens", "max_time", "return_dict_in_generate", "output_attentions",
        "output_hidden_states", "output_scores", "output_logits",
        # caches and compilation
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory",
        "prefill_chunk_size", "compile_config", "disable_compile",
        # several beams
        "early_stopping", "length_penalty", "diversity_penalty",
        # assistant models, which draft tokens
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    }  # fmt: skip
    only_value: ClassVar[Mapping[str, Any]] = {
        "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
        "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0,
        "renormalize_logits": False, "guidance_scale": 1.0, "token_healing": False,
        **_SAMPLING_VALUES,
    }  # fmt: skip

    do_sample: bool | None = None
    temperature: Annotated[float, Field(gt=0, le=1e6)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**24)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    eos_token_id: TokenIds = None

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("do_sample") not in (None, False):
            return data
        return {key: value for key, value in data.items() if key not in _SAMPLING_KEYS}

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `zoo.generation.sampling.stream`."""
        eos = self.eos_token_id
        options: dict[str, Any] = {
            "stop_tokens": eos if isinstance(eos, list) else [] if eos is None else [eos]
        }
        if self.repetition_penalty not in (None, 1):
            options["repetition_penalty"] = self.repetition_penalty
        if not self.do_sample:
            return {**options, "temperature": 0.0}
        options["temperature"] = 1.0 if self.temperature is None else self.temperature
        top_k = 50 if self.top_k is None else self.top_k  # Hugging Face's default
        if top_k:
            options["top_k"] = top_k
        if self.top_p is not None:
            options["top_p"] = self.top_p
        return options
