"""Tokens that are chosen in tensor operations and decoded in a compiled loop."""

from typing import Any

import numpy as np
import pytest
from keras import ops

import zoo
from zoo import random
from zoo.backends import backend
from zoo.generation import sampling
from zoo.generation.sampling import generate, sample_tokens, stream
from zoo.generation.token_choice import TokenChoice

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "everything": {
        "temperature": 0.9, "top_k": 12, "top_p": 0.9, "repetition_penalty": 1.2,
        "stop_tokens": (3, 7),
    },
}  # fmt: skip


def varied(model: Any) -> Any:
    """The model with large weights, whose tokens vary."""
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        array = generator.normal(0, 0.3, variable.shape) + variable.path.endswith("gamma")
        variable.assign(array)
    return model


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.6}], ids=str)
def test_choice_in_tensor_operations_is_that_of_numpy(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (200, 40)).astype(np.float32)
    logits[5, 7:] = -np.inf
    choice = TokenChoice(0.9, options.get("top_k"), options.get("top_p"), 1.0)
    key = random.key(0, "test")
    state = choice.state(key, 3, np.zeros(logits.shape, bool))
    with backend.float64():  # Keras rounds float64 to float32 on JAX and PyTorch
        state = {entry: ops.convert_to_tensor(value) for entry, value in state.items()}
        tokens, state = choice.function(ops.convert_to_tensor(logits), state)
    uniform = random.uniform(random.fold_in(key, 3), len(logits))
    expected = sample_tokens(logits, uniform, choice.temperature, choice.top_k, choice.top_p)
    assert len(set(expected.tolist())) > 20
    np.testing.assert_array_equal(ops.convert_to_numpy(tokens), expected)
    assert int(state["index"]) == 4


needs_loop = pytest.mark.skipif(
    backend.decode_loop is None, reason="the backend decodes in a loop in Python"
)


@pytest.fixture(autouse=True)
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_LOOP_TOKENS", 1)


@pytest.fixture(scope="module")
def model() -> Any:
    return varied(zoo.gpt(40, 20, 1, 2, 16))


@needs_loop
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_generate_in_a_loop_gives_the_tokens_of_stream(model: Any, options: dict[str, Any]) -> None:
    """Beyond the context of 20 tokens, too, where the later half is read anew."""
    prompts = [[1, 2, 3], [4]]
    tokens = np.stack(list(stream(model, prompts, 30, **options)), axis=1)
    generated = generate(model, prompts, 30, **options)
    assert len(set(tokens.ravel().tolist())) > 3
    for row, expected in zip(generated, tokens):
        np.testing.assert_array_equal(row, expected[expected >= 0])


@needs_loop
def test_generate_in_a_loop_reads_sources() -> None:
    model = varied(zoo.transformer(30, 30, 16, num_layers=1, num_heads=2, hidden_dim=16))
    sources = [[5, 6, 7], [8, 9]]
    arguments: dict[str, Any] = {"temperature": 0.0, "sources": sources}
    tokens = np.stack(list(stream(model, [[1], [1]], 12, **arguments)), axis=1)
    np.testing.assert_array_equal(generate(model, [[1], [1]], 12, **arguments), tokens)


@needs_loop
def test_generate_in_a_loop_names_the_token_whose_logits_are_not_finite(model: Any) -> None:
    table = model.get_layer("positions").table
    values = ops.convert_to_numpy(table.value).copy()
    values[5] = np.nan  # position of the third new token after the first prompt
    table.assign(values)
    with pytest.raises(FloatingPointError, match="not finite at token 4 after prompt 1"):
        generate(model, [[1, 2, 3], [4]], 30, temperature=0.0)
