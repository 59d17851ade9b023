"""The decoder-only transformer, and generation with keys and values that are kept."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import gpt, registry
from zoo.backends import backend
from zoo.generation.decoding import decoder_for
from zoo.generation.sampling import generate, stream
from zoo.models.gpt import CONFIGURATIONS

SIZES = {"vocabulary_size": 50, "max_length": 96, "num_layers": 2, "hidden_dim": 32}
WIDTH = 80
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama", "sinusoidal"])


def made(kind: str = "gpt2", **options: Any) -> keras.Model:
    """With larger weights than initial ones, so that tokens vary."""
    chosen = {"gpt2": {"num_heads": 2}, "llama": CONFIGURATIONS["llama"]}
    chosen["sinusoidal"] = {"num_heads": 4, "positions": "sinusoidal"}
    model = gpt(**{**chosen[kind], **SIZES, "intermediate_dim": 48, "seed": 3, **options})
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(8 * variable.value)
    return model


def logits_of(model: keras.Model, ids: list[int]) -> np.ndarray:
    """Of the token after each, by a forward pass over all of them."""
    padded = np.zeros((1, WIDTH), np.int32)  # one shape, so that it is compiled once
    padded[0, : len(ids)] = ids
    return ops.convert_to_numpy(model(padded))[0, : len(ids)]


@pytest.fixture(scope="module", params=["gpt2", "llama", "sinusoidal"])
def model(request: pytest.FixtureRequest) -> keras.Model:
    return made(request.param)


def test_the_counts_of_the_named_configurations() -> None:
    count = registry.get("gpt").count
    assert count(**CONFIGURATIONS["gpt2_small"]) == 124_439_808
    d, n = 768, 12
    assert 50257 * d + 1024 * d + n * (12 * d**2 + 13 * d) + 2 * d == 124_439_808
    for name in ("small", "llama"):
        assert gpt(**CONFIGURATIONS[name]).count_params() == count(**CONFIGURATIONS[name])


def test_kept_keys_and_values_change_nothing(model: keras.Model) -> None:
    """At each of 64 steps, for prompts of different lengths in one batch."""
    rows = [list(prompt) for prompt in PROMPTS]
    decoder = decoder_for(model)
    steps = [ops.convert_to_numpy(decoder.prefill([np.array(row) for row in rows], 64))]
    for _ in range(64):
        ids = steps[-1].argmax(-1)
        for row, token in zip(rows, ids.tolist()):
            row.append(token)
        steps.append(ops.convert_to_numpy(decoder.decode(ids[:, None].astype(np.int32))))
    for prompt, row, found in zip(PROMPTS, rows, np.stack(steps, axis=1)):
        # What comes later does not change what is predicted before.
        np.testing.assert_allclose(found, logits_of(model, row)[len(prompt) - 1 :], atol=1e-5)
    assert len({tuple(row[-8:]) for row in rows}) == 3


def test_greedy_tokens_are_the_likeliest(model: keras.Model) -> None:
    for prompt, found in zip(PROMPTS, generate(model, PROMPTS, 64, temperature=0.0)):
        likeliest = logits_of(model, [*prompt, *found]).argmax(-1)
        np.testing.assert_array_equal(found, likeliest[len(prompt) - 1 : -1])


def test_the_same_seed_gives_the_same_tokens(model: keras.Model) -> None:
    first, again = (generate(model, PROMPTS, 20, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != generate(model, PROMPTS, 20, seed=2)).any()


def test_beyond_the_context_it_goes_on_from_the_later_half() -> None:
    model = made(max_length=12)
    (found,) = generate(model, [[1, 2, 3]], 20, temperature=0.0)
    assert len(found) == 20
    padded, seen = np.zeros((20, 12), np.int32), [[1, 2, 3]]
    for token in found.tolist():
        longer = [*seen[-1], token]
        seen.append(longer if len(longer) <= 12 else longer[-6:])
    for row, ids in zip(padded, seen):
        row[: len(ids)] = ids
    logits = ops.convert_to_numpy(model(padded))
    likeliest = [logits[i, len(ids) - 1].argmax() for i, ids in enumerate(seen[:20])]
    np.testing.assert_array_equal(found, likeliest)


def test_only_a_row_that_is_full_goes_on_from_its_later_half() -> None:
    model = made(max_length=12)
    short, long = [7, 2, 5, 1], [*range(11)]
    beside, _ = generate(model, [short, long], 8, temperature=0.0)
    (alone,) = generate(model, [short], 8, temperature=0.0)
    np.testing.assert_array_equal(beside, alone)


def test_two_streams_do_not_disturb_each_other() -> None:
    model = made()
    expected = [np.stack(list(stream(model, [prompt], 12, seed=4))) for prompt in PROMPTS[:2]]
    together = zip(*(stream(model, [prompt], 12, seed=4) for prompt in PROMPTS[:2]))
    for found, alone in zip(zip(*together), expected):
        np.testing.assert_array_equal(np.stack(found), alone)


def test_it_stops_at_a_stop_token() -> None:
    model = made()
    whole = generate(model, PROMPTS, 30, seed=4)
    stop = int(whole[0][9])
    found = generate(model, PROMPTS, 30, seed=4, stop_tokens=[stop])
    for row, expected in zip(found, whole):
        end = next((i + 1 for i, t in enumerate(expected) if t == stop), 30)
        np.testing.assert_array_equal(row, expected[:end])
    assert len(found[0]) <= 10


def test_tokens_come_one_by_one() -> None:
    model = made()
    whole = np.stack(generate(model, PROMPTS, 30, seed=4), axis=1)
    coming = stream(model, PROMPTS, 30, seed=4)
    np.testing.assert_array_equal(list(itertools.islice(coming, 3)), whole[:3])


def test_a_second_call_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a prompt of about the same length."""
    model = made()
    generate(model, [[1, 2, 3]], 4)
    calls = []
    step = type(decoder_for(model))._step
    monkeypatch.setattr(type(decoder_for(model)), "_step", lambda *a: calls.append(1) or step(*a))
    generate(model, [[1, 2, 3, 4, 5]], 6)
    assert not calls


