"""`.keras` files of any backend, whose training goes on where it was saved."""

from typing import Literal

import keras

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

    Args:
        path: Path of the `.keras` file.
        jit_compile: Whether the steps of `fit` are compiled, as for `keras.Model.compile`; "auto"
            is the default of the current backend.

    Returns:
        The model. If it was compiled, it has its optimizer, loss and metrics.

    Raises:
        ValueError: If the file does not exist or does not hold a model.
    """
    if not path.is_file():
        raise ValueError(f"`path` must be a `.keras` file. Received: path={str(path)!r}, no file")
    classes = {
        name: value
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    with keras.saving.custom_object_scope(classes):  # also where the optimizer is looked up
        model = keras.saving.load_model(path)
    if model.compiled:
        # Keras resolves None on the current backend when the first step is made.
        model.jit_compile = None if jit_compile == "auto" else jit_compile
        model._compile_config.config["jit_compile"] = model.jit_compile  # for the next file
    return model
