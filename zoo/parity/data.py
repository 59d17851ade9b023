"""Weights and data of a check, which one backend writes and all backends read."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from zoo import random
from zoo.parity.case import Case
from zoo.parity.inputs import InputSpec
from zoo.parity.layer_calls import LayerRecord, call_wrapped
from zoo.parity.model_under_test import BATCHES, ModelUnderTest


def prepare(case: Case, folder: Path) -> None:
    """Writes the weights and data that every backend reads.

    Weights are the model's own initial ones; tensors of one number throughout (biases, scales,
    statistics) are moved by up to 0.1, so that every element counts.
    """
    subject = ModelUnderTest(case, folder)
    weights = {}
    for path, value in subject.initial.items():
        if value.dtype.kind == "f" and value.size and (value == value.flat[0]).all():
            key = random.key(case.seed, "weights", path)
            move = random.uniform(key, value.shape, -0.1, 0.1)
            # A statistic such as a variance is not to fall below 0.
            value = value + (move if path in subject.trainable else abs(move))
        weights[path] = value
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)

    inputs = _inputs(subject)
    data = {f"input {i}": array for i, array in enumerate(inputs)}
    first = [array[: len(array) // BATCHES] for array in inputs]
    looked_up: list[LayerRecord] = []
    with contextlib.ExitStack() as stack:
        for record in subject.layer_records if _draws_floats(subject) else ():
            if isinstance(record.layer, keras.layers.Embedding):
                stack.enter_context(call_wrapped(record, partial(_note_floats, looked_up, record)))
        outputs = tree.flatten(subject.model(subject.inputs(first), training=False))
    if looked_up:
        size = looked_up[0].layer.input_dim
        raise ValueError(
            f"The layer {looked_up[0].path} looks up ids below {size}, and is given random floats. "
            f"Give --input int32[0,{size}):SIZES, in Python `inputs=InputSpec(SHAPE, 'int32', 0, "
            f"{size})`, once for each input of the model"
        )
    for i, output in enumerate(outputs):
        data[f"target {i}"] = _targets(case, i, output.shape)
    np.savez(folder / "data.npz", allow_pickle=False, **data)


def _draws_floats(subject: ModelUnderTest) -> bool:
    """Whether an input is drawn from the normal distribution."""
    specs = [spec for spec in tree.flatten(subject.specs) if isinstance(spec, InputSpec)]
    return any(spec.low is None and not spec.is_integer for spec in specs)


def _note_floats(
    looked_up: list[LayerRecord],
    record: LayerRecord,
    call: Callable[..., Any],
    ids: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Notes an embedding that takes floats for ids; a reversible one also multiplies by floats."""
    is_reversed = any(args) or kwargs.get("reverse", False)
    if "float" in keras.backend.standardize_dtype(ids.dtype) and not is_reversed:
        looked_up.append(record)
        ids = ops.zeros_like(ids)  # any id that exists
    return call(ids, *args, **kwargs)


def _inputs(subject: ModelUnderTest) -> list[np.ndarray]:
    case = subject.case
    arrays = []
    for i, spec in enumerate(tree.flatten(subject.specs)):
        if not isinstance(spec, InputSpec):
            arrays.append(np.concatenate([np.asarray(spec)] * BATCHES))
            continue
        batch, *sizes = spec.full_shape(case.examples, case.length)
        key, shape = random.key(case.seed, "input", i), (batch * BATCHES, *sizes)
        pixels = i in subject.images
        arrays.append(_pixels(key, shape) if pixels else spec.draw(key, shape))
    return arrays


def _pixels(key: random.Key, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray((random.bits(key, shape) & 255).astype(np.uint8))


def _targets(case: Case, number: int, shape: Sequence[int]) -> np.ndarray:
    key = random.key(case.seed, "target", number)
    rows = (shape[0] * BATCHES, *shape[1:])
    if case.loss == "cross_entropy":
        labels = np.floor(random.uniform(key, rows[:-1]) * shape[-1])
        return np.asarray(labels, np.int32)
    return np.asarray(random.normal(key, rows))
