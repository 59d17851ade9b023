"""The only folder that may import a backend: fast paths and switches.

`backend` is the module for the backend that Keras runs on. What a backend has to supply, and what
the rest of the package may rely on, is the protocol `Backend`.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

NAMES = ("tensorflow", "torch", "jax")

Tensor = Any
Objective = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]


class TrainStep(Protocol):
    """One optimizer step as one call, compiled where that is faster."""

    def __call__(self, *arrays: Any) -> Mapping[str, Tensor]:
        """Takes one step; returns the objective's metrics and its `loss`, on the device."""
        ...

    def sync(self) -> None:
        """Brings the model's and the optimizer's variables up to date before they are read."""
        ...


class Backend(Protocol):
    """What each module of this folder supplies."""

    def version(self) -> str:
        """The version of the library, such as "2.13.0"."""
        ...

    def device(self) -> str:
        """What computes, "cpu" or the GPU's name."""
        ...

    def on_device(self, array: Any) -> Tensor:
        """The array as a tensor that stays on the device."""
        ...

    def make_deterministic(self) -> None:
        """Asks the library for the same bits each time a run is repeated on one machine."""
        ...

    def use_full_precision(self) -> None:
        """Turns TF32 off, which GPUs use for float32 products by default; for comparisons."""
        ...

    def keep_float64(self) -> None:
        """Stops Keras from dropping digits of float64 numbers; for comparisons."""
        ...

    def train_step(self, model: Any, optimizer: Any, objective: Objective) -> TrainStep:
        """Makes the step that lowers `objective(*arrays) -> (loss, metrics)`."""
        ...

    def gradients(
        self, model: Any, function: Callable[..., Tensor]
    ) -> Callable[..., tuple[Tensor, list[Tensor | None]]]:
        """Makes `function(*arrays) -> loss` give the loss and its gradient by each weight.

        In the order of `model.trainable_variables`; None or zeros where the loss does not depend on
        a weight. The model's other variables are not to be relied on afterwards.
        """
        ...

    def forward(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes `function(*arrays)`, which calls `model`, run without gradients and compiled."""
        ...

    def compiled(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same by the library's compiler, also where that is not faster; for comparisons."""
        ...

    def conv2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """What a `zoo.layers.Conv2D` computes: convolution, bias, activation."""
        ...

    def max_pool2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """What a `zoo.layers.MaxPooling2D` computes."""
        ...

    def adam_update(
        self,
        optimizer: Any,
        gradient: Tensor,
        variable: Any,
        momentum: Any,
        velocity: Any,
        learning_rate: Tensor,
    ) -> None:
        """Updates one variable and its two moments as `zoo.optimizers.Adam` defines it."""
        ...


def installed() -> list[str]:
    """The backends that can be imported here."""
    return [name for name in NAMES if importlib.util.find_spec(name)]


def _check_choice(name: str) -> None:
    """Stops early, and in words, where Keras would fail deep inside an import."""
    if name not in NAMES:
        raise ValueError(
            f"`KERAS_BACKEND` must be one of {', '.join(NAMES)}. Received: KERAS_BACKEND={name}. "
            f"Installed here: {', '.join(installed()) or 'none'}"
        )
    if name not in installed():
        raise ImportError(
            f"The backend {name} is not installed. Installed here: "
            f"{', '.join(installed()) or 'none'}. Install it with "
            f'`pip install "keras-zoo[{name}]"`, or set `KERAS_BACKEND` to one that is installed'
        )


if os.environ.get("KERAS_BACKEND"):
    _check_choice(os.environ["KERAS_BACKEND"])

try:
    import keras
except ModuleNotFoundError as error:  # Keras' own configuration chose what is not there
    if error.name in NAMES:
        _check_choice(str(error.name))
    raise

name: str = keras.config.backend()
_check_choice(name)
backend = cast(Backend, importlib.import_module(f"zoo.backends.{name}"))
