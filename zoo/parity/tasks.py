"""Tasks of the check's workers. Each task writes NumPy files into the check's folder.

A file is named after its content, the backend and the precision. One backend writes `weights.npz`
and `data.npz`, which all backends read.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from zoo import backends, random
from zoo.backends import backend
from zoo.evaluation.distance import distance
from zoo.parity.case import Case
from zoo.parity.diagnosis import LayerInfo
from zoo.parity.model_under_test import BATCHES, ModelUnderTest, subsample, to_numpy
from zoo.training import Batches, StepCheckpoint, Trainer, optimizers
from zoo.training.run_identity import environment

Tensor = Any
Arrays = dict[str, np.ndarray]

SAVED_AFTER = 3  # steps


def path_of(folder: Path, content: str, name: str, floatx: str) -> Path:
    """Path of a task's arrays, from their content, the backend and the precision."""
    return folder / f"{content}-{name}-{floatx}.npz"


def _write(folder: Path, content: str, arrays: Mapping[str, Any]) -> None:
    np.savez(
        path_of(folder, content, backends.name, keras.config.floatx()), allow_pickle=False, **arrays
    )


Randomness = tuple[list[str], list[str]]

_last: list[tuple[Any, ModelUnderTest, Randomness]] = []  # at most one; see `_subject`


def _build(case: Case, folder: Path, policy: str = "") -> tuple[ModelUnderTest, Randomness]:
    """The model with the shared initial weights, and the layers without portable randomness."""
    _last.clear()
    subject = ModelUnderTest(case, folder, policy)
    subject.load()
    randomness = subject.disable_backend_randomness()
    subject.load()
    return subject, randomness


def _subject(case: Case, folder: Path) -> tuple[ModelUnderTest, Randomness]:
    """As `_build`; the tasks of one check follow each other, and the model is built once."""
    check = folder, (folder / "weights.npz").stat().st_mtime_ns, keras.config.floatx()
    if not _last or _last[0][0] != check:
        built = _build(case, folder)
        _last.append((check, *built))
    _, subject, randomness = _last[0]
    subject.load()
    return subject, randomness


# ------------------------------------------------------------------ variables, outputs, gradients


def describe(case: Case, folder: Path) -> dict[str, Any]:
    """The model's variables, and the properties of its layers that the check needs."""
    subject, (random_in_training, random_in_inference) = _subject(case, folder)
    weights = set(subject.trainable)
    keys: dict[bytes, list[str]] = {}
    for record in subject.layer_records:
        if hasattr(record.layer, "random_key"):
            keys.setdefault(np.asarray(record.layer.random_key).tobytes(), []).append(record.path)
    return {
        "environment": environment(),
        "parameters": int(subject.model.count_params()),
        "variables": {
            path: (tuple(variable.shape), str(variable.dtype), path in weights)
            for path, variable in subject.variables.items()
        },
        "owners": subject.owners,
        "layers": {record.path: LayerInfo.of(record.layer) for record in subject.layer_records},
        "digests": {
            path: hashlib.sha256(value.tobytes()).hexdigest()
            for path, value in subject.initial.items()
            if value.dtype.kind == "f"
        },
        "generators": sorted(subject.generators),
        "random_in_training": random_in_training,
        "random_in_inference": random_in_inference,
        "dtypes": {
            record.path: record.layer.compute_dtype
            for record in subject.layer_records
            if record.layer.compute_dtype != keras.config.floatx()
            and not isinstance(record.layer, keras.Model)
        },
        "shared streams": [paths for paths in keys.values() if len(paths) > 1],
        "own training": [
            name
            for name in ("train_step", "compute_loss")
            if not getattr(type(subject.model), name).__module__.startswith("keras.")
        ],
    }


class LayerCall(NamedTuple):
    """A call of a layer.

    Attributes:
        path: Path of the layer.
        terms: Number of terms that are summed in each element of the output.
        positions: Number of positions at which each weight is used.
        in_float32: Whether all numbers of a float64 output are float32 numbers.
        dtype: Dtype in which the layer computes.
        uses_float32: As of `LayerOutput`.
    """

    path: str
    terms: int
    positions: int
    in_float32: bool
    dtype: str
    uses_float32: bool


def outputs(case: Case, folder: Path) -> dict[str, list[LayerCall]]:
    """Outputs of every layer in inference and training mode, and the state after training mode.

    Returns:
        For each mode the calls of the layers, in order.
    """
    subject, _ = _subject(case, folder)
    called = {}
    for mode in ("inference", "training"):
        subject.load()
        records = subject.layer_outputs(training=mode == "training")
        arrays = {str(i): subsample(record.array) for i, record in enumerate(records)}
        _write(folder, mode, arrays)
        called[mode] = [
            LayerCall(
                x.path, x.terms, math.prod(x.array.shape[:-1]), _is_float32(x.array), x.dtype,
                x.uses_float32,
            )
            for x in records
        ]  # fmt: skip
    values = subject.values()
    _write(folder, "state", {path: values[path] for path in subject.state_paths})
    return called


