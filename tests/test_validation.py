"""Arguments: declared types, their errors, and random calls of all public callables."""

import inspect
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import keras
import numpy as np
import pytest

import zoo
from tests import fuzz
from zoo.datasets.tokenizer import Tokenizer
from zoo.generation.sampling import generate
from zoo.layers.transformer_block import TransformerBlock
from zoo.training import Adam, AdamW
from zoo.validation import (
    FilePath,
    Rate,
    Seed,
    Size,
    Sizes,
    array,
    each,
    number,
    validated,
    whole,
)


@validated
def example(
    size: Size,
    rate: Rate = 0.5,
    *more: int,
    kind: Literal["a", "b"] = "a",
    sizes: Sizes = (1,),
    optional: Size | None = None,
    flag: bool = False,
    either: Size | Annotated[Sequence[str], each(whole())] = 1,
    path: FilePath | None = None,
    ids: Annotated[np.ndarray, array("iu", "(T,)")] | None = None,
    model: keras.Model | None = None,
    function: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """An example."""
    return dict(locals())


pytestmark = pytest.mark.once


@pytest.mark.parametrize("size", [3, np.int64(3), np.uint8(3), np.array(3), np.arange(4).max()])
def test_whole_number_is_what_operator_index_takes(size: Any) -> None:
    received = example(size)["size"]
    assert received == 3
    assert type(received) is int
    assert zoo.mlp((2,), np.arange(10).max() + 1).output.shape == (None, 10)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (True, "True"), (np.True_, "np.True_"), (3.0, "3.0"), ("10", "'10'"), (None, "None"),
        (np.float32(3), "np.float32(3.0)"), (0, "0"), ({}, "{}"),
        (np.array([3]), "an array of shape (1,), dtype int64"),
    ],
)  # fmt: skip
def test_whole_number_rejects_other_values_and_shows_them(size: Any, shown: str) -> None:
    text = f"`size` must be a whole number of at least 1. Received: size={shown}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        example(size)


@pytest.mark.parametrize("size", [10**12, 10**30, 10**5000], ids=["trillion", "30", "5000"])
def test_whole_number_has_an_upper_bound(size: int) -> None:
    with pytest.raises(ValueError, match="`size` must be a whole number of at most 1048576"):
        example(size)


@pytest.mark.parametrize("rate", [1, -0.1, float("nan"), float("inf"), True, "0.5", None, {}, 1j])
def test_number_rejects_values_outside_its_interval(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\). Received: rate="):
        example(1, rate)


@pytest.mark.parametrize("rate", [0, 0.25, np.float32(0.25), np.float64(0.25)])
def test_number_takes_real_numbers(rate: Any) -> None:
    assert example(1, rate)["rate"] == rate
    assert type(example(1, rate)["rate"]) is float


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "c"}, "`kind` must be one of a, b. Received: kind='c'"),
        ({"sizes": ()}, "`sizes` must be a sequence of at least 1 element, each a whole number"),
        ({"sizes": (8, 0)}, "each a whole number of at least 1. Received: sizes=(8, 0)"),
        ({"sizes": (8, 10**9)}, "each a whole number of at most 1048576. Received: sizes=(8, "),
        ({"sizes": "int32"}, "Received: sizes='int32'"),
        ({"optional": 0}, "`optional` must be a whole number of at least 1. Received: optional=0"),
        ({"flag": 1}, "`flag` must be True or False. Received: flag=1"),
        (
            {"either": "a"},
            "`either` must be a whole number of at least 1 or a sequence of elements, each a whole "
            "number of at least 1. Received: either='a'",
        ),
        ({"path": 3}, "`path` must be a path. Received: path=3"),
        ({"path": "a\0b"}, "`path` must be a path"),
        ({"ids": [0.5]}, "`ids` must be an array of integers of shape (T,). Received: ids=[0.5]"),
        ({"ids": [[1], [2, 3]]}, "`ids` must be an array of integers of shape (T,)"),
        ({"model": 3}, "`model` must be an instance of Model. Received: model=3"),
    ],
)
def test_validated_names_the_argument_the_rule_and_the_value(
    arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match="must") as error:
        example(1, **arguments)
    assert text in str(error.value)


def test_validated_leaves_errors_of_the_signature_to_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        example()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="multiple values for argument 'size'"):
        example(1, size=2)  # type: ignore[misc]


