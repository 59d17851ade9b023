"""What each fast path in `zoo/backends` gains: results/fast_paths.json.

    python -m benchmarks.fast_paths --backends jax
    python -m benchmarks.fast_paths --paths winograd

A fast path is turned off by one switch, which replaces it by the plain way, mostly Keras' own. The
zoo with it and the zoo without it then do a row of `benchmarks.all` in turn. A gain above 1 means
that the path makes the row faster.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.all import ROWS, installed_version, machine, work
from benchmarks.all import Config as RowConfig
from benchmarks.contenders import BACKENDS, Contender, race, ratio

RESULTS = Path(__file__).parents[1] / "results" / "fast_paths.json"

# ------------------------------------------------------------------ switches
# Each replaces a fast path in the process that it is called in.


def use_shared(*functions: str) -> Callable[[], None]:
    """Switch to the implementations that the backends share, which are mostly Keras' own."""

    def switch() -> None:
        from zoo.backends import backend, common

        for function in functions:
            setattr(backend, function, getattr(common, function))

    return switch


def without_winograd() -> None:
    from zoo.backends import jax_convolution

    jax_convolution.winograd_conv = jax_convolution._matmul_conv


def with_returned_pages() -> None:
    from zoo.backends import backend

    backend.keep_malloc_pages = lambda: None


def with_keras_recurrence() -> None:
    from zoo.layers import recurrent

    del recurrent._FusedRNN.inner_loop


def with_keras_cross_entropy() -> None:
    from keras import ops

    from zoo.backends import backend

    def cross_entropy(labels: Any, logits: Any) -> Any:
        return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    backend.cross_entropy = cross_entropy


