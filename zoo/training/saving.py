"""`.keras` files of any backend, whose training goes on where it was saved."""

import textwrap
from pathlib import Path
from typing import Any, Literal

import keras

from zoo.files import arrays
from zoo.validation import FilePath, validated


@validated
def load_model(path: FilePath, jit_compile: bool | Literal["auto"] = "auto") -> keras.Model:
    """Loads a `.keras` file of any backend, ready to go on training at this backend's full speed.

    `keras.saving.load_model` keeps two choices of the backend on which the file was saved:

    - PyTorch's own optimizer class, whose first step fails on the other backends. This function
      uses the class of the current backend, with the saved state.
    - Whether the step is compiled, which is right on JAX and wrong on the others: `torch.compile`
      needs a C++ compiler and up to minutes, and an uncompiled step on JAX takes 100 times as
      long. A file does not say whether the user or the backend has chosen.

    The file may come from elsewhere. Before Keras builds anything, `zoo.files.keras_files` checks
    that the configuration names parts of a model only, and that the file is undamaged. Nothing that
    the file holds runs code, whatever `keras.config.enable_unsafe_deserialization` says. The sizes
    of the layers are not bounded: a file may ask for a model that does not fit into the memory.

    Args:
        path: Path of the `.keras` file.
        jit_compile: Whether the steps of `fit` are compiled, as for `keras.Model.compile`; "auto"
            is the default of the current backend.

    Returns:
        The model. If it was compiled, it has its optimizer, loss and metrics.

    Raises:
        ValueError: If the file does not exist, is damaged, is no `.keras` file, names a class or a
            function that is no part of a model, or holds a NaN or an infinity. The text is one
            line that names the file.
        OSError: If the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"`path` must be a `.keras` file. Received: path={str(path)!r}, no file")
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must be a file whose name ends in .keras. Received: path={str(path)!r}. Load "
            "a file of another format with `keras.saving.load_model`, and save it as `.keras`"
        )
    classes = {
        name: value
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    # In a scope, and not as an argument, the optimizer's class is looked up among them, too.
    with (
        keras.saving.custom_object_scope({}) as scope,
        keras.saving.custom_object_scope({**classes, **scope.backup}),  # the user's, too
    ):
        model = _load(path)
    for part in (model, getattr(model, "optimizer", None)):
        if part is not None:
            _check_finite(part, path)
    if model.compiled:
        # Keras resolves None on the current backend when the first step is made.
        model.jit_compile = None if jit_compile == "auto" else jit_compile
        model._compile_config.config["jit_compile"] = model.jit_compile  # for the next file
    return model


def _load(path: Path) -> keras.Model:
    """Checks and loads a file. What does not fit is one line, whatever Keras raises for it."""
    from zoo.files import keras_files  # loads pydantic, which `import zoo` must not wait for

    keras_files.check(path)
    try:
        model = keras.saving.load_model(path)
    except Exception as error:
        text = textwrap.shorten(str(error), 300)
        raise ValueError(
            f"{path} must hold a model that Keras {keras.__version__} can build. Received: "
            f"{type(error).__name__}: {text}. Save the model again with Keras' `save`"
        ) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{path} must hold a model. Received: {type(model).__name__}. Save a model with Keras' "
            "`save`"
        )
    return model


def _check_finite(part: Any, path: Path) -> None:
    try:
        arrays.check_finite(part)
    except ValueError as error:
        received = str(error).partition("Received: ")[2]
        raise ValueError(
            f"{path} must hold finite numbers. Received: {received}. Save the model again with "
            "Keras' `save`, before its training diverges"
        ) from error
