"""The workloads in TensorFlow: `tf.Variable`s, `tf.function` and an optimizer of `tf.keras`.

The variables have the names, shapes and values of the zoo's weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python.xla import dynamic_update_slice

from benchmarks import workloads
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling, Weights

Tensor = Any
Params = dict[str, Tensor]

# ------------------------------------------------------------------ layers


def dense(params: Params, name: str, x: Tensor) -> Tensor:
    kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
    outputs = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel) + bias
    return tf.reshape(outputs, tf.concat([tf.shape(x)[:-1], [kernel.shape[-1]]], 0))


def conv(params: Params, name: str, x: Tensor) -> Tensor:
    kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    gamma, beta = params[f"{name}/gamma"], params[f"{name}/beta"]
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads·dim) to (B, heads, T, dim)."""
    shape = [tf.shape(x)[0], tf.shape(x)[1], heads, x.shape[-1] // heads]
    return tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of (B, heads, T, dim), joined to (B, T, heads·dim)."""
    scores = tf.matmul(q, k, transpose_b=True) * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = tf.where(mask, scores, -1e9)
    y = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3])
    return tf.reshape(y, [tf.shape(y)[0], tf.shape(y)[1], y.shape[2] * y.shape[3]])


def attention(
    params: Params, name: str, x: Tensor, context: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    q, k, v = (
        split_heads(dense(params, f"{name}/{part}", inputs), heads)
        for part, inputs in (("query", x), ("key", context), ("value", context))
    )
    return dense(params, f"{name}/output", attend(q, k, v, mask))


def feed_forward(params: Params, name: str, x: Tensor, approximate: bool = False) -> Tensor:
    return dense(params, f"{name}/down", tf.nn.gelu(dense(params, f"{name}/up", x), approximate))


def look_up(params: Params, name: str, ids: Tensor) -> Tensor:
    return tf.gather(params[name], ids)


# ------------------------------------------------------------------ networks


def mlp(params: Params, x: Tensor) -> Tensor:
    x = tf.reshape(x, [-1, 784])
    return dense(params, "output", tf.nn.relu(dense(params, "hidden1", x)))


def cnn(params: Params, x: Tensor, rate: float) -> Tensor:
    x = tf.nn.relu(conv(params, "conv1", x))
    x = tf.nn.max_pool2d(tf.nn.relu(conv(params, "conv2", x)), 2, 2, "VALID")
    x = tf.nn.max_pool2d(tf.nn.relu(conv(params, "conv3", x)), 2, 2, "VALID")
    x = tf.nn.dropout(tf.reshape(x, [-1, 12 * 12 * 128]), rate)
    x = tf.nn.dropout(tf.nn.relu(dense(params, "fc1", x)), rate)
    return dense(params, "fc2", x)


def lstm_step(params: Params, states: Any, x: Tensor) -> Any:
    h, c = states
    gates = x + tf.matmul(h, params["rnn1/lstm_cell/recurrent_kernel"])
    i, f, g, o = tf.split(gates, 4, -1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c


def gru_step(params: Params, states: Any, x: Tensor) -> Any:
    (h,) = states
    bias = params["rnn1/gru_cell/bias"][1]
    recurrent = tf.matmul(h, params["rnn1/gru_cell/recurrent_kernel"]) + bias
    (z, r, n), (hz, hr, hn) = (tf.split(y, 3, -1) for y in (x, recurrent))
    z = tf.sigmoid(z + hz)
    return (z * h + (1 - z) * tf.tanh(n + tf.sigmoid(r + hr) * hn),)


def language_model(cell: str, params: Params, ids: Tensor) -> Tensor:
    step, states = (lstm_step, 2) if cell == "lstm" else (gru_step, 1)
    kernel, bias = params[f"rnn1/{cell}_cell/kernel"], params[f"rnn1/{cell}_cell/bias"]
    units = params[f"rnn1/{cell}_cell/recurrent_kernel"].shape[0]
    x = tf.tensordot(look_up(params, "embedding/embeddings", ids), kernel, 1)
    x = tf.transpose(x + (bias if cell == "lstm" else bias[0]), [1, 0, 2])
    zeros = tf.zeros([tf.shape(ids)[0], units])
    h, *_ = tf.scan(partial(step, params), x, (zeros,) * states)
    return dense(params, "output", tf.transpose(h, [1, 0, 2]))


def gpt(layers: int, heads: int, params: Params, ids: Tensor) -> Tensor:
    length = ids.shape[1]
    mask = tf.linalg.band_part(tf.ones([length, length], tf.bool), -1, 0)
    x = look_up(params, "embedding/embeddings", ids) + params["positions/table"][:length]
    for block in (f"block{number}" for number in range(1, layers + 1)):
        y = layer_norm(params, f"{block}/attention_norm", x)
        x += attention(params, f"{block}/attention", y, y, heads, mask)
        y = layer_norm(params, f"{block}/feed_forward_norm", x)
        x += feed_forward(params, f"{block}/feed_forward", y, approximate=True)
    return tied_logits(params, layer_norm(params, "norm", x))


def tied_logits(params: Params, x: Tensor) -> Tensor:
    return tf.tensordot(x, params["embedding/embeddings"], [[-1], [1]])


def gpt_with_cache(
    layers: int, heads: int, params: Params, ids: Tensor, start: Tensor, caches: Any
) -> tuple[Tensor, Any]:
    """Logits after the next tokens, (B, V), and the updated caches, (B, heads, capacity, dim)."""
    positions = start + tf.range(ids.shape[1])
    capacity = caches[0][0].shape[2]
    mask = tf.range(capacity) <= positions[:, None]  # (T, capacity)
    x = look_up(params, "embedding/embeddings", ids) + look_up(params, "positions/table", positions)
    updated = []
    for block, cache in zip((f"block{number}" for number in range(1, layers + 1)), caches):
        y = layer_norm(params, f"{block}/attention_norm", x)
        q, *kv = (
            split_heads(dense(params, f"{block}/attention/{part}", y), heads)
            for part in ("query", "key", "value")
        )
        k, v = (update_slice(a, b, start) for a, b in zip(cache, kv))
        x += dense(params, f"{block}/attention/output", attend(q, k, v, mask))
        y = layer_norm(params, f"{block}/feed_forward_norm", x)
        x += feed_forward(params, f"{block}/feed_forward", y, approximate=True)
        updated.append((k, v))
    return tied_logits(params, layer_norm(params, "norm", x[:, -1])), updated


def update_slice(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    return dynamic_update_slice(cache, new, tf.stack([0, 0, start, 0]))


# ------------------------------------------------------------------ text-to-image


def group_norm(params: Params, name: str, x: Tensor) -> Tensor:
    _, height, width, channels = x.shape
    grouped = tf.reshape(x, [-1, height, width, 8, channels // 8])
    mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
    y = tf.reshape((grouped - mean) * tf.math.rsqrt(variance + 1e-5), tf.shape(x))
    return y * params[f"{name}/gamma"] + params[f"{name}/beta"]


def residual(params: Params, name: str, x: Tensor, time: Tensor) -> Tensor:
    h = conv(params, f"{name}_conv1", tf.nn.silu(group_norm(params, f"{name}_norm1", x)))
    scale, shift = tf.split(dense(params, f"{name}_time", time)[:, None, None], 2, -1)
    h = tf.nn.silu(group_norm(params, f"{name}_norm2", h) * (1 + scale) + shift)
    h = conv(params, f"{name}_conv2", h)
    return h + (dense(params, f"{name}_skip", x) if f"{name}_skip/kernel" in params else x)


def pixel_attention(params: Params, name: str, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    context = dense(params, f"{name}_context", text)
    _, height, width, channels = x.shape
    heads = max(channels // 32, 1)
    h = tf.reshape(x, [-1, height * width, channels])
    y = layer_norm(params, f"{name}/attention_norm", h)
    h += attention(params, f"{name}/attention", y, y, heads)
    y = layer_norm(params, f"{name}/cross_attention_norm", h)
    h += attention(params, f"{name}/cross_attention", y, context, heads, mask[:, None, None])
    y = layer_norm(params, f"{name}/feed_forward_norm", h)
    return tf.reshape(h + feed_forward(params, f"{name}/feed_forward", y), tf.shape(x))


def encode_text(params: Params, prompt: Tensor) -> tuple[Tensor, Tensor]:
    mask = prompt != 0
    x = look_up(params, "words/embeddings", prompt)
    x += params["word_positions/table"][: prompt.shape[1]]
    y = layer_norm(params, "text_block1/attention_norm", x)
    x += attention(params, "text_block1/attention", y, y, 2, mask[:, None, None])
    y = layer_norm(params, "text_block1/feed_forward_norm", x)
    x += feed_forward(params, "text_block1/feed_forward", y)
    return layer_norm(params, "text_norm", x), mask


def upsample(x: Tensor) -> Tensor:
    _, height, width, _ = x.shape
    return tf.image.resize(x, [2 * height, 2 * width], "nearest")


def unet(
    levels: int, params: Params, x: Tensor, time: Tensor, text: Tensor, mask: Tensor
) -> Tensor:
    """x: (B, H, W, C); time: sinusoids, (B, dim); text and mask: outputs of `encode_text`."""
    weights = tf.cast(mask[..., None], x.dtype)
    mean = tf.reduce_sum(text * weights, 1) / tf.reduce_sum(weights, 1)
    time = dense(params, "time2", tf.nn.silu(dense(params, "time1", time)))
    time = tf.nn.silu(time + dense(params, "context_whole", mean))
    x, skips = conv(params, "conv_in", x), []
    for level in range(1, levels + 1):
        if level > 1:
            x = tf.nn.avg_pool2d(x, 2, 2, "VALID")
        x = residual(params, f"down{level}_1", x, time)
        if level == levels:
            x = pixel_attention(params, f"down{level}_1_attention", x, text, mask)
        skips.append(x)
    x = residual(params, "middle1", x, time)
    x = pixel_attention(params, "middle_attention", x, text, mask)
    x = residual(params, "middle2", x, time)
    for level in range(levels, 0, -1):
        if level < levels:
            x = conv(params, f"up{level}_conv", upsample(x))
        x = residual(params, f"up{level}_1", tf.concat([x, skips.pop()], -1), time)
        if level == levels:
            x = pixel_attention(params, f"up{level}_1_attention", x, text, mask)
    return conv(params, "conv_out", tf.nn.silu(group_norm(params, "norm_out", x)))


def draw(batch: dict[str, Tensor], prompts: Tensor, timesteps: int) -> tuple[Tensor, ...]:
    """Images, time steps, noise and prompts of a training step."""
    x0 = tf.cast(batch["image"], tf.float32) / 127.5 - 1
    size = tf.shape(x0)[0]
    offsets = tf.cast(tf.range(size), tf.float32) / tf.cast(size, tf.float32)
    t = tf.cast((tf.random.uniform([]) + offsets) % 1 * timesteps, tf.int32)
    numbers = tf.random.uniform([size], 0, prompts.shape[1], tf.int32)
    prompt = tf.gather_nd(prompts, tf.stack([batch["label"], numbers], 1))
    dropped = tf.random.uniform([size, 1]) < 0.1
    prompt = tf.where(dropped & (tf.range(prompt.shape[1]) > 0), 0, prompt)
    return x0, t, tf.random.normal(tf.shape(x0)), prompt


def diffusion_loss(workload: Diffusion) -> Callable[..., Tensor]:
    """Function of parameters, images in [-1, 1], time steps, noise and prompts."""
    signal, sigma = map(tf.constant, workloads.cosine_schedule(workload.timesteps))
    sinusoids = tf.constant(workloads.sinusoids(workload.timesteps, workload.channels[0]))

    def loss(params: Params, x0: Tensor, t: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        a, s = (tf.gather(table, t)[:, None, None, None] for table in (signal, sigma))
        text = encode_text(params, prompt)
        time = tf.gather(sinusoids, t)
        v = unet(len(workload.channels), params, a * x0 + s * noise, time, *text)
        return tf.reduce_mean(tf.square(v - (a * noise - s * x0)))

    return loss


# ------------------------------------------------------------------ training and sampling


def variables(weights: Weights) -> Params:
    return {path: tf.Variable(array) for path, array in weights.items()}


def training_step(
    workload: Images | Recurrent | GPT | Diffusion, weights: Weights
) -> Callable[[Any], Tensor]:
    """Function of a batch that trains and returns the loss."""
    params = variables(weights)
    adam, adamw = tf.keras.optimizers.Adam, tf.keras.optimizers.AdamW
    if isinstance(workload, Diffusion):
        optimizer = adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=workloads.MOMENTUM)
        diffusion, prompts = diffusion_loss(workload), tf.constant(workload.prompts)

        def loss_of(batch: Any) -> Tensor:
            drawn = batch if isinstance(batch, tuple) else draw(batch, prompts, workload.timesteps)
            return diffusion(params, *drawn)

    else:
        if isinstance(workload, Images):
            forward = partial(mlp, params)
            if workload.model == "cnn_48x48":
                forward = partial(cnn, params, rate=workload.dropout)
            optimizer = adam(1e-3, epsilon=1e-8, weight_decay=workload.l2)
        elif isinstance(workload, Recurrent):
            forward = partial(language_model, workload.cell, params)
            optimizer = adam(1e-3, epsilon=1e-8)
        else:
            forward = partial(gpt, workload.layers, workload.heads, params)
            optimizer = adamw(1e-3, weight_decay=workloads.DECAY, epsilon=1e-8)

        def loss_of(batch: Any) -> Tensor:
            x, y = batch
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, forward(x))
            return tf.reduce_mean(losses)

    trained = list(params.values())

    @tf.function
    def step(batch: Any) -> Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(batch)
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained))
        return loss

    optimizer.build(trained)
    return lambda batch: step(tf.nest.map_structure(tf.convert_to_tensor, batch))


def generator(workload: Generation, weights: Weights) -> Callable[[], np.ndarray]:
    """Greedy decoding in one compiled loop."""
    params, sizes = variables(weights), workload.gpt
    step = partial(gpt_with_cache, sizes.layers, sizes.heads, params)
    shape = workload.batch_size, sizes.heads, sizes.length, sizes.width // sizes.heads

    @tf.function(jit_compile=True)
    def generate(prompts: Tensor) -> Tensor:
        caches = [(tf.zeros(shape), tf.zeros(shape)) for _ in range(sizes.layers)]
        logits, caches = step(prompts, 0, caches)
        first = tf.argmax(logits, -1, tf.int32)
        tokens = tf.zeros([workload.new_tokens, workload.batch_size], tf.int32)
        tokens = tf.tensor_scatter_nd_update(tokens, [[0]], first[None])

        def body(number: Tensor, token: Tensor, tokens: Tensor, caches: Any) -> Any:
            logits, caches = step(token[:, None], workload.prompt + number, caches)
            token = tf.argmax(logits, -1, tf.int32)
            index = tf.reshape(number + 1, [1, 1])
            tokens = tf.tensor_scatter_nd_update(tokens, index, token[None])
            return number + 1, token, tokens, caches

        last = workload.new_tokens - 1
        *_, tokens, _ = tf.while_loop(
            lambda number, *_: number < last, body, (tf.constant(0), first, tokens, caches),
            maximum_iterations=last,
        )  # fmt: skip
        return tf.transpose(tokens)

    prompts = tf.constant(workload.prompts)
    return lambda: generate(prompts).numpy()


def sampler(workload: Sampling, weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
    """Function of the initial noise, (B, H, W, C), that samples images in one graph."""
    params, model = variables(weights), workload.model
    signal, sigma = map(tf.constant, workloads.cosine_schedule(model.timesteps))
    sinusoids = tf.constant(workloads.sinusoids(model.timesteps, model.channels[0]))
    stride = model.timesteps // workload.steps

    @tf.function
    def sample(x: Tensor, prompt: Tensor) -> Tensor:
        empty = tf.concat([prompt[:, :1], tf.zeros_like(prompt[:, 1:])], 1)
        text, mask = encode_text(params, tf.concat([empty, prompt], 0))

        def denoise(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            time = tf.repeat(sinusoids[t][None], 2 * workload.batch_size, 0)
            v = unet(len(model.channels), params, tf.concat([x, x], 0), time, text, mask)
            unconditional, conditional = tf.split(v, 2)
            v = unconditional + workload.guidance_scale * (conditional - unconditional)
            x0 = tf.clip_by_value(signal[t] * x - sigma[t] * v, -1, 1)
            noise = (x - signal[t] * x0) / sigma[t]
            s = tf.maximum(t - stride, 0)
            return t - stride, tf.where(t < stride, x0, signal[s] * x0 + sigma[s] * noise)

        return tf.while_loop(lambda t, x: t >= 0, denoise, (model.timesteps - 1, x))[1]

    prompt = tf.constant(workload.prompts)
    return lambda noise: sample(tf.constant(noise), prompt).numpy()
