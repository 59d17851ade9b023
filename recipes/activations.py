"""Activation functions: how they look, and what they do to a gradient on its way back.

    KERAS_BACKEND=jax python recipes/activations.py --quick

Takes half a minute on two CPU cores. activations.png shows sigmoid, ReLU, tanh and softmax with
their derivatives and ranges, and the gradient that reaches each layer of a ten-layer MLP before it
is trained on MNIST. Of the last layer's gradient the first gets 1e-2 with tanh, 1e-3 with ReLU,
2e-8 with sigmoid and 1e-18 with softmax.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from keras import ops
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from zoo import backends, cli, datasets, mlp
from zoo.datasets.augmentation import ImageAugmentation
from zoo.lessons.activations import ACTIVATIONS
from zoo.training.config import open_run, set_defaults
from zoo.training.run_directory import RunDirectory
from zoo.training.run_identity import environment
from zoo.validation import Count, Layers, Seed, Size, validated

# The colour-blind tell these apart, too (Okabe and Ito). Linear: what the weights do by themselves.
STYLES: dict[str, dict[str, Any]] = {
    "sigmoid": {"color": "#0072b2", "marker": "o"},
    "relu": {"color": "#d55e00", "marker": "s"},
    "tanh": {"color": "#009e73", "marker": "^"},
    "softmax": {"color": "#cc79a7", "marker": "D"},
    "linear": {"color": "#bbbbbb", "linewidth": 6, "marker": ".", "zorder": 1},
}


@validated
@dataclass(frozen=True)
class Config:
    """Draw the activation functions, and measure the gradient in each layer of a deep MLP."""

    layers: Layers = 10
    """Layers of the network; the last gives the logits."""
    units: Size = 64
    """Width of each layer but the last."""
    train_examples: Count | None = None
    """Images of the batch, the first so many of MNIST; by default 4,096, with --quick 1,024."""
    seed: Seed = 0
    """Of the initial weights; the same on every backend."""
    run_dir: Path | None = None
    """Where the results go; by default a new folder in runs/."""
    quick: bool = False
    """A smaller batch, where not set otherwise."""
    quiet: bool = False
    """Print nothing but warnings and errors."""

    def __post_init__(self) -> None:
        set_defaults(self, train_examples=1024 if self.quick else 4096)


def gradient_norms(config: Config, activation: str, x: Any, labels: np.ndarray) -> list[float]:
    """The length of the loss' gradient by each layer's biases, from the first layer to the last.

    A bias is added to a neuron's sum z, so this is what reaches the neurons. The gradient by the
    weights is the same times the layer's inputs, of which the first has 784.
    """
    hidden_units = [config.units] * (config.layers - 1)
    model = mlp((784,), 10, hidden_units, activation, seed=config.seed, dtype="float32")
    loss = partial(ops.sparse_categorical_crossentropy, from_logits=True)
    gradients = backends.gradients(model, x, labels, loss)
    biases = (gradient for path, gradient in gradients.items() if path.endswith("bias"))
    return [float(np.linalg.norm(bias.astype(np.float64))) for bias in biases]


def draw_function(axes: Axes, name: str) -> None:
    """An activation and its derivative; of softmax, one of ten outputs by its own z."""
    activation = ACTIVATIONS[name]
    z = np.zeros((401, 10), np.float32)
    z[:, 0] = np.linspace(-5, 5, len(z))
    y = activation.function(ops.convert_to_tensor(z))
    derivative_label = f"f'(z) = {activation.derivative_formula}"
    curves = {"f(z)": (y, "-"), derivative_label: (activation.derivative(y), "--")}
    for label, (values, style) in curves.items():
        values = ops.convert_to_numpy(values)[:, 0]
        axes.plot(z[:, 0], values, style, color=STYLES[name]["color"], label=label)
    axes.set_title(f"{name}: {activation.formula}\nin {activation.range}", fontsize=10)
    low, high = axes.get_ylim()
    label = "z (the other nine are 0)" if name == "softmax" else "z"
    axes.set(xlabel=label, ylim=(low, high + 0.3 * (high - low)))  # room for the legend
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)


def draw(norms: Mapping[str, list[float]]) -> Figure:
    """The four functions, and below the gradient by layer."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 3))
    for axes, name in zip(above.subplots(1, 4), ACTIVATIONS):
        draw_function(axes, name)
    axes = below.subplots()
    for name, values in norms.items():
        label = f"{name}: first / last {values[0] / values[-1]:.0e}"
        axes.semilogy(range(1, len(values) + 1), values, label=label, **STYLES[name])
    axes.set_title("What reaches the neurons of each layer before training", fontsize=10)
    axes.set(xlabel="layer", ylabel="gradient by the biases", xticks=range(1, len(values) + 1))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe and returns its metrics."""
    console = cli.recipe_console(config.quiet)
    with open_run("activations", config) as run:
        if metrics := run.metrics:
            console.print(f"The run in {run.path} is finished; metrics.json holds its results")
            return metrics
        return measure(config, run, console)


def measure(config: Config, run: RunDirectory, console: Console) -> dict[str, Any]:
    """Draws the functions and measures the gradients; writes and returns the metrics."""
    started = time.perf_counter()
    data = datasets.load("mnist", None, config.train_examples, 1)
    transform = ImageAugmentation(data.mean, data.std, shape=(784,))
    x = transform(data.x_train)
    norms = {name: gradient_norms(config, name, x, data.y_train) for name in STYLES}
    run.write_config()
    run.save_plot("activations.png", draw(norms))
    ratios = {name: values[0] / values[-1] for name, values in norms.items()}
    table = Table("activation", "range", "first layer", "last layer", "first / last", "of linear's")
    for name, values in norms.items():
        numbers = values[0], values[-1], ratios[name], ratios[name] / ratios["linear"]
        bounds = ACTIVATIONS[name].range if name in ACTIVATIONS else "(-∞, ∞)"
        table.add_row(name, bounds, *(f"{number:.1e}" for number in numbers))
    console.print("The gradient that reaches a layer, before training:", table)
    metrics = {
        "recipe": "activations",
        "model": "mlp",
        **environment(),
        "seed": config.seed,
        "train_examples": config.train_examples,
        "gradient_norms": norms,
        "first_to_last": ratios,
        "wall_seconds": time.perf_counter() - started,
    }
    run.write_metrics(metrics)
    console.print(f"Results are in {run.path}")
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