def _is_float32(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return array.dtype == np.float64 and bool((array == array.astype(np.float32)).all())


def gradients(case: Case, folder: Path) -> None:
    """The loss in training mode, and its gradient with respect to every weight."""
    subject, _ = _subject(case, folder)
    loss, by_path = backends.loss_and_gradients(
        subject.model, lambda *arrays: subject.loss(arrays), *subject.batch()
    )
    arrays = {"loss": loss, **dict(zip(subject.trainable, by_path.values()))}
    _write(folder, "gradients", {path: to_numpy(array) for path, array in arrays.items()})


def sample(case: Case, folder: Path) -> None:
    """Tokens or images that the model generates."""
    assert case.sample is not None
    subject, _ = _subject(case, folder)
    samples = case.sample(subject.model)
    _write(folder, "samples", {name: to_numpy(value) for name, value in samples.items()})


# ------------------------------------------------------------------ training


OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "AdamW": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(1e-3),
    "Adam with L2": lambda: optimizers.Adam(1e-3, l2=0.1),
}


def optimizer_steps(case: Case, folder: Path) -> list[str]:
    """The weights after two steps of each optimizer on given gradients.

    The gradients are random numbers, so that only the optimizer's own arithmetic is compared: Adam
    divides a gradient by its size and would blow up the rounding of a small one. The optimizers of
    `OPTIMIZERS` update each element by itself. So they are given only the elements that are
    compared, of all weights of a dtype as one variable: JAX compiles each operation once a shape.

    Returns:
        The optimizers' names.
    """
    subject, _ = _subject(case, folder)
    weights = dict(zip(subject.trainable, subject.model.trainable_variables))
    by_dtype: dict[str, Arrays] = {}
    for path, weight in weights.items():
        elements = subsample(to_numpy(weight.value)).ravel()
        by_dtype.setdefault(weight.dtype, {})[path] = elements
    arrays = {}
    for name, make in OPTIMIZERS.items():
        joined = {
            dtype: keras.Variable(np.concatenate([*by_path.values()]), dtype=dtype)
            for dtype, by_path in by_dtype.items()
        }
        _take_two_steps(make(), case.seed, joined)
        for dtype, by_path in by_dtype.items():
            ends = np.cumsum([array.size for array in by_path.values()])
            for path, updated in zip(by_path, np.split(to_numpy(joined[dtype].value), ends)):
                arrays[f"{name}: {path}"] = updated
    names = [*OPTIMIZERS]
    if case.optimizer is not None:
        names.append("the model's own")
        _take_two_steps(case.optimizer(), case.seed, weights)
        for path, weight in weights.items():
            arrays[f"{names[-1]}: {path}"] = subsample(to_numpy(weight.value))
    _write(folder, "optimizers", arrays)
    return names


def _take_two_steps(
    optimizer: keras.optimizers.Optimizer, seed: int, variables: Mapping[str, keras.Variable]
) -> None:
    """Takes two steps of an optimizer, each with random gradients of its own, eagerly."""
    optimizer.build([*variables.values()])
    for step in range(2):
        gradients = [
            random.normal(random.key(seed, "gradient", step, name), tuple(variable.shape), 0.01)
            for name, variable in variables.items()
        ]
        dtypes = [variable.dtype for variable in variables.values()]
        optimizer.apply([*map(ops.convert_to_tensor, gradients, dtypes)])


