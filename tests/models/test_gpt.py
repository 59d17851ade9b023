"""Tests of the decoder-only transformer and of generation with cached keys and values."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import gpt, registry
from zoo.backends import backend
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import decoder_for
from zoo.generation.sampling import check_logits, generate, stream
from zoo.models.gpt import CONFIGURATIONS

SIZES = {"vocabulary_size": 50, "max_length": 96, "num_layers": 2, "hidden_dim": 32}
WIDTH = 80
NAN, INF = float("nan"), float("inf")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]


def make_model(kind: str = "gpt2", **options: Any) -> keras.Model:
    """Builds a model with weights larger than the initial ones, so that generated tokens vary."""
    arguments = {"gpt2": {"num_heads": 2}, "llama": CONFIGURATIONS["llama"]}
    arguments["sinusoidal"] = {"num_heads": 4, "positions": "sinusoidal"}
    arguments["qwen2"] = {
        **CONFIGURATIONS["llama"], "head_dim": 12, "attention_bias": "qkv",
        "rotary_scaling": {"type": "linear", "factor": 2.0},
    }  # fmt: skip
    model = gpt(**{**arguments[kind], **SIZES, "intermediate_dim": 48, "seed": 3, **options})
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(8 * variable.value)
    return model


def logits_of(model: keras.Model, ids: list[int]) -> np.ndarray:
    """Returns the logits of the token after each id, by a forward pass over all ids."""
    padded = np.zeros((1, WIDTH), np.int32)  # one shape, so that the model is compiled once
    padded[0, : len(ids)] = ids
    return ops.convert_to_numpy(model(padded))[0, : len(ids)]


@pytest.fixture(scope="module", params=["gpt2", "qwen2", "sinusoidal"])
def model(request: pytest.FixtureRequest) -> keras.Model:
    return make_model(request.param)


def test_gpt_configurations_have_the_published_parameter_counts() -> None:
    parameter_count = registry.get("gpt").parameter_count
    assert parameter_count(**CONFIGURATIONS["gpt2_small"]) == 124_439_808
    d, n = 768, 12
    assert 50257 * d + 1024 * d + n * (12 * d**2 + 13 * d) + 2 * d == 124_439_808
    for name in ("small", "llama"):
        expected = parameter_count(**CONFIGURATIONS[name])
        assert gpt(**CONFIGURATIONS[name]).count_params() == expected


def test_kv_cache_decoder_agrees_with_a_forward_pass(model: keras.Model) -> None:
    """The logits agree at each of 64 steps, for prompts of different lengths in one batch."""
    rows = [list(prompt) for prompt in PROMPTS]
    decoder = decoder_for(model)
    steps = [ops.convert_to_numpy(decoder.prefill([np.array(row) for row in rows], 64))]
    for _ in range(64):
        ids = steps[-1].argmax(-1)
        for row, token in zip(rows, ids.tolist()):
            row.append(token)
        steps.append(ops.convert_to_numpy(decoder.decode(ids[:, None].astype(np.int32))))
    for prompt, row, logits in zip(PROMPTS, rows, np.stack(steps, axis=1)):
        # One forward pass suffices, since later tokens do not change earlier logits.
        np.testing.assert_allclose(logits, logits_of(model, row)[len(prompt) - 1 :], atol=1e-5)
    assert len({tuple(row[-8:]) for row in rows}) == 3


def test_generate_greedily_gives_the_most_probable_tokens(model: keras.Model) -> None:
    for prompt, tokens in zip(PROMPTS, generate(model, PROMPTS, 64, temperature=0.0)):
        likeliest = logits_of(model, [*prompt, *tokens]).argmax(-1)
        np.testing.assert_array_equal(tokens, likeliest[len(prompt) - 1 : -1])


def test_generate_is_reproducible_with_a_seed(model: keras.Model) -> None:
    first, second = (generate(model, PROMPTS, 20, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (np.array(first) != generate(model, PROMPTS, 20, seed=2)).any()


@pytest.mark.parametrize("temperature", [1e-309, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}], ids=str)
def test_generate_at_the_smallest_temperatures_is_greedy(
    model: keras.Model, temperature: float, options: dict[str, Any]
) -> None:
    greedy = generate(model, PROMPTS, 8, temperature=0.0)
    tokens = generate(model, PROMPTS, 8, temperature=temperature, **options)
    np.testing.assert_array_equal(tokens, greedy)


def test_generate_continues_from_the_later_half_of_a_full_context() -> None:
    model = make_model(max_length=12)
    (tokens,) = generate(model, [[1, 2, 3]], 20, temperature=0.0)
    assert len(tokens) == 20
    padded, contexts = np.zeros((20, 12), np.int32), [[1, 2, 3]]
    for token in tokens.tolist():
        context = [*contexts[-1], token]
        contexts.append(context if len(context) <= 12 else context[-6:])
    for row, ids in zip(padded, contexts):
        row[: len(ids)] = ids
    logits = ops.convert_to_numpy(model(padded))
    likeliest = [logits[i, len(ids) - 1].argmax() for i, ids in enumerate(contexts[:20])]
    np.testing.assert_array_equal(tokens, likeliest)


def test_generate_shortens_only_the_rows_with_a_full_context() -> None:
    model = make_model(max_length=12)
    short, long = [7, 2, 5, 1], [*range(11)]
    in_batch, _ = generate(model, [short, long], 8, temperature=0.0)
    (alone,) = generate(model, [short], 8, temperature=0.0)
    np.testing.assert_array_equal(in_batch, alone)


def test_stream_is_independent_of_other_streams() -> None:
    model = make_model()
    expected = [np.stack(list(stream(model, [prompt], 12, seed=4))) for prompt in PROMPTS[:2]]
    interleaved = zip(*(stream(model, [prompt], 12, seed=4) for prompt in PROMPTS[:2]))
    for tokens, alone in zip(zip(*interleaved), expected):
        np.testing.assert_array_equal(np.stack(tokens), alone)


def test_generate_stops_at_a_stop_token() -> None:
    model = make_model()
    complete = generate(model, PROMPTS, 30, seed=4)
    stop = int(complete[0][9])
    stopped = generate(model, PROMPTS, 30, seed=4, stop_tokens=[stop])
    for row, expected in zip(stopped, complete):
        end = next((i + 1 for i, t in enumerate(expected) if t == stop), 30)
        np.testing.assert_array_equal(row, expected[:end])
    assert len(stopped[0]) <= 10


def test_stream_yields_the_tokens_of_generate() -> None:
    model = make_model()
    expected = np.stack(generate(model, PROMPTS, 30, seed=4), axis=1)
    tokens = stream(model, PROMPTS, 30, seed=4)
    np.testing.assert_array_equal(list(itertools.islice(tokens, 3)), expected[:3])


def test_generate_compiles_nothing_in_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of about the same length needs no compilation either."""
    model = make_model()
    generate(model, [[1, 2, 3]], 4)
    calls = []
    step = type(decoder_for(model))._step
    monkeypatch.setattr(type(decoder_for(model)), "_step", lambda *a: calls.append(1) or step(*a))
    generate(model, [[1, 2, 3, 4, 5]], 6)
    assert not calls


