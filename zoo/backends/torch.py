"""PyTorch backend: eager execution, fused kernels of recurrent layers and of attention."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.backends import common
from zoo.backends.common import keep_malloc_pages as keep_malloc_pages
from zoo.backends.common import max_pool2d as max_pool2d
from zoo.backends.exporting import is_exporting
from zoo.backends.torch_capture import captured, capturing, is_capturing
from zoo.backends.torch_cluster import broadcast as broadcast
from zoo.backends.torch_cluster import join_cluster as join_cluster
from zoo.backends.torch_cluster import leave_cluster as leave_cluster
from zoo.backends.torch_sharding import assigning_alone as assigning_alone
from zoo.backends.torch_sharding import broadcast_variables as broadcast_variables
from zoo.backends.torch_sharding import is_sharding as is_sharding
from zoo.backends.torch_sharding import sharded_model as sharded_model
from zoo.backends.torch_sharding import shards_among_workers as shards_among_workers
from zoo.backends.torch_training import ForeachMixin as ForeachMixin
from zoo.backends.torch_training import TrainerMixin as TrainerMixin
from zoo.backends.torch_training import adam_update as adam_update
from zoo.backends.torch_training import as_dataset as as_dataset
from zoo.backends.torch_training import create_variables as create_variables
from zoo.backends.torch_training import gradients_of

Tensor = Any


def version() -> str:
    return str(torch.__version__)


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@contextmanager
def float64() -> Iterator[None]:
    """Context manager of `common.float64`; mends convolutions and hard sigmoids in float64.

    PyTorch cannot compute the gradient of a transposed kernel with one filter or channel, and it
    rounds the slope of a hard sigmoid, 1/6, to float32.
    """
    functional = torch.nn.functional

    def with_contiguous_kernel(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, kernel, *args, **kwargs: convolution(
            x, kernel.contiguous(), *args, **kwargs
        )

    exact = {
        name: with_contiguous_kernel(getattr(functional, name))
        for dimensions in ("1d", "2d", "3d")
        for name in (f"conv{dimensions}", f"conv_transpose{dimensions}")
    }
    exact["hardsigmoid"] = lambda x, inplace=False: functional.relu6(x + 3) / 6
    with common.float64(), common.replaced(functional, **exact):
        yield


def on_device(array: Any) -> Tensor:
    return keras.ops.convert_to_tensor(array)


def make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)


def disable_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def host_integer(number: Tensor) -> Any:
    """Integer value of a scalar tensor on a CPU: eager operations on it are slower than NumPy's."""
    free = number.device.type == "cpu" and not torch.compiler.is_compiling() and not is_capturing()
    return int(number) if free else number


