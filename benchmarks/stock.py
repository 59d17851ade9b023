"""The workloads with Keras' own layers, losses and optimizers, and with KerasHub.

The models have the zoo's weights. A training step is one of `keras.Model.fit`.
"""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks import workloads
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling
from zoo.diffusion.prompts import empty_prompts

Tensor = Any


def set_weights(model: keras.Model, network: keras.Model) -> keras.Model:
    """Gives a model the weights of the zoo's model, which have the same names but for separators.

    Raises:
        ValueError: If the names differ.
    """
    weights = {_plain(path): array for path, array in workloads.weights_of(network).items()}
    variables = {_plain(v.path): v for v in model.trainable_variables}
    if weights.keys() != variables.keys():
        raise ValueError(
            "`model` must have the weights of `network`. Received: "
            f"{sorted(weights.keys() ^ variables.keys())}"
        )
    for name, variable in variables.items():
        variable.assign(weights[name].reshape(variable.shape))
    return model


def _plain(path: str) -> str:
    path = path.replace("attention_output", "output")
    return re.sub(r"[/_]", "", path)


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ------------------------------------------------------------------ models


def chain(inputs: Tensor, *steps: Callable[[Tensor], Tensor]) -> keras.Model:
    x = inputs
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def classifier(workload: Images) -> keras.Model:
    if workload.model == "mlp":
        return chain(
            keras.Input(workload.shape),
            layers.Flatten(),
            layers.Dense(512, "relu", name="hidden1"),
            layers.Dense(10, name="output"),
        )

    def conv(filters: int, name: str) -> keras.layers.Layer:
        return layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)

    return chain(
        keras.Input(workload.shape),
        conv(32, "conv1"),
        conv(64, "conv2"),
        layers.MaxPooling2D(),
        conv(128, "conv3"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(workload.dropout),
        layers.Dense(512, "relu", name="fc1"),
        layers.Dropout(workload.dropout),
        layers.Dense(10, name="fc2"),
    )


def language_model(workload: Recurrent) -> keras.Model:
    kind = {"lstm": layers.LSTM, "gru": layers.GRU}[workload.cell]
    return chain(
        keras.Input((None,), dtype="int32"),
        layers.Embedding(workload.vocabulary, workload.width, name="embedding"),
        kind(workload.width, return_sequences=True, name="rnn1"),
        layers.Dense(workload.vocabulary, name="output"),
    )


class PositionEmbedding(layers.Layer):
    """Adds a learned vector to each of `length` positions."""

    def __init__(self, length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.length = length

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=(self.length, input_shape[-1]), name="table")

    def call(self, x: Tensor) -> Tensor:
        return x + self.table


def transformer_block(
    x: Tensor,
    name: str,
    heads: int,
    inner: int,
    context: Tensor | None = None,
    mask: Tensor | None = None,
    context_mask: Tensor | None = None,
    causal: bool = False,
    gelu: Callable[[Tensor], Tensor] = keras.activations.gelu,
    epsilon: float = 1e-5,
) -> Tensor:
    """Block that normalizes first; cross-attention reads the context if there is one."""
    width = x.shape[-1]

    def norm(x: Tensor, part: str) -> Tensor:
        return layers.LayerNormalization(epsilon=epsilon, name=f"{name}_{part}_norm")(x)

    def attention(part: str) -> keras.layers.Layer:
        return layers.MultiHeadAttention(heads, width // heads, name=f"{name}_{part}")

    y = norm(x, "attention")
    x = x + attention("attention")(y, y, attention_mask=mask, use_causal_mask=causal)
    if context is not None:
        y = norm(x, "cross_attention")
        x = x + attention("cross_attention")(y, context, attention_mask=context_mask)
    y = layers.Dense(inner, gelu, name=f"{name}_feed_forward_up")(norm(x, "feed_forward"))
    return x + layers.Dense(width, name=f"{name}_feed_forward_down")(y)


def gpt(workload: GPT) -> keras.Model:
    def gelu(x: Tensor) -> Tensor:
        return ops.gelu(x, approximate=True)

    ids = keras.Input((workload.length,), dtype="int32")
    embedding = layers.ReversibleEmbedding(workload.vocabulary, workload.width, name="embedding")
    x = PositionEmbedding(workload.length, name="positions")(embedding(ids))
    for number in range(1, workload.layers + 1):
        x = transformer_block(
            x, f"block{number}", workload.heads, 4 * workload.width, causal=True, gelu=gelu
        )
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    return keras.Model(ids, embedding(x, reverse=True))


def text_to_image(workload: Diffusion) -> keras.Model:
    """Text encoder and U-Net as one model of images, time steps and prompts."""
    sizes, channels = workload.arguments, workload.channels
    table = workloads.sinusoids(workload.timesteps, channels[0])
    image = keras.Input(sizes["input_shape"], name="image")
    time = keras.Input((), dtype="int32", name="time")
    prompt = keras.Input((sizes["max_length"],), dtype="int32", name="prompt")

    words = layers.Embedding(sizes["vocabulary_size"], 64, name="words")(prompt)
    mask = ops.not_equal(prompt, 0)
    text = PositionEmbedding(sizes["max_length"], name="word_positions")(words)
    text = transformer_block(text, "text_block1", 2, 256, mask=mask[:, None])
    text = layers.LayerNormalization(epsilon=1e-5, name="text_norm")(text)

    def conv(x: Tensor, filters: int, name: str) -> Tensor:
        return layers.Conv2D(filters, 3, padding="same", name=name)(x)

    def group_norm(x: Tensor, name: str) -> Tensor:
        return layers.GroupNormalization(8, epsilon=1e-5, name=name)(x)

    def residual(x: Tensor, filters: int, name: str) -> Tensor:
        h = conv(ops.silu(group_norm(x, f"{name}_norm1")), filters, f"{name}_conv1")
        scale_shift = layers.Dense(2 * filters, name=f"{name}_time")(embedding)
        scale, shift = ops.split(scale_shift[:, None, None], 2, axis=-1)
        h = ops.silu(group_norm(h, f"{name}_norm2") * (1 + scale) + shift)
        h = conv(h, filters, f"{name}_conv2")
        if x.shape[-1] != filters:
            x = layers.Dense(filters, name=f"{name}_skip")(x)
        return x + h

    def attend(x: Tensor, name: str) -> Tensor:
        height, width, filters = x.shape[1:]
        context = layers.Dense(filters, name=f"{name}_context")(text)
        x = layers.Reshape((height * width, filters))(x)
        x = transformer_block(
            x, name, max(filters // 32, 1), 2 * filters, context, context_mask=mask[:, None]
        )
        return layers.Reshape((height, width, filters))(x)

    embedding = ops.take(table, time, axis=0)
    embedding = layers.Dense(4 * channels[0], "silu", name="time1")(embedding)
    embedding = layers.Dense(4 * channels[0], name="time2")(embedding)
    weights = ops.cast(mask, "float32")[..., None]
    mean = ops.sum(text * weights, 1) / ops.sum(weights, 1)
    embedding = ops.silu(embedding + layers.Dense(4 * channels[0], name="context_whole")(mean))
    x, skips = conv(image, channels[0], "conv_in"), []
    last = len(channels)
    for level, filters in enumerate(channels, 1):
        if level > 1:
            x = layers.AveragePooling2D(2)(x)
        x = residual(x, filters, f"down{level}_1")
        if level == last:
            x = attend(x, f"down{level}_1_attention")
        skips.append(x)
    x = residual(x, channels[-1], "middle1")
    x = attend(x, "middle_attention")
    x = residual(x, channels[-1], "middle2")
    for level, filters in reversed(list(enumerate(channels, 1))):
        if level < last:
            x = conv(layers.UpSampling2D()(x), filters, f"up{level}_conv")
        x = residual(layers.Concatenate()([x, skips.pop()]), filters, f"up{level}_1")
        if level == last:
            x = attend(x, f"up{level}_1_attention")
    x = conv(ops.silu(group_norm(x, "norm_out")), image.shape[-1], "conv_out")
    return keras.Model({"image": image, "time": time, "prompt": prompt}, x)


class DiffusionModel(keras.Model):
    """Squared error of each image, (B,), of the network's prediction of v.

    Args:
        network: Model of `text_to_image`.
        workload: Workload with its schedule and prompts.
    """

    def __init__(self, network: keras.Model, workload: Diffusion):
        super().__init__()
        self.network = network
        self._tables = workloads.cosine_schedule(workload.timesteps)
        self._prompts = workload.prompts
        self._generator = keras.random.SeedGenerator(0)

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        x0 = inputs["image"]
        if "noise" in inputs:
            t, noise, prompt = inputs["time"], inputs["noise"], inputs["prompt"]
        else:
            x0 = ops.cast(x0, "float32") / 127.5 - 1
            t, noise, prompt = self._draw(ops.shape(x0), inputs["label"])
        signal, sigma = (ops.take(table, t, axis=0)[:, None, None, None] for table in self._tables)
        noisy = {"image": signal * x0 + sigma * noise, "time": t, "prompt": prompt}
        v = self.network(noisy, training=training)
        return ops.mean(ops.square(v - (signal * noise - sigma * x0)), axis=(1, 2, 3))

    def _draw(self, shape: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, generator = shape[0], self._generator
        offsets = ops.cast(ops.arange(size), "float32") / ops.cast(size, "float32")
        fractions = (keras.random.uniform((1,), seed=generator) + offsets) % 1
        t = ops.cast(fractions * len(self._tables[0]), "int32")
        classes, count, length = self._prompts.shape
        numbers = ops.cast(keras.random.uniform((size,), seed=generator) * count, "int32")
        rows = self._prompts.reshape(classes * count, length)
        prompt = ops.take(rows, labels * count + numbers, axis=0)
        dropped = keras.random.uniform((size, 1), seed=generator) < 0.1
        prompt = ops.where(dropped, empty_prompts(1, length), prompt)
        return t, keras.random.normal(shape, seed=generator), prompt

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        return ops.mean(y_pred)


# ------------------------------------------------------------------ workloads


def trainer(workload: Images | Recurrent | GPT | Diffusion, network: keras.Model) -> keras.Model:
    """Compiled model with the weights of the zoo's network."""
    optimizers = keras.optimizers
    if isinstance(workload, Diffusion):
        model = DiffusionModel(set_weights(text_to_image(workload), network), workload)
        optimizer = optimizers.Adam(
            1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=workloads.MOMENTUM
        )
        model.compile(optimizer)
        return model
    if isinstance(workload, Images):
        model = set_weights(classifier(workload), network)
        optimizer = optimizers.Adam(1e-3, weight_decay=workload.l2, epsilon=1e-8)
    elif isinstance(workload, Recurrent):
        model = set_weights(language_model(workload), network)
        optimizer = optimizers.Adam(1e-3, epsilon=1e-8)
    else:
        model = set_weights(gpt(workload), network)
        optimizer = optimizers.AdamW(1e-3, weight_decay=workloads.DECAY, epsilon=1e-8)
    model.compile(optimizer, cross_entropy())
    return model


def sampler(workload: Sampling, network: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Function of the initial noise, (B, H, W, C), that calls `predict_on_batch` for each step."""
    model = set_weights(text_to_image(workload.model), network)
    signal, sigma = workloads.cosine_schedule(workload.model.timesteps)
    stride = workload.model.timesteps // workload.steps
    prompts = np.concatenate([empty_prompts(*workload.prompts.shape), workload.prompts])

    def sample(x: np.ndarray) -> np.ndarray:
        for t in range(workload.model.timesteps - 1, -1, -stride):
            time = np.full(2 * len(x), t, np.int32)
            inputs = {"image": np.concatenate([x, x]), "time": time, "prompt": prompts}
            unconditional, conditional = np.split(model.predict_on_batch(inputs), 2)
            v = unconditional + workload.guidance_scale * (conditional - unconditional)
            x0 = np.clip(signal[t] * x - sigma[t] * v, -1, 1)
            noise = (x - signal[t] * x0) / sigma[t]
            s = t - stride
            x = x0 if s < 0 else signal[s] * x0 + sigma[s] * noise
        return x

    return sample


# ------------------------------------------------------------------ KerasHub


def hub_gpt(sizes: GPT, network: keras.Model) -> Any:
    """KerasHub's GPT-2 with the zoo's weights."""
    from keras_hub.models import GPT2Backbone, GPT2CausalLM

    backbone = GPT2Backbone(
        sizes.vocabulary, sizes.layers, sizes.heads, sizes.width, 4 * sizes.width, dropout=0.0,
        max_sequence_length=sizes.length,
    )  # fmt: skip
    theirs = [*backbone.token_embedding.weights, *backbone.position_embedding.weights]
    ours = ["embedding/embeddings", "positions/table"]
    for number, block in enumerate(backbone.transformer_layers, 1):
        attention = block._self_attention_layer
        parts = {
            "attention_norm": block._self_attention_layer_norm,
            "attention/query": attention._query_dense,
            "attention/key": attention._key_dense,
            "attention/value": attention._value_dense,
            "attention/output": attention._output_dense,
            "feed_forward_norm": block._feedforward_layer_norm,
            "feed_forward/up": block._feedforward_intermediate_dense,
            "feed_forward/down": block._feedforward_output_dense,
        }
        for name, layer in parts.items():
            kinds = ("gamma", "beta") if name.endswith("norm") else ("kernel", "bias")
            ours += [f"block{number}/{name}/{kind}" for kind in kinds]
            theirs += layer.weights
    ours += ["norm/gamma", "norm/beta"]
    theirs += backbone.layer_norm.weights
    weights = workloads.weights_of(network)
    for path, variable in zip(ours, theirs, strict=True):
        variable.assign(weights[path].reshape(variable.shape))
    return GPT2CausalLM(backbone)


def hub_trainer(workload: GPT, network: keras.Model) -> keras.Model:
    """Compiled model of token ids alone."""
    causal_lm = hub_gpt(workload, network)
    ids = keras.Input((workload.length,), dtype="int32")
    logits = causal_lm({"token_ids": ids, "padding_mask": ops.ones_like(ids)})
    model = keras.Model(ids, logits)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=workloads.DECAY, epsilon=1e-8)
    model.compile(optimizer, cross_entropy())
    return model


def hub_generator(workload: Generation, network: keras.Model) -> Callable[[], np.ndarray]:
    """KerasHub's own `generate`."""
    model = hub_gpt(workload.gpt, network)
    model.compile(sampler="greedy")
    total = workload.prompt + workload.new_tokens
    ids = np.pad(workload.prompts, ((0, 0), (0, workload.new_tokens)))
    mask = np.tile(np.arange(total) < workload.prompt, (workload.batch_size, 1))

    def generate() -> np.ndarray:
        tokens = model.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)[
            "token_ids"
        ]
        return np.asarray(ops.convert_to_numpy(tokens))[:, workload.prompt :]

    return generate
