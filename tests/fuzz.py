"""Random calls of all public callables: each returns, or names the argument that it refuses.

    python -m tests.fuzz 10000 0

The callables are found in the modules of `zoo/`, and the values of an argument by its annotation,
so that a new function is called without an entry here.
"""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import tempfile
import time
import types
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.configuration
import keras
import numpy as np
from hypothesis import strategies as st
from rich.console import Console

import zoo
from zoo import registry
from zoo.validation import decorator, show

# Hypothesis writes its caches to the current folder otherwise.
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "zoo-fuzz")

LIMIT = 1.0  # seconds of a call
# Names an argument or a file, and shows what was received.
ERROR = re.compile(r"(`\w+`|must be a file).*(Received: |does not fit the model: )", re.DOTALL)
# Commands and their flags, the insides of the check and of the export, and what handles files or
# other libraries.
SKIPPED = (
    "zoo.__main__", "zoo.backends", "zoo.cli", "zoo.data.", "zoo.diffusion.config", "zoo.export",
    "zoo.files", "zoo.interop", "zoo.parity.", "zoo.progress", "zoo.recipes", "zoo.tasks.command",
    "zoo.training.accumulation", "zoo.training.checkpoints", "zoo.training.config",
    "zoo.training.lock", "zoo.training.rendezvous", "zoo.training.run_",
    "zoo.validation",
)  # fmt: skip
# Functions for users in these rooms.
ENTRY_POINTS = (
    "zoo.files.runs.load_model", "zoo.interop.huggingface.load",
    "zoo.interop.huggingface.load_generation_options", "zoo.interop.huggingface.load_tokenizer",
    "zoo.interop.huggingface.save", "zoo.interop.pytorch.load", "zoo.interop.pytorch.save",
    "zoo.interop.pytorch.state_dict", "zoo.parity.case.Case", "zoo.parity.case.locate",
    "zoo.parity.check.parse_rungs", "zoo.parity.equivalence.compare_accuracies",
    "zoo.parity.equivalence.equivalence", "zoo.parity.inputs.InputSpec",
    "zoo.parity.report.read_json", "zoo.parity.workers.Workers",
    "zoo.training.run_directory.RunDirectory",
)  # fmt: skip
# Functions that call a user's model with a user's inputs: errors in shapes are those of Keras.
MODEL_CALLS = {
    "zoo.evaluation.attention_maps.attention_maps",
    "zoo.evaluation.gradients.distances",
    "zoo.evaluation.gradients.gradient_by_step",
}
# Functions of tensors that are called in each step, and those that are called while the package is
# imported.
UNCHECKED = {
    "zoo.diffusion.losses.check_range",
    "zoo.diffusion.losses.pixels",
    "zoo.diffusion.losses.stratified_timesteps",
    "zoo.generation.sampling.check_logits",
    "zoo.generation.sampling.sample_tokens",
    "zoo.layers.attention.check_length",
    "zoo.layers.attention.heads_first",
    "zoo.layers.core.call_built",
    "zoo.layers.core.check_token_ids",
    "zoo.layers.core.dense_projection",
    "zoo.layers.recurrent.gru_step",
    "zoo.layers.recurrent.lstm_step",
    "zoo.layers.recurrent.simple_rnn_step",
    "zoo.layers.rotary.RotaryScaling",
    "zoo.layers.rotary.rotary_frequencies",
    "zoo.layers.rotary.rotary_tables",
    "zoo.layers.rotary.rotate",
    "zoo.layers.rotary.rotations",
    "zoo.lessons.backprop.backward",
    "zoo.lessons.backprop.cross_entropy",
    "zoo.lessons.backprop.forward",
    "zoo.lessons.backprop.update",
    "zoo.registry.register",
    "zoo.registry.set_pretrained_builder",
    "zoo.training.cluster.from_first",
    "zoo.training.cluster.joined",
    "zoo.training.losses.at_least_float32",
    "zoo.training.losses.cross_entropy",
}
# Dataclasses that the package itself fills.
RECORDS = {
    "Activation", "Classifier", "Entry", "ImageDecoder", "ImageInput", "TokenChoice",
    "TrainingState",
}  # fmt: skip
# Functions of each training step, which check their arguments by the rules alone.
CHECKED_BY_RULES = {
    "zoo.random.generator.bernoulli",
    "zoo.random.generator.bits",
    "zoo.random.generator.fold_in",
    "zoo.random.generator.normal",
    "zoo.random.generator.uniform",
    "zoo.random.place.rows",
}


