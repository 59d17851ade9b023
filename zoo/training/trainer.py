"""A network with its preprocessing, trained by Keras' own `fit` and resumed at any step."""

import inspect
import warnings
from typing import Any

import keras
import numpy as np

from zoo.backends import backend
from zoo.training.batches import Batches
from zoo.training.callbacks import ContinuedHistory, StepCheckpoint
from zoo.validation import validated

Tensor = Any

_RAW_PIXEL = 64  # a whole number above it is no normalized pixel


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
    def __init__(self, network: keras.Model, preprocessing: Any = None, name: str | None = None):
        # The network casts its inputs itself; float64 inputs stay as they are until then.
        super().__init__(name=name or f"{network.name}_trainer", autocast=False)
        self.network = network
        self.preprocessing = preprocessing
        self.built = bool(network.built and getattr(preprocessing, "built", True))
        self._may_get_raw_pixels = preprocessing is None and not any(
            isinstance(layer, keras.layers.Normalization | keras.layers.Rescaling)
            for layer in network._flatten_layers()
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs, training=training)
        return self.network(inputs, training=training)

    @validated
    def fit(
        self, *args: Any, checkpoint: StepCheckpoint | None = None, **kwargs: Any
    ) -> keras.callbacks.History:
        """Trains the network, as `keras.Model.fit` does, and can be resumed.

        Args:
            *args: Arguments of `keras.Model.fit`.
            checkpoint: Saves the state of the training, and restores what an earlier call has
                saved. An epoch that was begun is finished first. The History holds all epochs.
            **kwargs: Arguments of `keras.Model.fit`. `steps_per_epoch` is read from `Batches`.

        Raises:
            ValueError: If `checkpoint` is given and `x` are not `Batches` with a seed, or not those
                that the checkpoints in its folder were saved with; the text names what differs.
            Diverged, Interrupted, OSError: As `StepCheckpoint` says.
        """
        options = dict(inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments)
        del options["self"]
        stream: Any = options.get("x")
        self._warn_of_raw_pixels(stream)
        shuffled = isinstance(stream, Batches) and stream.seed is not None
        if shuffled:
            options.setdefault("steps_per_epoch", stream.steps_per_epoch)
            options["shuffle"] = False
        class_weight = options.get("class_weight")
        if isinstance(stream, Batches):
            backend.create_variables(self, stream[0])
        options["validation_data"] = self._as_dataset(options.get("validation_data"))
        if checkpoint is None:
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
            super(Trainer, self).fit(**options, initial_epoch=epoch, epochs=epochs)

        with checkpoint.locked():
            state = checkpoint.restore(self, {**stream.order, "steps_per_epoch": int(steps)})
            history = ContinuedHistory(state, callbacks)
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

    def _separate_averages(self) -> None:
        """Copies weights that `fit` has replaced by their averages in the optimizer.

        On JAX both would be one array, which evaluation hands to XLA and which is then deleted.
        """
        if getattr(self.optimizer, "use_ema", False):
            for variable in self.trainable_variables:
                variable.assign(keras.ops.copy(variable.value))

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The loss and metrics on data, as `keras.Model.evaluate` gives them."""
        self._warn_of_raw_pixels(x)
        return super().evaluate(self._as_dataset(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs, as `keras.Model.predict` gives them."""
        self._warn_of_raw_pixels(x)
        return super().predict(self._as_dataset(x), *args, **kwargs)

    def _warn_of_raw_pixels(self, x: Any) -> None:
        """Warns once if the network is given images with pixels from 0 to 255, by the first batch.

        Args:
            x: Inputs as `fit` takes them; only arrays and `Batches` are looked at.
        """
        if not self._may_get_raw_pixels:
            return
        self._may_get_raw_pixels = False
        images = x[0] if isinstance(x, Batches) else x
        images = images[0] if isinstance(images, tuple) else images
        if not isinstance(images, np.ndarray) or images.ndim < 3 or not images.size:
            return
        images = images[:64]
        low, high = images.min(), images.max()
        if low >= 0 and _RAW_PIXEL < high <= 255 and (images == np.round(images)).all():
            warnings.warn(
                f"`x` looks like raw pixels, and {self.network.name} takes normalized ones. Give "
                "the trainer a preprocessing, such as "
                "`zoo.datasets.augmentation.ImageAugmentation`, or normalize `x`. Received: whole "
                f"numbers from {low:g} to {high:g}",
                stacklevel=3,
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