def with_keras_group_norm() -> None:
    """Moments over pixels and a group's channels at once, as Keras computes them."""
    from keras import ops

    from zoo.backends import backend

    def group_norm(layer: Any, inputs: Any, scale_shift: Any) -> Any:
        height, width, channels = inputs.shape[1:]
        groups = layer.groups
        x = ops.reshape(inputs, (-1, height, width, groups, channels // groups))
        mean, variance = ops.moments(x, axes=(1, 2, 4), keepdims=True)
        x = ops.reshape((x - mean) * ops.rsqrt(variance + layer.epsilon), ops.shape(inputs))
        x = x * layer.gamma + layer.beta
        if scale_shift is not None:
            scale, shift = ops.split(scale_shift[:, None, None], 2, axis=-1)
            x = x * (1 + scale) + shift
        return x

    backend.group_norm = group_norm


def with_keras_data() -> None:
    from zoo.backends import backend

    backend.as_dataset = lambda trainer, batches, class_weight=None: batches


def with_keras_step() -> None:
    from zoo.backends import backend

    del backend.TrainerMixin.train_step


def with_one_update_a_weight() -> None:
    from zoo.backends import common, torch
    from zoo.backends.torch_training import ForeachMixin

    del ForeachMixin._backend_update_step
    torch.adam_update = common.adam_update


def with_eager_decoding() -> None:
    from zoo.backends import torch

    torch.decode_function = torch.inference_function


def with_eager_sampling() -> None:
    from zoo.backends import torch

    torch.sampling_function = torch.inference_function


def with_decoding_by_kernels() -> None:
    """Decoding as a graph of TensorFlow's kernels, without XLA."""
    import tensorflow as tf

    from zoo.backends import tensorflow

    def decode_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        outputs = tf.function(lambda arrays, caches: function(arrays, caches)[0])

        def decode(arrays: Any, caches: Any) -> tuple[Any, Any]:
            return outputs(tf.nest.map_structure(tf.convert_to_tensor, arrays), caches), caches

        return decode

    tensorflow.decode_function = decode_function


def with_asynchronous_dispatch() -> None:
    import jax

    from zoo.backends import backend

    keep = backend.keep_malloc_pages

    def keep_and_dispatch() -> None:
        keep()
        jax.config.update("jax_cpu_enable_async_dispatch", True)

    backend.keep_malloc_pages = keep_and_dispatch


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class FastPath:
    """A fast path of a backend.

    Attributes:
        title: What it does.
        backends: Backends that have it.
        rows: Rows of `benchmarks.all` in which it matters.
        switch_off: Function that turns it off in this process.
    """

    title: str
    backends: tuple[str, ...]
    rows: tuple[str, ...]
    switch_off: Callable[[], None]


LANGUAGE = ("lstm", "gpt_train", "shakespeare")
PATHS = {
    "memory": FastPath(
        "freed memory kept by the C library", BACKENDS,
        ("mlp", "cnn_48x48", "lstm", "gpt_train", "unet_train"), with_returned_pages,
    ),
    "batches": FastPath(
        "batches without `tf.data` or a `DataLoader`", ("tensorflow", "torch"),
        ("mlp", "lstm"), with_keras_data,
    ),
    "recurrence": FastPath(
        "recurrent layers: fused kernels, or products moved out of the loop", BACKENDS,
        ("lstm", "gru"), with_keras_recurrence,
    ),
    "group_norm": FastPath(
        "group normalization from the moments of channels", BACKENDS,
        ("unet_train", "unet_sample"), with_keras_group_norm,
    ),
    "cross_entropy": FastPath(
        "cross-entropy without one-hot labels", BACKENDS, LANGUAGE, with_keras_cross_entropy
    ),
    "adam": FastPath(
        "Adam: all weights in one call, or a fused kernel", ("torch",),
        ("mlp", "cnn_48x48", "gpt_train", "unet_train"), with_one_update_a_weight,
    ),
    "adam_kernel": FastPath(
        "Adam's fused kernel", ("tensorflow",), ("mlp", "cnn_48x48", "gpt_train", "unet_train"),
        use_shared("adam_update"),
    ),
    "winograd": FastPath(
        "Winograd convolutions", ("jax",), ("cnn_48x48", "unet_train", "unet_sample"),
        without_winograd,
    ),
    "convolutions": FastPath(
        "convolutions as matrix products (Winograd or patches), or with their bias",
        ("jax", "torch"), ("cnn_48x48", "unet_train", "unet_sample"), use_shared("conv2d"),
    ),
    "pooling": FastPath(
        "max pooling by four slices", ("jax",), ("cnn_48x48",), use_shared("max_pool2d")
    ),
    "dense": FastPath(
        "dense layers: product and bias at once, or on rows", ("jax", "torch"),
        ("mlp", *LANGUAGE), use_shared("dense"),
    ),
    "attention": FastPath(
        "attention without copies, or causal in blocks of queries", ("jax", "torch"),
        ("gpt_train", "shakespeare"), use_shared("attention"),
    ),
    "dispatch": FastPath(
        "steps computed in the calling thread", ("jax",), ("mlp", "lstm", "gpt_train"),
        with_asynchronous_dispatch,
    ),
    "look_up": FastPath(
        "tables read without a check of signs", ("torch",), ("lstm", "shakespeare"),
        use_shared("look_up"),
    ),
    "step": FastPath(
        "a training step that walks over the weights once", ("torch",),
        ("mlp", "shakespeare", "unet_train"), with_keras_step,
    ),
    "captured_decoding": FastPath(
        "captured graphs in decoding", ("torch",), ("gpt_generate",), with_eager_decoding
    ),
    "captured_sampling": FastPath(
        "captured graphs in sampling", ("torch",), ("unet_sample",), with_eager_sampling
    ),
    "captured_augmentation": FastPath(
        "a captured graph of the augmentation, and its counter on the host", ("torch",),
        ("augmented",), use_shared("preprocessing_function", "host_integer"),
    ),
    "compiled_decoding": FastPath(
        "decoding compiled with XLA", ("tensorflow",), ("gpt_generate",), with_decoding_by_kernels
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Time the zoo with and without its fast paths, in turn."""

    paths: tuple[str, ...] = tuple(PATHS)
    """Names of the fast paths; by default all."""
    backends: tuple[str, ...] = BACKENDS
    """Backends that take part, if they are installed."""
    rounds: int = 11
    """Number of timed turns."""
    small: bool = False
    """Small sizes, for a trial run."""
    out: Path = RESULTS
    """JSON file to which the gains are added."""
    worker: tuple[str, str] | None = None
    """Internal: the row that this process does, and the path that is off or "none"."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.paths) - set(PATHS)):
            raise SystemExit(f"`paths` must be among {', '.join(PATHS)}. Received: {unknown}")


def gain(config: Config, path: str, row: str, backend: str) -> list[float]:
    """Quartiles of the speed with a path, relative to that without it."""
    command = ["-m", "benchmarks.fast_paths", *(["--small"] if config.small else [])]
    contenders = {
        off: Contender([*command, "--worker", row, off], backend) for off in ("none", path)
    }
    turns = race(contenders, warmup=2, rounds=config.rounds)
    return [round(number, 3) for number in ratio(turns[path], turns["none"])]


def main(config: Config) -> None:
    if config.worker:
        row, off = config.worker
        if off != "none":
            PATHS[off].switch_off()
        kind = "augmented" if row == "augmented" else "zoo"
        row = "cnn_48x48" if row == "augmented" else row
        work(RowConfig(rows=(row,), small=config.small), ROWS[row], kind)
        return
    table = Table("fast path", "backend", "row", "gain", "quartiles")
    content = json.loads(config.out.read_text()) if config.out.exists() else {"paths": {}}
    content["machine"] = machine()
    started = time.monotonic()
    for name in config.paths:
        path = PATHS[name]
        entry = content["paths"].setdefault(name, {"title": path.title, "gains": {}})
        for backend in (b for b in path.backends if b in config.backends and installed_version(b)):
            for row in path.rows:
                low, middle, high = gain(config, name, row, backend)
                entry["gains"][f"{backend} {row}"] = [low, middle, high]
                table.add_row(name, backend, row, f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
        config.out.write_text(json.dumps(content, indent=1) + "\n")
    Console().print(table)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main(tyro.cli(Config))
