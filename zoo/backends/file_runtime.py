"""Runs an exported file in a process without Keras: `python -P file_runtime.py FOLDER`.

FOLDER/request.json names the format, the file, its inputs and outputs, and the numbers of batches.
The inputs of batch i are in FOLDER/in-i.npz; the outputs go to FOLDER/out-i.npz, and the rest of
the result to FOLDER/result.json. The file is run by its path and imports nothing of this package,
and Keras cannot be imported.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Function = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
Load = Callable[[str, list[str]], Function]


# Each of these functions imports a runtime, for which no file is waiting, and returns the function
# that loads one, and the runtime's name.
def onnx_runtime() -> tuple[Load, str]:
    import onnxruntime

    def load(path: str, outputs: list[str]) -> Function:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(outputs, inputs)

    return load, f"ONNX Runtime {onnxruntime.__version__}"


def check_onnx(path: str) -> None:
    import onnx

    onnx.checker.check_model(path, full_check=True)  # with the inference of all shapes


def tensorflow() -> tuple[Load, str]:
    import tensorflow as tf

    def load(path: str, outputs: list[str]) -> Function:
        module = tf.saved_model.load(path)
        signature = module.signatures["serving_default"]

        def function(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            results = signature(**{name: tf.constant(array) for name, array in inputs.items()})
            return [results[name].numpy() for name in outputs]

        function.module = module  # type: ignore[attr-defined]  # its variables must live as long
        return function

    return load, f"TensorFlow {tf.__version__}"


def litert() -> tuple[Load, str]:
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    def load(path: str, outputs: list[str]) -> Function:
        runner = Interpreter(path).get_signature_runner("serving_default")

        def function(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            results = runner(**inputs)
            return [results[name] for name in outputs]

        return function

    return load, f"LiteRT {version('ai-edge-litert')}"


def torch_export() -> tuple[Load, str]:
    import torch

    def load(path: str, outputs: list[str]) -> Function:
        module = torch.export.load(path).module()

        def function(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            with torch.no_grad():
                results = module({name: torch.from_numpy(array) for name, array in inputs.items()})
            return [results[name].numpy() for name in outputs]

        return function

    return load, f"PyTorch {torch.__version__}"


def jax_export() -> tuple[Load, str]:
    import jax

    def load(path: str, outputs: list[str]) -> Function:
        exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
        call = jax.jit(exported.call)

        def function(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            results = call(inputs)
            return [np.asarray(results[name]) for name in outputs]

        return function

    return load, f"JAX {jax.__version__}"


def safetensors_file() -> tuple[Load, str]:
    import safetensors
    from safetensors.numpy import load_file

    def load(path: str, outputs: list[str]) -> Function:
        arrays = load_file(path)
        if set(arrays) != set(outputs):
            names = ", ".join(sorted(set(arrays) ^ set(outputs)))
            raise ValueError(
                f"The file must hold the weights of the model, no more. Received: {names}"
            )
        return lambda _: [arrays[name] for name in outputs]

    return load, f"safetensors {safetensors.__version__}"


RUNTIMES = {
    "onnx": onnx_runtime,
    "saved_model": tensorflow,
    "litert": litert,
    "pt2": torch_export,
    "stablehlo": jax_export,
    "safetensors": safetensors_file,
}


def seconds(function: Function, inputs: dict[str, np.ndarray], calls: int = 5) -> float:
    """The shortest of a few calls, after one that prepares."""
    durations = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        function(inputs)
        durations.append(time.perf_counter() - started)
    return min(durations[1:])


def main(folder: Path) -> None:
    sys.modules["keras"] = None  # type: ignore[assignment]  # an import of Keras fails
    request = json.loads((folder / "request.json").read_text("utf-8"))

    def batch(number: int) -> dict[str, np.ndarray]:
        with np.load(folder / f"in-{number}.npz") as arrays:
            return dict(zip(request["inputs"], (arrays[name] for name in arrays.files)))

    if request["format"] == "onnx":
        check_onnx(request["path"])
    load, runtime = RUNTIMES[request["format"]]()
    started = time.perf_counter()
    function = load(request["path"], request["outputs"])
    result: dict[str, Any] = {
        "runtime": runtime,
        "load_seconds": time.perf_counter() - started,
        "errors": {},
        "call_seconds": [],
    }
    for number in range(request["run"]):
        try:
            np.savez(folder / f"out-{number}.npz", *function(batch(number)))
        except Exception as error:  # of any kind, by the runtime
            result["errors"][number] = f"{type(error).__name__}: {error}"
    for number in range(request["run"], request["run"] + request["timed"]):
        try:
            result["call_seconds"].append(seconds(function, batch(number)))
        except Exception:  # reported above for a batch that is compared
            result["call_seconds"].append(None)
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
