"""The workloads in JAX: functions of parameters, `jax.jit` and optax.

The parameters have the names, shapes and values of the zoo's weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, nn

from benchmarks import workloads
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling, Weights

Array = Any
Params = dict[str, Array]

# ------------------------------------------------------------------ layers


def dense(params: Params, name: str, x: Array) -> Array:
    return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]


def conv(params: Params, name: str, x: Array) -> Array:
    kernel = params[f"{name}/kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return y + params[f"{name}/bias"]


def max_pool(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def dropout(key: Array, x: Array, rate: float) -> Array:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def layer_norm(params: Params, name: str, x: Array) -> Array:
    x = nn.standardize(x, epsilon=1e-5)
    return x * params[f"{name}/gamma"] + params[f"{name}/beta"]


def split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, -1)


def attention(
    params: Params,
    name: str,
    x: Array,
    context: Array,
    heads: int,
    mask: Array | None = None,
    causal: bool = False,
) -> Array:
    q, k, v = (
        split_heads(dense(params, f"{name}/{part}", inputs), heads)
        for part, inputs in (("query", x), ("key", context), ("value", context))
    )
    y = nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return dense(params, f"{name}/output", y.reshape(x.shape))


def feed_forward(params: Params, name: str, x: Array, approximate: bool = False) -> Array:
    return dense(params, f"{name}/down", nn.gelu(dense(params, f"{name}/up", x), approximate))


def cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# ------------------------------------------------------------------ networks


def mlp(params: Params, x: Array, *_: Any) -> Array:
    return dense(params, "output", nn.relu(dense(params, "hidden1", x.reshape(len(x), -1))))


def cnn(params: Params, x: Array, key: Array, rate: float) -> Array:
    keys = jax.random.split(key)
    x = nn.relu(conv(params, "conv1", x))
    x = max_pool(nn.relu(conv(params, "conv2", x)))
    x = max_pool(nn.relu(conv(params, "conv3", x)))
    x = dropout(keys[0], x.reshape(len(x), -1), rate)
    x = dropout(keys[1], nn.relu(dense(params, "fc1", x)), rate)
    return dense(params, "fc2", x)


def lstm_step(params: Params, carry: Any, x: Array) -> Any:
    h, c = carry
    i, f, g, o = jnp.split(x + h @ params["rnn1/lstm_cell/recurrent_kernel"], 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def gru_step(params: Params, carry: Any, x: Array) -> Any:
    (h,) = carry
    recurrent = h @ params["rnn1/gru_cell/recurrent_kernel"] + params["rnn1/gru_cell/bias"][1]
    (z, r, n), (hz, hr, hn) = (jnp.split(y, 3, axis=-1) for y in (x, recurrent))
    z = nn.sigmoid(z + hz)
    h = z * h + (1 - z) * jnp.tanh(n + nn.sigmoid(r + hr) * hn)
    return (h,), h


def language_model(cell: str, params: Params, ids: Array) -> Array:
    step, states = (lstm_step, 2) if cell == "lstm" else (gru_step, 1)
    bias = params[f"rnn1/{cell}_cell/bias"]
    x = params["embedding/embeddings"][ids]
    x = x @ params[f"rnn1/{cell}_cell/kernel"] + (bias if cell == "lstm" else bias[0])
    zeros = jnp.zeros((len(ids), params[f"rnn1/{cell}_cell/recurrent_kernel"].shape[0]))
    _, h = lax.scan(partial(step, params), (zeros,) * states, x.swapaxes(0, 1))
    return dense(params, "output", h.swapaxes(0, 1))


def gpt(layers: int, heads: int, params: Params, ids: Array) -> Array:
    x = params["embedding/embeddings"][ids] + params["positions/table"][: ids.shape[1]]
    for block in (f"block{number}" for number in range(1, layers + 1)):
        y = layer_norm(params, f"{block}/attention_norm", x)
        x = x + attention(params, f"{block}/attention", y, y, heads, causal=True)
        y = layer_norm(params, f"{block}/feed_forward_norm", x)
        x = x + feed_forward(params, f"{block}/feed_forward", y, approximate=True)
    return layer_norm(params, "norm", x) @ params["embedding/embeddings"].T


def gpt_with_cache(
    layers: int, heads: int, params: Params, ids: Array, start: Array, caches: Any
) -> tuple[Array, Any]:
    """Logits after the next tokens, (B, V), and the updated caches, (B, capacity, heads, dim)."""
    positions = start + jnp.arange(ids.shape[1])
    mask = jnp.arange(caches[0][0].shape[1]) <= positions[:, None]  # (T, capacity)
    x = params["embedding/embeddings"][ids] + params["positions/table"][positions]
    updated = []
    for block, cache in zip((f"block{number}" for number in range(1, layers + 1)), caches):
        y = layer_norm(params, f"{block}/attention_norm", x)
        q, *kv = (
            split_heads(dense(params, f"{block}/attention/{part}", y), heads)
            for part in ("query", "key", "value")
        )
        k, v = (lax.dynamic_update_slice_in_dim(a, b, start, 1) for a, b in zip(cache, kv))
        y = nn.dot_product_attention(q, k, v, mask=mask[None, None])
        x = x + dense(params, f"{block}/attention/output", y.reshape(x.shape))
        y = layer_norm(params, f"{block}/feed_forward_norm", x)
        x = x + feed_forward(params, f"{block}/feed_forward", y, approximate=True)
        updated.append((k, v))
    return layer_norm(params, "norm", x[:, -1]) @ params["embedding/embeddings"].T, updated


# ------------------------------------------------------------------ text-to-image


def group_norm(params: Params, name: str, x: Array) -> Array:
    pixels = x.reshape(len(x), -1, 8, x.shape[-1] // 8)
    y = nn.standardize(pixels, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
    return y * params[f"{name}/gamma"] + params[f"{name}/beta"]


def residual(params: Params, name: str, x: Array, time: Array) -> Array:
    h = conv(params, f"{name}_conv1", nn.silu(group_norm(params, f"{name}_norm1", x)))
    scale, shift = jnp.split(dense(params, f"{name}_time", time)[:, None, None], 2, axis=-1)
    h = nn.silu(group_norm(params, f"{name}_norm2", h) * (1 + scale) + shift)
    h = conv(params, f"{name}_conv2", h)
    return h + (dense(params, f"{name}_skip", x) if f"{name}_skip/kernel" in params else x)


def pixel_attention(params: Params, name: str, x: Array, text: Array, mask: Array) -> Array:
    context = dense(params, f"{name}_context", text)
    heads = max(x.shape[-1] // 32, 1)
    h = x.reshape(len(x), -1, x.shape[-1])
    y = layer_norm(params, f"{name}/attention_norm", h)
    h = h + attention(params, f"{name}/attention", y, y, heads)
    y = layer_norm(params, f"{name}/cross_attention_norm", h)
    h = h + attention(params, f"{name}/cross_attention", y, context, heads, mask[:, None, None])
    y = layer_norm(params, f"{name}/feed_forward_norm", h)
    return (h + feed_forward(params, f"{name}/feed_forward", y)).reshape(x.shape)


def encode_text(params: Params, prompt: Array) -> tuple[Array, Array]:
    mask = prompt != 0
    x = params["words/embeddings"][prompt] + params["word_positions/table"][: prompt.shape[1]]
    y = layer_norm(params, "text_block1/attention_norm", x)
    x = x + attention(params, "text_block1/attention", y, y, 2, mask[:, None, None])
    y = layer_norm(params, "text_block1/feed_forward_norm", x)
    x = x + feed_forward(params, "text_block1/feed_forward", y)
    return layer_norm(params, "text_norm", x), mask


def unet(levels: int, params: Params, x: Array, time: Array, text: Array, mask: Array) -> Array:
    """x: (B, H, W, C); time: sinusoids, (B, dim); text and mask: outputs of `encode_text`."""
    weights = mask[..., None].astype(x.dtype)
    mean = (text * weights).sum(1) / weights.sum(1)
    time = dense(params, "time2", nn.silu(dense(params, "time1", time)))
    time = nn.silu(time + dense(params, "context_whole", mean))
    x, skips = conv(params, "conv_in", x), []
    for level in range(1, levels + 1):
        if level > 1:
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
        x = residual(params, f"down{level}_1", x, time)
        if level == levels:
            x = pixel_attention(params, f"down{level}_1_attention", x, text, mask)
        skips.append(x)
    x = residual(params, "middle1", x, time)
    x = pixel_attention(params, "middle_attention", x, text, mask)
    x = residual(params, "middle2", x, time)
    for level in range(levels, 0, -1):
        if level < levels:
            x = conv(params, f"up{level}_conv", x.repeat(2, axis=1).repeat(2, axis=2))
        x = residual(params, f"up{level}_1", jnp.concatenate([x, skips.pop()], -1), time)
        if level == levels:
            x = pixel_attention(params, f"up{level}_1_attention", x, text, mask)
    return conv(params, "conv_out", nn.silu(group_norm(params, "norm_out", x)))


def draw(
    key: Array, batch: dict[str, Array], prompts: Array, timesteps: int
) -> tuple[Array, Array, Array, Array]:
    """Images, time steps, noise and prompts of a training step."""
    keys = jax.random.split(key, 4)
    x0 = batch["image"] / 127.5 - 1
    offsets = (jax.random.uniform(keys[0]) + jnp.arange(len(x0)) / len(x0)) % 1
    numbers = jax.random.randint(keys[1], (len(x0),), 0, prompts.shape[1])
    prompt = prompts[batch["label"], numbers]
    dropped = jax.random.bernoulli(keys[2], 0.1, (len(x0), 1))
    prompt = jnp.where(dropped & (jnp.arange(prompt.shape[1]) > 0), 0, prompt)
    return x0, (offsets * timesteps).astype(int), jax.random.normal(keys[3], x0.shape), prompt


def diffusion_loss(workload: Diffusion) -> Callable[..., Array]:
    """Function of parameters, images in [-1, 1], time steps, noise and prompts."""
    signal, sigma = map(jnp.asarray, workloads.cosine_schedule(workload.timesteps))
    sinusoids = jnp.asarray(workloads.sinusoids(workload.timesteps, workload.channels[0]))

    def loss(params: Params, x0: Array, t: Array, noise: Array, prompt: Array) -> Array:
        a, s = signal[t][:, None, None, None], sigma[t][:, None, None, None]
        text = encode_text(params, prompt)
        v = unet(len(workload.channels), params, a * x0 + s * noise, sinusoids[t], *text)
        return jnp.square(v - (a * noise - s * x0)).mean()

    return loss


# ------------------------------------------------------------------ training and sampling


def training_step(
    workload: Images | Recurrent | GPT | Diffusion, weights: Weights
) -> Callable[[Any], Array]:
    """Function of a batch that trains and returns the loss."""
    optimizer: Any = optax.adam(1e-3)

    def loss_of(params: Params, batch: Any, key: Array) -> Array:
        x, y = batch
        return cross_entropy(forward(params, x, key), y)

    if isinstance(workload, Images):
        network = mlp if workload.model == "mlp" else cnn

        def forward(params: Params, x: Array, key: Array) -> Array:
            return network(params, x, key, workload.dropout)

        optimizer = optax.chain(optax.add_decayed_weights(workload.l2), optimizer)
    elif isinstance(workload, Recurrent):

        def forward(params: Params, x: Array, key: Array) -> Array:
            return language_model(workload.cell, params, x)

    elif isinstance(workload, GPT):

        def forward(params: Params, x: Array, key: Array) -> Array:
            return gpt(workload.layers, workload.heads, params, x)

        optimizer = optax.adamw(1e-3, weight_decay=workloads.DECAY)
    else:
        diffusion, prompts = diffusion_loss(workload), jnp.asarray(workload.prompts)

        def loss_of(params: Params, batch: Any, key: Array) -> Array:
            if not isinstance(batch, tuple):
                batch = draw(key, batch, prompts, workload.timesteps)
            return diffusion(params, *batch)

        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    has_average = isinstance(workload, Diffusion)

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Any) -> tuple[Any, Array]:
        params, optimizer_state, average, key = state
        key, step_key = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(params, batch, step_key)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        if has_average:
            average = optax.incremental_update(params, average, 1 - workloads.MOMENTUM)
        return (params, optimizer_state, average, key), loss

    params = {path: jnp.array(array) for path, array in weights.items()}
    average = jax.tree.map(jnp.copy, params) if has_average else None
    state = params, optimizer.init(params), average, jax.random.key(0)

    def step(batch: Any) -> Array:
        nonlocal state
        state, loss = update(state, batch)
        return loss

    return step


def generator(workload: Generation, weights: Weights) -> Callable[[], np.ndarray]:
    """Greedy decoding in one compiled loop."""
    sizes = workload.gpt
    step = partial(gpt_with_cache, sizes.layers, sizes.heads)
    shape = workload.batch_size, sizes.length, sizes.heads, sizes.width // sizes.heads

    @jax.jit
    def generate(params: Params, prompts: Array) -> Array:
        caches = [(jnp.zeros(shape), jnp.zeros(shape))] * sizes.layers
        logits, caches = step(params, prompts, 0, caches)

        def next_token(carry: Any, position: Array) -> Any:
            token, caches = carry
            logits, caches = step(params, token[:, None], position, caches)
            return (logits.argmax(-1), caches), token

        positions = workload.prompt + jnp.arange(workload.new_tokens - 1)
        (last, _), tokens = lax.scan(next_token, (logits.argmax(-1), caches), positions)
        return jnp.concatenate([tokens.T, last[:, None]], axis=1)

    params = {path: jnp.asarray(array) for path, array in weights.items()}
    return lambda: np.asarray(generate(params, workload.prompts))


def sampler(workload: Sampling, weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
    """Function of the initial noise, (B, H, W, C), that samples images in one compiled loop."""
    model = workload.model
    signal, sigma = map(jnp.asarray, workloads.cosine_schedule(model.timesteps))
    sinusoids = jnp.asarray(workloads.sinusoids(model.timesteps, model.channels[0]))
    network = partial(unet, len(model.channels))
    stride = model.timesteps // workload.steps

    @jax.jit
    def sample(params: Params, x: Array, prompt: Array) -> Array:
        text, mask = encode_text(params, jnp.concatenate([prompt.at[:, 1:].set(0), prompt]))

        def denoise(x: Array, t: Array) -> tuple[Array, None]:
            time = jnp.broadcast_to(sinusoids[t], (2 * len(x), sinusoids.shape[1]))
            v = network(params, jnp.concatenate([x, x]), time, text, mask)
            unconditional, conditional = jnp.split(v, 2)
            v = unconditional + workload.guidance_scale * (conditional - unconditional)
            x0 = jnp.clip(signal[t] * x - sigma[t] * v, -1, 1)
            noise = (x - signal[t] * x0) / sigma[t]
            s = t - stride
            return jnp.where(s < 0, x0, signal[s] * x0 + sigma[s] * noise), None

        times = jnp.arange(model.timesteps - 1, -1, -stride)
        return lax.scan(denoise, x, times)[0]

    params = {path: jnp.asarray(array) for path, array in weights.items()}
    return lambda noise: np.asarray(sample(params, noise, workload.prompts))