def test_generate_uses_weights_that_changed_after_a_call() -> None:
    model = make_model()
    old_tokens = generate(model, PROMPTS, 20, temperature=0.0)
    model.set_weights(make_model(seed=4).get_weights())
    new_tokens = generate(model, PROMPTS, 20, temperature=0.0)
    assert (np.array(old_tokens) != np.array(new_tokens)).any()
    for prompt, tokens in zip(PROMPTS, new_tokens):
        likeliest = logits_of(model, [*prompt, *tokens]).argmax(-1)
        np.testing.assert_array_equal(tokens, likeliest[len(prompt) - 1 : -1])


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the other backends compile, and reject such a step"
)
def test_decode_function_rejects_a_step_that_depends_on_tensor_values() -> None:
    step = backend.decode_function(
        make_model(), lambda arrays, caches: (arrays[0] * int(arrays[0]), caches)
    )
    with pytest.raises(TypeError, match=r"must not depend on its tensors' values.*`__int__`"):
        step((np.int32(3),), [])


@pytest.mark.parametrize("row", [[1, NAN, 2], [1, INF, 2], [-INF, -INF, -INF]])
def test_check_logits_names_token_and_prompt(row: list[float]) -> None:
    logits = np.array([[1, 2, 3], [-INF, 0, -INF], row, row])
    np.testing.assert_array_equal(check_logits(logits[:2], 0), logits[:2])
    with pytest.raises(FloatingPointError, match="not finite at token 8 after prompt 3"):
        check_logits(logits, 7)
    with pytest.raises(FloatingPointError, match="not finite at token 1 after prompt 2"):
        check_logits(logits, 0, rows_per_prompt=2)


