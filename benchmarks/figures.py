"""Data of the interactive figures of the book: what trained models compute, for its script.

    KERAS_BACKEND=jax python -m benchmarks.figures
    KERAS_BACKEND=jax python -m benchmarks.figures attention gates

Each figure is a file in results/book/figures/, which the page contains and `docs/_static/book.js`
draws. `attention` also draws the picture of the chapter on transformers.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tyro
from keras import ops

import zoo
from benchmarks.pages import RESULTS
from zoo import datasets
from zoo.datasets.tokenizer import Tokenizer
from zoo.diffusion import plots
from zoo.diffusion.metrics import to_uint8
from zoo.evaluation.attention_maps import attention_maps, plot_attention
from zoo.lessons.activations import ACTIVATIONS

SENTENCE = "In the beginning was the word."
PROMPT = "To be, or not to be, that is the question:"


def rounded(array: Any, digits: int = 4) -> Any:
    """An array as nested lists of short numbers."""
    return np.round(np.asarray(ops.convert_to_numpy(array), np.float64), digits).tolist()


def activations() -> dict[str, Any]:
    """Values and slopes of the four activation functions; of softmax, beside nine zeros."""
    z = np.zeros((121, 10), np.float32)
    z[:, 0] = np.linspace(-6, 6, len(z))
    functions = {}
    for name, activation in ACTIVATIONS.items():
        y = activation.function(ops.convert_to_tensor(z))
        functions[name] = {
            "formula": activation.formula,
            "y": rounded(y[:, 0]),
            "slope": rounded(activation.derivative(y)[:, 0]),
        }
    return {"z": rounded(z[:, 0], 2), "functions": functions}


def convolution() -> dict[str, Any]:
    """A digit and six stamps of the first convolution; the three equal channels are summed."""
    classifier = zoo.load("cnn_48x48-mnist")
    data = datasets.load("mnist", 48, 1, 1)
    image = ops.convert_to_numpy(classifier.preprocessing(data.x_test[:1]))[0, ..., 0]
    kernel, bias = classifier.model.get_layer("conv1").get_weights()
    kernel = kernel.sum(axis=2)  # (3, 3, 32)
    strongest = np.argsort(-np.abs(kernel).max(axis=(0, 1)))[:6]
    return {
        "image": rounded(image, 2),
        "kernels": [rounded(kernel[..., index], 3) for index in strongest],
        "biases": rounded(bias[strongest], 3),
    }


def gates() -> dict[str, Any]:
    """Gates and cell states of an LSTM while it reads a sentence, of the units that vary most."""
    task = zoo.load("lstm-shakespeare")
    ids = task.tokenizer.encode(PROMPT)
    x = ops.convert_to_numpy(task.model.get_layer("embedding")(ids[None]))[0]
    kernel, recurrent, bias = task.model.get_layer("rnn1").get_weights()
    h = c = np.zeros(recurrent.shape[0], np.float32)
    sigmoid = keras.activations.sigmoid
    history: dict[str, list[np.ndarray]] = {"input": [], "forget": [], "output": [], "cell": []}
    for row in x:
        i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
        i, f, o = (ops.convert_to_numpy(sigmoid(gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        for name, value in zip(history, (i, f, o, c)):
            history[name].append(value)
    arrays = {name: np.stack(values) for name, values in history.items()}  # (T, units)
    units = np.sort(np.argsort(-arrays["forget"].std(axis=0))[:12])
    return {
        "tokens": [task.tokenizer.decode([index]) for index in ids],
        "units": units.tolist(),
        **{name: rounded(array[:, units].T, 3) for name, array in arrays.items()},
    }


def attention() -> dict[str, Any]:
    """Attention of a translation to its source, and of the source to itself, by layer and head."""
    task = zoo.load("transformer-eng-spa")
    tokenizer = task.tokenizer
    source = tokenizer.encode(SENTENCE)
    target = tokenizer.encode(task.translate([SENTENCE])[0])
    inputs = {"source": source[None], "target": np.array([[Tokenizer.BOS, *target]], np.int32)}
    maps = attention_maps(task.model, inputs)
    words = {
        "source": [tokenizer.decode([index]) for index in source],
        # Each position of the target predicts the next token, under which it is shown.
        "target": [*(tokenizer.decode([index]) for index in target), "(end)"],
    }
    kinds = {
        "encoder": ("source", "source"),
        "cross": ("target", "source"),
    }
    result = []
    for path, weights in maps.items():
        for kind, (queries, keys) in kinds.items():
            if kind in path and ("cross" in path) == (kind == "cross"):
                result.append(
                    {
                        "layer": path,
                        "queries": words[queries],
                        "keys": words[keys],
                        "heads": rounded(weights[0], 3),
                    }
                )
    result.sort(key=lambda layer: "cross" not in layer["layer"])
    decoder = next(layer for layer in result if layer["layer"] == "decoder_block3/cross_attention")
    shares = np.asarray(decoder["heads"], np.float32)
    figure = plot_attention(shares, decoder["queries"], decoder["keys"])
    figure.savefig(RESULTS / "transformer-attention.png")
    return {"layers": result}


def temperature() -> dict[str, Any]:
    """Logits of the next token, of which a temperature makes probabilities."""
    task = zoo.load("gpt-shakespeare-subwords")
    ids = task.tokenizer.encode("O Romeo, Romeo, wherefore art thou")
    logits = ops.convert_to_numpy(task.model(ids[None]))[0, -1].astype(np.float64)
    order = np.argsort(-logits)
    return {
        "prompt": "O Romeo, Romeo, wherefore art thou",
        "tokens": [task.tokenizer.decode([index]) for index in order[:10]],
        "logits": rounded(logits[order] - logits.max(), 2),
    }


def denoising() -> dict[str, Any]:
    """Ten digits on their way from noise, and what the network takes them for, as pictures."""
    task = zoo.load("text_to_image-mnist")
    frames: list[str] = []

    def keep(first: int, images: np.ndarray, predicted: np.ndarray) -> None:
        if len(frames) % 2 == 0 or len(frames) == 49:
            rows = to_uint8(np.concatenate([images, predicted]))
            rows = rows // 17 * 17  # 16 levels of grey
            png = plots.png(plots.grid(rows, 10, scale=1).convert("L").quantize(16))
            frames.append(base64.b64encode(png).decode())
        else:
            frames.append("")

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    task.sample([f"a handwritten {name}" for name in names], callback_on_step_end=keep)
    return {"frames": [frame for frame in frames if frame]}


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "activations": activations,
    "convolution": convolution,
    "gates": gates,
    "attention": attention,
    "temperature": temperature,
    "denoising": denoising,
}


@dataclass(frozen=True)
class Config:
    """Write the data of interactive figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = tuple(FIGURES)
    """Names of the figures; by default all."""


def main(config: Config) -> None:
    folder = RESULTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in config.names:
        content = json.dumps(FIGURES[name](), ensure_ascii=False, separators=(",", ":"))
        (folder / f"{name}.json").write_text(content + "\n", "utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