def test_weights_that_change_afterwards_count() -> None:
    model = made()
    before = generate(model, PROMPTS, 20, temperature=0.0)
    model.set_weights(made(seed=4).get_weights())
    after = generate(model, PROMPTS, 20, temperature=0.0)
    assert (np.array(before) != np.array(after)).any()
    for prompt, found in zip(PROMPTS, after):
        likeliest = logits_of(model, [*prompt, *found]).argmax(-1)
        np.testing.assert_array_equal(found, likeliest[len(prompt) - 1 : -1])


@pytest.mark.skipif(keras.config.backend() != "torch", reason="others compile, and refuse it")
def test_a_step_that_depends_on_numbers_is_refused() -> None:
    step = backend.decode_function(
        made(), lambda arrays, caches: (arrays[0] * int(arrays[0]), caches)
    )
    with pytest.raises(TypeError, match=r"must not depend on its tensors' values.*`__int__`"):
        step((np.int32(3),), [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prompts": [[]]}, "Each of `prompts` must be a sequence of integers, at least one"),
        ({"prompts": [[1, 50]]}, r"`prompts` must hold ids in \[0, 50\).*Received: id 50"),
        ({"prompts": [[1] * 97]}, "at most `max_length` = 96 tokens.*Received: 97"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or more. Received: .*nan"),
        ({"top_p": 0.0}, r"`top_p` must lie in \(0, 1\]. Received: top_p=0.0"),
    ],
)
def test_generation_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        # At the call, not when the first token is asked for.
        stream(made(), **{"prompts": PROMPTS, "max_new_tokens": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_heads": 5}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=5"),
        ({"num_kv_heads": 3}, "which share the queries. Received: num_heads=2, num_kv_heads=3"),
        ({"activation": "mish"}, "one of relu, gelu, gelu_tanh, swiglu. Received: activation=mish"),
        ({"norm": "batch"}, "one of layer_norm, rms_norm. Received: norm=batch"),
        ({"positions": "none"}, "learned, sinusoidal, rotary. Received: positions=none"),
        ({"num_heads": 32, "positions": "rotary"}, "must be even for rotary positions"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\). Received: dropout=1.0"),
        ({"num_layers": 0}, "`num_layers` must be a whole number of at least 1"),
        ({"vocabulary_size": 2.5}, "Received: vocabulary_size=2.5"),
    ],
)
def test_it_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gpt(**{**SIZES, "num_heads": 2, **arguments})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_sequence_that_is_too_long(kind: str) -> None:
    with pytest.raises(ValueError, match=r"at most `max_length` = 96 tokens.*Received: 97"):
        made(kind)(np.zeros((1, 97), np.int32))