def test_generation_ends_where_logits_are_not_finite() -> None:
    model = make_model()
    embedding = model.get_layer("embedding")
    embedding.set_weights([np.full_like(embedding.get_weights()[0], np.nan)])
    text = "logits are not finite at token 1 after prompt 1. Its weights may have diverged"
    for temperature in (0, 1):
        with pytest.raises(FloatingPointError, match=text):
            generate(model, PROMPTS, 8, temperature=temperature)
    with pytest.raises(FloatingPointError, match=text):
        beam_search(model, PROMPTS, 8, num_beams=2)


def test_repetition_penalty_makes_tokens_of_the_context_less_likely() -> None:
    model, text = make_model(), [3, 1, 4]
    (tokens,) = generate(model, [text], 8, temperature=0.0, repetition_penalty=1.5)
    whole = [*text, *tokens.tolist()]
    steps = ops.convert_to_numpy(model(np.array([whole]))).astype(np.float64)[0]
    for place, token in enumerate(tokens.tolist(), len(text)):
        logits = steps[place - 1]
        for seen in set(whole[:place]):
            logits[seen] = logits[seen] * 1.5 if logits[seen] < 0 else logits[seen] / 1.5
        assert token == logits.argmax()
    (plain,) = generate(model, [text], 8, temperature=0.0)
    assert plain.tolist() != tokens.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[]]}, "Each of `prompts` must be a sequence of integers, at least one"),
        ({"prompts": [[1, 50]]}, r"`prompts` must hold ids in \[0, 50\).*Received: id 50"),
        ({"prompts": [[1] * 97]}, "at most `max_length` = 96 tokens.*Received: 97"),
        (
            {"temperature": float("nan")},
            "`temperature` must be a finite number of at least 0. Received: .*nan",
        ),
        ({"top_p": 0.0}, r"`top_p` must be a number in \(0, 1\]. Received: top_p=0.0"),
        ({"repetition_penalty": 0.0}, r"`repetition_penalty` must be a number in \[0.01, 100\]"),
    ],
)
def test_stream_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        # The call itself raises the error, before the first token is requested.
        stream(make_model(), **{"prompts": PROMPTS, "max_new_tokens": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=5"),
        ({"num_kv_heads": 3}, "as many query heads. Received: num_heads=2, num_kv_heads=3"),
        (
            {"activation": "mish"},
            "one of relu, gelu, gelu_tanh, swiglu. Received: activation='mish'",
        ),
        ({"norm": "batch"}, "one of layer_norm, rms_norm. Received: norm='batch'"),
        ({"positions": "none"}, "sinusoidal, learned, rotary. Received: positions='none'"),
        ({"num_heads": 32, "positions": "rotary"}, "must be even for rotary positions"),
        ({"num_heads": 5, "head_dim": 0}, "`head_dim` must be a whole number .*head_dim=0"),
        ({"positions": "rotary", "head_dim": 7}, "must be even for rotary.*head_dim=7"),
        ({"attention_bias": "q"}, "`attention_bias` must be .*Received: attention_bias='q'"),
        (
            {"rotary_scaling": {"type": "linear", "factor": 2.0}},
            "must be None unless the positions are rotary.*positions=learned",
        ),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\). Received: dropout=1.0"),
        ({"num_layers": 0}, "`num_layers` must be a whole number of at least 1"),
        ({"vocabulary_size": 2.5}, "Received: vocabulary_size=2.5"),
    ],
)
def test_gpt_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt(**{**SIZES, "num_heads": 2, **arguments})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gpt_rejects_a_sequence_longer_than_max_length(kind: str) -> None:
    with pytest.raises(ValueError, match=r"at most `max_length` = 96 tokens.*Received: 97"):
        make_model(kind)(np.zeros((1, 97), np.int32))