def is_validated(function: Any) -> bool:
    """Whether the decorator `validated` is the outermost of a function."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == decorator.__file__


def public_callables() -> dict[str, Callable[..., Any]]:
    """Functions and classes with arguments that the modules of `zoo/` define, by address."""
    by_address = {}
    for info in pkgutil.walk_packages(zoo.__path__, "zoo."):
        if info.name.startswith(SKIPPED):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == info.name
            if name.startswith("_") or not is_own or not callable(value):
                continue
            if inspect.isclass(value) and not issubclass(value, Exception):
                has_arguments = "__init__" in vars(value) and inspect.signature(value).parameters
                if has_arguments and not _is_plain_record(value):
                    by_address[f"{info.name}.{name}"] = value
            elif inspect.isfunction(inspect.unwrap(value)) and inspect.signature(value).parameters:
                by_address[f"{info.name}.{name}"] = value
    return by_address | {address: pkgutil.resolve_name(address) for address in ENTRY_POINTS}


def _is_plain_record(value: type) -> bool:
    return value.__name__ in RECORDS or getattr(value, "_is_protocol", False)


# ------------------------------------------------------------------ values

NONSENSE = (
    None, True, "10", "", b"x", -1, 0, 1.5, 10**12, 10**30, -(10**30), 1e300, float("nan"),
    float("inf"), -float("inf"), 1j, {}, [], (), {"a": 1}, [1, "a"], [None], [[]], object(),
    np.array("a"), np.zeros((2, 3, 4)), np.zeros(0, np.int32), np.array([np.nan]), np.float32(2),
    np.array([[1, 2]]), len, int, Ellipsis,
)  # fmt: skip


@functools.cache
def _models() -> tuple[keras.Model, ...]:
    names = ("gpt", "rnn_language_model/gru", "transformer", "unet", "text_to_image", "autoencoder")
    models = []
    for name in names:
        (arguments,) = list(registry.examples(name).values())[:1]
        models.append(registry.get(name.partition("/")[0]).build(**arguments))
    return *models, zoo.mlp((4, 4, 1), 3, (5,))


@functools.cache
def _objects() -> dict[type, tuple[Any, ...]]:
    """Instances for arguments that are objects, by their class."""
    from zoo.datasets.augmentation import ImageAugmentation
    from zoo.datasets.images import ImageDataset
    from zoo.datasets.tokenizer import Tokenizer
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.noise_schedule import linear
    from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
    from zoo.diffusion.prompts import ClassPrompts, WordTokenizer

    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    labels = np.arange(6, dtype=np.int32) % 3
    words = WordTokenizer(["a seven", "one"])
    spec = DiffusionSpec(num_steps=20)
    instances = (
        *_models(), Tokenizer.train(["to be or not to be, that is the question"], 40), words,
        ImageAugmentation((0.5,), (0.5,)), GaussianDiffusion(linear(20)), linear(20), spec,
        ClassPrompts(words, [["one"], ["seven"]]), Console(quiet=True),
        ImageDataset("drawn", images, labels, images, labels, 3, (0.5,), (0.5,)),
        DiffusionPipeline(_models()[3], spec), keras.optimizers.SGD(), keras.callbacks.History(),
    )  # fmt: skip
    by_class: dict[type, tuple[Any, ...]] = {}
    for instance in instances:
        for base in type(instance).__mro__[:-1]:
            by_class[base] = (*by_class.get(base, ()), instance)
    return by_class


_FOLDER = Path(tempfile.gettempdir()) / "zoo-fuzz" / "missing"
_EXAMPLES: dict[Any, tuple[Any, ...]] = {
    int: (1, 2, 3),
    float: (0.25, 0.5, 1, 2.0),
    bool: (True, False),
    str: ("to be", "train", "relu", "float32"),
    Path: (_FOLDER, str(_FOLDER)),
    np.ndarray: (
        np.array([1, 2, 1]), np.array([[1, 2], [2, 1]]), np.ones((2, 3)), np.ones((2, 4, 4, 1)),
        np.zeros((2, 4, 4, 1), np.uint8), np.full((2, 3, 3), 0.5), np.ones(2), [1, 2],
    ),
}  # fmt: skip
_ANY = (
    np.zeros(2, np.int32), "float32", (2, 3), [[1, 2], [1]], np.ones((2, 3), np.float32), 3, None,
    {"a": np.ones(3)},
)  # fmt: skip


def plausible(annotation: Any) -> tuple[Any, ...]:
    """Values of the annotated type; they may still lie outside its range."""
    if annotation is None or annotation is type(None):
        return (None,)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return plausible(arguments[0])
    if origin is typing.Literal:
        return arguments
    if origin in (typing.Union, types.UnionType):
        return tuple(value for argument in arguments for value in plausible(argument))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        parts = ("train", "validation", "test")
        return tuple(dict.fromkeys(parts, value) for value in plausible(arguments[1]))
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, typing.Iterable)):
        elements = plausible(arguments[0])[:3] if arguments else _ANY
        return (list(elements), elements[:1], elements[:2])
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return (lambda *_: np.zeros((1, 3)),)
    if annotation in _EXAMPLES:
        return _EXAMPLES[annotation]
    return _objects().get(annotation, _ANY)


def arguments_of(function: Callable[..., Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Strategy of the keyword arguments of a call; optional ones may be left out."""
    target = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
    hints = typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    required, optional = {}, {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        valid = st.sampled_from(plausible(hints.get(name, Any)))
        values = st.one_of(valid, valid, valid, st.sampled_from(NONSENSE))
        if parameter.default is parameter.empty:
            required[name] = values
        else:
            optional[name] = values
    return st.fixed_dictionaries(required, optional=optional)


# ------------------------------------------------------------------ calls


@dataclass
class Result:
    """Counts of the calls.

    Attributes:
        returned: Number of calls that returned.
        refused: Number of calls that an error ended which names an argument.
        failures: Text of each call that ended otherwise or took longer than `LIMIT`, by callable.
    """

    returned: int = 0
    refused: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def call(address: str, function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Calls a function; returns "returned", "refused" or the text of a failure.

    Required arguments are always given, so that even a TypeError is a failure.
    """
    started = time.process_time()
    try:
        result = function(**arguments)
        if isinstance(result, Iterator):
            next(result, None)
        outcome = "returned"
    except OSError as error:  # of a missing folder, which the system names
        outcome = "refused" if error.filename else f"{type(error).__name__}: {error}"
    except ValueError as error:
        outcome = "refused" if ERROR.search(str(error)) else f"ValueError: {error}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - started
    return outcome if seconds < LIMIT else f"{outcome} after {seconds:.1f} s"


def fuzz(calls: int, seed: int = 0) -> Result:
    """Calls random public callables with random arguments.

    Args:
        calls: Number of calls.
        seed: Seed of the callables and arguments.
    """
    result = Result()
    callables = public_callables()
    for name in UNCHECKED | MODEL_CALLS:
        del callables[name]
    strategies = {name: arguments_of(function) for name, function in callables.items()}
    names = st.sampled_from(sorted(callables))
    drawn = names.flatmap(lambda name: st.tuples(st.just(name), strategies[name]))

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=calls, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(drawn)
    def attempt(example: tuple[str, dict[str, Any]]) -> None:
        name, arguments = example
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = call(name, callables[name], arguments)
        result.counts[name] += 1
        if outcome == "returned":
            result.returned += 1
        elif outcome == "refused":
            result.refused += 1
        else:
            shown = ", ".join(f"{k}={show(v)}" for k, v in arguments.items())
            result.failures[f"{name}({shown})"] = outcome

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for what they save
        attempt()
    return result


if __name__ == "__main__":
    outcome = fuzz(*map(int, sys.argv[1:]))
    for text, reason in outcome.failures.items():
        print(f"{text}\n    {reason[:300]}")
    print(f"{outcome.returned} returned, {outcome.refused} refused, {len(outcome.failures)} failed")