def gradients(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def with_gradients(*arrays: Any) -> Any:
        loss = function(*arrays)
        weights = [variable.value for variable in model.trainable_variables]
        return loss.detach(), gradients_of(loss, weights)

    return with_gradients


def inference_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def without_gradients(*arrays: Any) -> Any:
        with torch.no_grad():
            return function(*arrays)

    return without_gradients


def compiled_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles with `torch.compile`; without a C++ compiler the graph is traced only.

    The graph of the tensor operations is compiled, not Keras' Python code, at which `torch.compile`
    would break a model into hundreds of graphs and take four times as long.
    """
    compiler = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    programs: dict[Any, Callable[..., Any]] = {}

    def compiled(*arrays: Tensor) -> Any:
        signature = tuple((array.shape, array.dtype, array.device) for array in arrays)
        if signature not in programs:
            with capturing():
                graph = make_fx(function)(*arrays)
            programs[signature] = torch.compile(graph, backend=compiler)
        return programs[signature](*arrays)

    return inference_function(model, compiled)


def preprocessing_function(layer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    replayed = captured(layer, function, torch.no_grad)

    def preprocess(*tensors: Any) -> Any:
        nested = is_capturing() or torch.compiler.is_compiling()
        return (function if nested else replayed)(*tensors)

    return preprocess


def sampling_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return captured(model, function)


def decode_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return captured(model, function)


decode_loop = None  # captured graphs have no loops


def create_cache(shape: tuple[int, ...], dtype: str) -> Tensor:
    return keras.ops.zeros(shape, dtype)


def update_cache(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    positions = start + torch.arange(new.shape[2], device=new.device)
    return cache.index_copy_(2, positions, new)


def reorder_caches(caches: Any, rows: Any) -> Any:
    indices = keras.ops.convert_to_tensor(rows)
    return keras.tree.map_structure(lambda cache: cache[indices], caches)


def dense(layer: Any, inputs: Tensor) -> Tensor:
    """Computes product and bias in one kernel."""
    kernel = keras.ops.convert_to_tensor(layer.kernel)
    bias = keras.ops.convert_to_tensor(layer.bias) if layer.use_bias else None
    outputs = torch.nn.functional.linear(inputs, kernel.T, bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    """Computes convolution and bias in one kernel; Keras adds the bias in a second pass."""
    kernel = layer.kernel.value.permute(3, 2, 0, 1)
    is_supported = (
        layer.data_format == "channels_last"
        and layer.padding == "same"
        and tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
        and inputs.shape[-1] == kernel.shape[1]  # one group
        and all(size % 2 for size in kernel.shape[2:])
    )
    if not is_supported:
        return common.conv2d(layer, inputs)
    outputs = torch.nn.functional.conv2d(
        inputs.permute(0, 3, 1, 2),
        kernel.contiguous(),  # required by the kernel for a single small image
        layer.bias.value if layer.use_bias else None,
        padding=[size // 2 for size in kernel.shape[2:]],
    )
    return layer.activation(outputs.permute(0, 2, 3, 1))


def group_norm(layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
    """Group normalization whose gradient takes few passes over the images.

    PyTorch's own kernel is slow with channels last.
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    pixels = inputs.to(dtype).flatten(1, 2)  # (B, H·W, C)
    extra_scale = extra_shift = torch.zeros(1, 1, 1, dtype=dtype, device=inputs.device)
    if scale_shift is not None:
        extra_scale, extra_shift = scale_shift.to(dtype)[:, None].chunk(2, -1)
    scale, shift = layer.gamma.value.to(dtype), layer.beta.value.to(dtype)
    scale, shift = scale * (1 + extra_scale), shift * (1 + extra_scale) + extra_shift
    outputs = _GroupNorm.apply(pixels, scale, shift, layer.groups, layer.epsilon)
    return outputs.to(inputs.dtype).view(inputs.shape)


class _GroupNorm(torch.autograd.Function):  # type: ignore[misc]
    """Computes x̂·scale + shift, where x̂ is x, (B, N, C), normalized over N and groups of C."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, epsilon: float
    ) -> Tensor:
        means = x.mean(1, keepdim=True)
        variances = (x - means).square_().mean(1, keepdim=True)
        mean = _group_means(means, groups)
        # A group's variance is its channels' mean variance plus the variance of their means.
        variance = _group_means(variances + (means - mean).square(), groups)
        inverse = torch.rsqrt(variance + epsilon)
        context.save_for_backward(x, mean, inverse, scale)
        context.groups = groups
        return torch.addcmul(shift - mean * inverse * scale, x, inverse * scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        x, mean, inverse, scale = context.saved_tensors
        pixels = x.shape[1]
        # Sums over pixels of the gradient and of the gradient times x̂.
        shift_gradient = gradient.sum(1, keepdim=True)
        scale_gradient = (gradient * x).sum(1, keepdim=True) - mean * shift_gradient
        scale_gradient = scale_gradient * inverse
        a = _group_means(shift_gradient * scale, context.groups) / pixels
        b = _group_means(scale_gradient * scale, context.groups) / pixels
        # (gradient·scale - a - x̂·b)·inverse
        x_gradient = torch.addcmul((mean * inverse * b - a) * inverse, x, -(inverse**2) * b)
        x_gradient = torch.addcmul(x_gradient, gradient, inverse * scale)
        parameter_gradients = (g.sum_to_size(scale.shape) for g in (scale_gradient, shift_gradient))
        return x_gradient, *parameter_gradients, None, None


def _group_means(x: Tensor, groups: int) -> Tensor:
    """Averages each group and repeats the mean for the group's channels, (B, 1, C)."""
    grouped = x.view(x.shape[0], groups, -1)
    return grouped.mean(-1, keepdim=True).expand(grouped.shape).reshape(x.shape)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """Attention without Keras' copies of queries, keys and values."""
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    return _attention(query, keys, values, attention_mask, scale, causal)


def cached_attention(
    query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor, scale: float
) -> Tensor:
    return _attention(query, keys, values, attention_mask, scale)


def _attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    scale: float,
    causal: bool = False,
) -> Tensor:
    outputs = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys,
        values,
        attn_mask=attention_mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=bool(query.shape[2] != keys.shape[1]),
    )
    return outputs.transpose(1, 2)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy without the one-hot labels that Keras makes."""
    classes = logits.shape[-1]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, classes), labels.reshape(-1).long(), reduction="none"
    )
    return losses.reshape(labels.shape)


def check_range(integers: Tensor, size: int, rule: str) -> Tensor:
    # Keras infers shapes with tensors on the device "meta", which have no values.
    is_symbolic = (
        integers.device.type == "meta"
        or torch.compiler.is_compiling()
        or is_capturing()
        or is_exporting()
    )
    if not is_symbolic and integers.numel():
        low, high = torch.aminmax(integers)
        common.check_limits(low, high, size, rule)
    return integers


def look_up(table: Any, indices: Tensor) -> Tensor:
    """Rows of a table; `keras.ops.take` takes three more operations for negative indices."""
    table, indices = map(keras.ops.convert_to_tensor, (table, indices))
    rows = table.index_select(0, indices.reshape(-1))
    return rows.reshape(*indices.shape, *table.shape[1:])


# ------------------------------------------------------------------ recurrent layers
# A loop over time in Python takes twice as long as PyTorch's fused kernels.

_KERNELS = {"simple_rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}


def recurrent(
    cell: str,
    cell_step: Callable[..., Any],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    if is_exporting():
        from zoo.backends.torch_scan import recurrent_scan

        return recurrent_scan(cell_step, inputs, states, weights, mask)
    parameters = _parameters(cell, *weights)
    initial = [state.contiguous()[None] for state in states]
    # has_biases, num_layers, dropout, train, bidirectional
    options = True, 1, 0.0, torch.is_grad_enabled(), False
    if mask is None:
        hx = initial if cell == "lstm" else initial[0]
        outputs, *final = _KERNELS[cell](inputs, hx, parameters, *options, True)
        return outputs, [state[0] for state in final]
    # The kernels accept sequences that end early, so the unmasked steps are moved to the front.
    order = torch.argsort(~mask, dim=1, stable=True)
    steps = torch.gather(inputs, 1, order[..., None].expand(inputs.shape))
    lengths = mask.sum(1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        steps, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
    )
    hx = [state[:, packed.sorted_indices] for state in initial]
    hx = hx if cell == "lstm" else hx[0]
    data, *final = _KERNELS[cell](packed.data, packed.batch_sizes, hx, parameters, *options)
    unsorted = packed.unsorted_indices
    packed = packed._replace(data=data)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
        packed, batch_first=True, total_length=inputs.shape[1]
    )
    # A masked step repeats the output of the last unmasked step, or the initial state.
    step_index = mask.cumsum(1)[..., None]
    outputs = torch.cat([states[0][:, None], outputs], dim=1)
    outputs = torch.gather(outputs, 1, step_index.expand(*mask.shape, outputs.shape[-1]))
    is_empty = (lengths == 0)[:, None]
    final = [torch.where(is_empty, s, f[0][unsorted]) for s, f in zip(states, final)]
    return outputs, final


def _parameters(cell: str, kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor) -> list[Tensor]:
    """Converts Keras' weights to PyTorch's: transposed, two biases, GRU's first gates swapped."""
    biases = bias if bias.ndim == 2 else torch.stack([bias, torch.zeros_like(bias)])
    weights = [kernel.T, recurrent_kernel.T, *biases]
    if cell == "gru":
        gate_weights = (weight.chunk(3) for weight in weights)
        weights = [torch.cat([reset, update, new]) for update, reset, new in gate_weights]
    return [weight.contiguous() for weight in weights]