class _LossTrainer(Trainer):
    """Trainer whose `call` returns the loss."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        return y_pred


class _CheckTrainer(_LossTrainer):
    """Trainer of the model under test, with the loss of the case."""

    def __init__(self, subject: ModelUnderTest, seed: int):
        super().__init__(subject.model)
        self._subject = subject
        self._key = random.key(seed, "augmentation")
        self.counter = keras.random.SeedGenerator(0, name="counter")

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        """The loss of a batch of inputs and targets, a scalar."""
        step = self.counter.next()[1] if training else 0
        arrays = [inputs[name] for name in sorted(inputs)]
        return self._subject.loss(arrays, random.fold_in(self._key, step))


class _SubjectBatches:
    """The batches of the model under test as examples, each a whole batch."""

    def __init__(self, subject: ModelUnderTest):
        self._subject = subject

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._subject.batch(int(indices[0]))
        return {f"{number:03d}": array for number, array in enumerate(batch)}


class _Training:
    """Training of the model under test, from the shared weights on, by `zoo.Trainer.fit`."""

    def __init__(self, case: Case, folder: Path):
        self.subject, _ = _build(case, folder)
        make = case.optimizer or (lambda: optimizers.Adam(1e-3, l2=1e-4))
        self._trainer = _CheckTrainer(self.subject, case.seed)
        self._trainer.compile(make())
        self._batches = Batches(_SubjectBatches(self.subject), 1, case.seed, steps_per_epoch=1)

    def fit(self, first: int, last: int, checkpoint: StepCheckpoint | None = None) -> list[float]:
        """Takes the steps from `first` to `last` and returns the loss before each.

        With a checkpoint it restores the checkpoint's steps instead of taking them.
        """
        batches = self._batches if checkpoint is not None else self._batches.from_step(first)
        history = self._trainer.fit(
            batches, initial_epoch=0 if checkpoint else first, epochs=last, verbose=0,
            checkpoint=checkpoint,
        )  # fmt: skip
        return [float(loss) for loss in history.history["loss"]]


def train(case: Case, folder: Path) -> None:
    """Training steps from one seed; a checkpoint after three, and the state after the fourth."""
    run = _Training(case, folder)
    losses = run.fit(0, SAVED_AFTER, StepCheckpoint(_checkpoint(folder, backends.name)))
    losses += run.fit(SAVED_AFTER, SAVED_AFTER + 1)
    _write(folder, "fourth step", _after_a_step(run.subject, losses[-1]))
    if case.steps > SAVED_AFTER + 1:
        losses += run.fit(SAVED_AFTER + 1, case.steps)
    _write(folder, "losses", {"losses": np.array(losses)})


def resume(case: Case, folder: Path, sources: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """The fourth step after each backend's checkpoint, in a model that is built anew.

    Returns:
        For each source the distance of the loss, of each variable and of each layer's output in
        inference mode from those of the run that was not stopped.
    """
    run = _Training(case, folder)
    result = {}
    for source in sources:
        run.subject.load()
        copied = folder / f"{_checkpoint(folder, source).name}-on-{backends.name}"
        shutil.copytree(_checkpoint(folder, source), copied)
        losses = run.fit(SAVED_AFTER, SAVED_AFTER + 1, StepCheckpoint(copied))
        arrays = _after_a_step(run.subject, losses[-1])
        with np.load(path_of(folder, "fourth step", source, keras.config.floatx())) as expected:
            result[source] = [(name, distance(arrays[name], expected[name])) for name in expected]
    return result


def _after_a_step(subject: ModelUnderTest, loss: float) -> Arrays:
    """The loss, the variables and the outputs of the layers, by name."""
    arrays = {"loss": np.array(loss)}
    arrays |= {
        f"variable {path}": value
        for path, value in subject.values().items()
        if path not in subject.generators
    }
    for output in subject.layer_outputs(training=False):
        arrays[f"output of {output.path}"] = subsample(output.array)
    return arrays


def _checkpoint(folder: Path, name: str) -> Path:
    return folder / f"checkpoint-{name}-{keras.config.floatx()}"


# ------------------------------------------------------------------ compiled, in 16 bits


def variants(case: Case, folder: Path) -> None:
    """Outputs in inference mode: compiled, with the policy "mixed_bfloat16", and on the CPU.

    In "rounded", float32 computes with weights and inputs that are rounded to bfloat16: how far it
    is off tells how much rounding the model amplifies.
    """
    subject, _ = _subject(case, folder)
    count = len(tree.flatten(subject.specs))
    function = backend.compiled_function(
        subject.model, lambda *arrays: subject.model(subject.inputs(arrays), training=False)
    )
    inputs = subject.batch()[:count]
    _write(folder, "compiled", _numbered(function(*map(backend.on_device, inputs))))
    for variable in subject.model.variables:
        variable.assign(_as_bfloat16(variable.value))
    outputs = subject.model(subject.inputs([_as_bfloat16(x) for x in inputs]), training=False)
    _write(folder, "rounded", _numbered(outputs))
    rounded, _ = _build(case, folder, "mixed_bfloat16")
    _write(folder, "bfloat16", _numbered(rounded.outputs(training=False)))
    if backend.device() != "cpu":
        with keras.device("cpu:0"):
            on_cpu, _ = _build(case, folder)
            _write(folder, "CPU", _numbered(on_cpu.outputs(training=False)))


def _as_bfloat16(array: Tensor) -> Tensor:
    """Rounds floating-point numbers to bfloat16, in their own dtype."""
    dtype = keras.backend.standardize_dtype(array.dtype)
    return ops.cast(ops.cast(array, "bfloat16"), dtype) if "float" in dtype else array


def _numbered(outputs: Any) -> Arrays:
    return {str(i): subsample(to_numpy(x)) for i, x in enumerate(tree.flatten(outputs))}
