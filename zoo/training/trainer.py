"""A network with its preprocessing, trained by Keras' own `fit` and resumed at any step."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np

from zoo import random
from zoo.backends import backend
from zoo.training import cluster
from zoo.training.accumulation import check_accumulation, check_distributed, draw_counters
from zoo.training.batches import Batches
from zoo.training.callbacks import StepCheckpoint
from zoo.training.checkpoints import finalize_layer_state
from zoo.training.history import ContinuedHistory
from zoo.validation import MAX_COUNT, Count, Rule, number, validated, whole

Tensor = Any

_RAW_PIXEL = 64  # a whole number above it is no normalized pixel
_FEW_FEATURES = 64  # flattened images have more


def _check_frequency(value: Any) -> Any:
    return value if isinstance(value, list | tuple | set) else _COUNT.check(value)


def _check_verbose(value: Any) -> Any:
    if value not in ("auto", 0, 1, 2):
        raise ValueError
    return value


_COUNT = whole(1, MAX_COUNT)
_RULES = {  # of the arguments of Keras' methods
    "batch_size": _COUNT.or_none(),
    "epochs": _COUNT,
    "initial_epoch": whole(0, MAX_COUNT),
    "steps": _COUNT.or_none(),
    "steps_per_epoch": _COUNT.or_none(),
    "validation_batch_size": _COUNT.or_none(),
    "validation_freq": Rule(f"{_COUNT.text} or a list of epochs", _check_frequency),
    "validation_split": number("[0, 1)"),
    "validation_steps": _COUNT.or_none(),
    "verbose": Rule("'auto', 0, 1 or 2", _check_verbose),
}


def _check_callable(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


Preprocessing = Annotated[
    Any, Rule("a layer or a function of (inputs, training)", _check_callable).or_none()
]


# A network with one of these normalizes pixels itself, or reads token ids.
_NO_PIXELS = keras.layers.Normalization, keras.layers.Rescaling, keras.layers.Embedding


# Callbacks that worker 0 of a cluster alone has.
_WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)


@keras.saving.register_keras_serializable("zoo")
class Trainer(backend.TrainerMixin, keras.Model):  # type: ignore[misc, name-defined]
    """A `keras.Model` that preprocesses its inputs within the compiled step.

    `compile`, `fit`, `evaluate` and `predict` are Keras' own, with their arguments, callbacks and
    History. `fit` also takes `checkpoint=`, and then goes on after the last checkpoint:

        trainer = Trainer(cnn_48x48(10), ImageAugmentation((0.1307,), (0.3081,)))
        trainer.compile(Adam(1e-3), CrossEntropy(), metrics=["accuracy"])
        trainer.fit(Batches((x, y), seed=0), epochs=5, checkpoint=StepCheckpoint("checkpoints"))

    A weight that the loss does not depend on has the gradient 0 on every backend.

    Args:
        network: Model that is trained. It stays a model of its own, to be saved and used without
            the trainer.
        preprocessing: Layer, or function of (inputs, training), that the inputs pass first, such as
            the normalization of pixels. `save` writes it with the network. By default the network
            takes the inputs as they are; raw pixels, from 0 to 255, then cause a warning.
    """

    @validated
    def __init__(
        self, network: keras.Model, preprocessing: Preprocessing = None, name: str | None = None
    ):
        # The network casts its inputs itself; float64 inputs stay as they are until then.
        super().__init__(name=name or f"{network.name}_trainer", autocast=False)
        self.network = network
        self.preprocessing = preprocessing
        self.gradient_accumulation = 1
        self.built = bool(network.built and getattr(preprocessing, "built", True))
        self._may_get_raw_pixels = preprocessing is None and not any(
            isinstance(layer, _NO_PIXELS) for layer in network._flatten_layers()
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs, training=training)
        return self.network(inputs, training=training)

    @validated
    def fit(
        self,
        *args: Any,
        checkpoint: StepCheckpoint | None = None,
        gradient_accumulation: Count = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the network, as `keras.Model.fit` does, and can be resumed.

        Args:
            *args: Arguments of `keras.Model.fit`.
            checkpoint: Saves the state of the training, and restores what an earlier call has
                saved. An epoch that was begun is finished first. The History holds all epochs.
            gradient_accumulation: Number of parts in which each batch is computed, one after
                another, so that the memory is that of one part. The losses are those of the whole
                batch, dropout and augmentation included, but for the draws of Keras' own layers.
            **kwargs: Arguments of `keras.Model.fit`. `steps_per_epoch` is read from `Batches`.

        Raises:
            ValueError: If a number of epochs, steps or examples is not a whole number of at least
                1, or `checkpoint` is given and `x` are not `Batches` with a seed, or not those that
                the checkpoints in its folder were saved with; the text names what differs. If
                `steps_per_execution` of `compile` does not divide the steps of an epoch. If
                `gradient_accumulation` is above 1 and a layer needs the whole batch, such as a
                batch normalization, or a loss is no mean over the examples.
            Diverged, Interrupted, OSError: As `StepCheckpoint` says.
        """
        options = _checked_arguments(keras.Model.fit, args, kwargs)
        self._accumulate_gradients(gradient_accumulation)
        stream: Any = options.get("x")
        self._warn_of_raw_pixels(stream)
        shuffled = isinstance(stream, Batches) and stream.seed is not None
        if shuffled:
            options["steps_per_epoch"] = options.get("steps_per_epoch") or stream.steps_per_epoch
            options["shuffle"] = False
            self._check_executions(options["steps_per_epoch"])
        class_weight = options.get("class_weight")
        if isinstance(stream, Batches):
            backend.create_variables(self, stream[0])
        if cluster.current() is not None:
            if not shuffled:
                raise ValueError(
                    "`x` must be `zoo.training.Batches` with a `seed` where several devices train, "
                    "so that each reads its rows of the same batches. Received: x of type "
                    f"{type(stream)}"
                )
            check_distributed(self)
            if backend.is_sharding():
                _check_callbacks(options.get("callbacks"))
            if not cluster.is_first():
                callbacks = keras.tree.flatten(options.get("callbacks") or [])
                options["callbacks"] = [c for c in callbacks if not isinstance(c, _WRITERS)]
        options["validation_data"] = self._as_dataset(options.get("validation_data"))
        if checkpoint is None:
            self._take_first_workers_state()
            history = super().fit(**{**options, "x": self._as_dataset(stream, class_weight)})
            self._separate_averages()
            return history
        if not shuffled:
            raise ValueError(
                "`x` must be `zoo.training.Batches` with a `seed` when `checkpoint` is given, so "
                f"that the order of the examples can be resumed. Received: x of type {type(stream)}"
            )
        epochs, steps = options.pop("epochs", 1), options["steps_per_epoch"]
        options.pop("initial_epoch", None)  # the checkpoint knows
        callbacks = keras.tree.flatten(options.get("callbacks") or [])

        def train(epoch: int, epochs: int, steps: int) -> None:
            options["x"] = self._as_dataset(stream.from_step(state.step), class_weight)
            options["steps_per_epoch"] = steps
            self._check_executions(steps)
            super(Trainer, self).fit(**options, initial_epoch=epoch, epochs=epochs)

        with checkpoint.locked():
            state = checkpoint.restore(self, {**stream.order, "steps_per_epoch": int(steps)})
            self._take_first_workers_state()
            history = ContinuedHistory(state, epochs, callbacks)
            options["callbacks"] = [*callbacks, history, checkpoint]
            with checkpoint.interruptible():
                epoch, begun = divmod(state.step, steps)
                if begun:
                    with checkpoint.kept_weights():  # `fit` replaces them with their averages
                        train(epoch, epoch + 1, steps - begun)
                    epoch += 1
                if epoch < epochs and not state.stopped:
                    train(epoch, epochs, steps)
                else:
                    history.set_model(self)
                    history.on_train_begin()
                    self.optimizer.finalize_variable_values(self.trainable_variables)
        self._separate_averages()
        return history

    def _check_executions(self, steps: int) -> None:
        """Raises ValueError if the last call of several steps would go beyond the epoch."""
        if steps % self.steps_per_execution:
            raise ValueError(
                "`steps_per_execution` of `compile` must divide the steps of an epoch, since the "
                f"batches do not end. Received: steps_per_execution={self.steps_per_execution}, "
                f"{steps} steps"
            )

    def _take_first_workers_state(self) -> None:
        """Gives every worker of a cluster the variables of worker 0, which a checkpoint may hold.

        A network that draws its initial weights from a backend's own generator has others on each.
        """
        if cluster.current() is not None:
            self.optimizer.build(self.trainable_variables)
            backend.broadcast_variables([*self.variables, *self.optimizer.variables])
            finalize_layer_state(self)

    def _accumulate_gradients(self, parts: int) -> None:
        """Makes the training step compute a batch in so many parts."""
        if parts > 1:
            check_accumulation(self, parts)
        if parts != self.gradient_accumulation:
            self.gradient_accumulation = parts
            self.train_function = None  # compiled for another number of parts

    @property
    def draw_counters(self) -> list[Any]:
        """The variables that count the random draws of the layers, of which a step makes one."""
        return draw_counters(self)

    @staticmethod
    def part_of_batch(start: Any, count: Any, total: Any) -> AbstractContextManager[None]:
        """Context manager of a step that computes a part of a batch: see `zoo.random.rows`."""
        return random.rows(start, count, total)

    def _separate_averages(self) -> None:
        """Copies weights that `fit` has replaced by their averages in the optimizer.

        On JAX both would be one array, which evaluation hands to XLA and which is then deleted.
        """
        if getattr(self.optimizer, "use_ema", False):
            for variable in self.trainable_variables:
                variable.assign(keras.ops.copy(variable.value))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The loss and metrics on data, as `keras.Model.evaluate` gives them."""
        options = _checked_arguments(keras.Model.evaluate, args, kwargs)
        x = options.pop("x", None)
        self._warn_of_raw_pixels(x)
        return super().evaluate(self._as_dataset(x), **options)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs, as `keras.Model.predict` gives them."""
        options = _checked_arguments(keras.Model.predict, args, kwargs)
        x = options.pop("x")
        self._warn_of_raw_pixels(x)
        return super().predict(self._as_dataset(x), **options)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """One training step, as `keras.Model.train_on_batch` takes it."""
        self._warn_of_raw_pixels(x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss and metrics on a batch, as `keras.Model.test_on_batch` gives them."""
        self._warn_of_raw_pixels(x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """The network's outputs on a batch, as `keras.Model.predict_on_batch` gives them."""
        self._warn_of_raw_pixels(x)
        return super().predict_on_batch(x)

    def _warn_of_raw_pixels(self, x: Any) -> None:
        """Warns once if the network is given images with pixels from 0 to 255.

        Args:
            x: Inputs as `fit` takes them. Of arrays, tensors and `Batches` the first images are
                looked at, of other data nothing.
        """
        if not self._may_get_raw_pixels:
            return
        images = x[0] if isinstance(x, Batches) else x
        images = images[0] if isinstance(images, tuple) else images
        if keras.ops.is_tensor(images):
            images = keras.ops.convert_to_numpy(images[:8])
        if not isinstance(images, np.ndarray) or images.dtype.kind not in "iuf":
            return
        images = images[:8]
        if not images.size or images.ndim < 2 or images[0].size <= _FEW_FEATURES:
            return
        low, high = images.min(), images.max()
        if low >= 0 and _RAW_PIXEL < high <= 255 and (images == np.round(images)).all():
            self._may_get_raw_pixels = False
            warnings.warn(
                f"`x` looks like raw pixels, and {self.network.name} takes normalized ones. Give "
                "the trainer a preprocessing, such as "
                "`zoo.datasets.augmentation.ImageAugmentation`, or normalize `x`. Received: whole "
                f"numbers from {low:g} to {high:g}",
                stacklevel=_callers_level(),
            )

    def _as_dataset(self, data: Any, class_weight: Any = None) -> Any:
        return backend.as_dataset(self, data, class_weight) if isinstance(data, Batches) else data

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "network": serialize(self.network),
            "preprocessing": serialize(self.preprocessing),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Trainer":
        deserialize = keras.saving.deserialize_keras_object
        network, preprocessing = map(deserialize, (config["network"], config["preprocessing"]))
        return cls(network, preprocessing, config["name"])


def _check_callbacks(callbacks: Any) -> None:
    """Raises ValueError for callbacks with which worker 0 alone would read divided weights."""
    for callback in keras.tree.flatten(callbacks or []):
        if isinstance(callback, keras.callbacks.BackupAndRestore | keras.callbacks.ModelCheckpoint):
            raise ValueError(
                "`callbacks` must not save the weights where these are divided among devices, "
                f"which read them together. Received: {type(callback).__name__}. Use the argument "
                "`checkpoint`"
            )


def _checked_arguments(method: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call of a method of `keras.Model`, by name.

    Raises:
        TypeError: If the call does not fit the method's signature.
        ValueError: If a number of epochs, steps or examples is invalid.
    """
    try:
        arguments = dict(inspect.signature(method).bind(None, *args, **kwargs).arguments)
        others: dict[str, Any] = arguments.pop(
            "kwargs", {}
        )  # of `evaluate`, to which Keras' own `fit` gives one
        for name in others:
            if not name.startswith("_"):
                raise TypeError(f"got an unexpected keyword argument {name!r}")
    except TypeError as error:
        raise TypeError(f"Trainer.{method.__name__}() {error}") from None
    del arguments["self"]
    for name in _RULES.keys() & arguments.keys():
        arguments[name] = _RULES[name].require(name, arguments[name])
    return arguments | others


def _callers_level() -> int:
    """Level, for `warnings.warn`, of the innermost caller outside this package and Keras."""
    folders = [Path(__file__).parents[1], Path(keras.__file__).parent]
    prefixes = tuple(f"{folder}{os.sep}" for folder in folders)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(prefixes):
        frame, level = frame.f_back, level + 1
    return level