def test_validated_keeps_the_function() -> None:
    assert example.__doc__ == "An example."
    assert inspect.getsource(example).startswith("@validated")
    assert next(iter(inspect.signature(zoo.cnn_48x48).parameters)) == "num_classes"
    assert inspect.getfullargspec(TransformerBlock.__init__).args[1] == "intermediate_dim"


def test_validated_passes_sequences_and_paths_on_in_one_form() -> None:
    received = example(1, 0.5, 7, sizes=np.array([3, 4]), path="folder", ids=[1], other=2)
    assert received["sizes"] == (3, 4)
    assert received["path"].name == "folder"
    assert received["ids"].dtype.kind == "i"
    assert (received["more"], received["options"]) == ((7,), {"other": 2})


def test_rules_describe_themselves() -> None:
    assert repr(number("(0, 1]")) == "a number in (0, 1]"
    assert repr(number("[0, inf)")) == "a finite number of at least 0"
    assert repr(number("(0, inf)")) == "a finite number above 0"
    assert repr(whole(None)) == "a whole number"
    assert (
        repr(each(whole(), 3, 3)) == "a sequence of 3 elements, each a whole number of at least 1"
    )
    assert repr(whole().or_none()) == "a whole number of at least 1 or None"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1e-8, {}, "1e-8", None, True])
@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_optimizers_reject_an_epsilon_that_is_no_positive_number(
    optimizer: Any, value: Any
) -> None:
    with pytest.raises(ValueError, match="`epsilon` must be a finite number above 0"):
        optimizer(epsilon=value)


def test_generation_rejects_arguments_that_would_not_end() -> None:
    model = zoo.gpt(16, 8, 1, 1, 4)
    with pytest.raises(ValueError, match="`max_new_tokens` must be a whole number of at most"):
        generate(model, [[1]], 10**30)
    with pytest.raises(ValueError, match="`stop_tokens` must be a sequence of elements, each"):
        generate(model, [[1]], 1, stop_tokens="int32")


@pytest.mark.parametrize(
    ("build", "arguments", "text"),
    [
        (zoo.gpt, {"vocabulary_size": 10**12}, "`vocabulary_size` must be a whole number of at mo"),
        (zoo.gpt, {"num_layers": 10**9}, "`num_layers` must be a whole number of at most 128"),
        (zoo.unet, {"num_blocks": 9}, "`num_blocks` must be a whole number of at most 8. Receiv"),
        (zoo.unet, {"channels": [8] * 9}, "`channels` must be a sequence of at most 8 elements"),
        (zoo.mlp, {"hidden_units": [8] * 129}, "`hidden_units` must be a sequence of at most 128"),
        (zoo.gpt, {"epsilon": {}}, "`epsilon` must be a finite number above 0. Received: epsil"),
        (zoo.unet, {"num_steps": 10**9}, "`num_steps` must be a whole number of at most 100000"),
        (zoo.mlp, {"hidden_units": [10**6, 10**6]}, "A `mlp` must have at most 20,000,000,000 pa"),
        (zoo.gpt, {"hidden_dim": 2**20}, "Choose smaller sizes; `hidden_dim`=1048576 is the lar"),
        (zoo.gpt, {"dtype": "int7"}, "`dtype` must be a dtype policy, one of float16, bfloat16"),
        (zoo.gpt, {"name": "a/b"}, "`name` must be a string that is not empty, without '/'"),
    ],
)  # fmt: skip
def test_builders_reject_sizes_that_would_fill_the_memory(
    build: Any, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match="must") as error:
        build(**arguments)
    assert text in str(error.value)


def test_seeds_are_whole_numbers_of_32_bits() -> None:
    @validated
    def draw(seed: Seed) -> int:
        return seed

    assert draw(2**32 - 1) == 2**32 - 1
    for seed in (-1, 2**32, True, 1.0):
        with pytest.raises(ValueError, match="`seed` must be a whole number of at"):
            draw(seed)


def test_all_public_callables_declare_their_arguments() -> None:
    callables = fuzz.public_callables()
    assert {"zoo.models.gpt.gpt", "zoo.layers.attention.Attention"} <= set(callables)
    unchecked = {
        address
        for address, function in callables.items()
        if not fuzz.is_validated(function.__init__ if inspect.isclass(function) else function)
    }
    assert unchecked == fuzz.UNCHECKED | fuzz.CHECKED_BY_RULES


def test_random_calls_return_or_name_the_argument() -> None:
    result = fuzz.fuzz(600)
    assert not result.failures
    assert result.returned > 40
    assert result.refused > 300
    assert Tokenizer in fuzz._objects()
