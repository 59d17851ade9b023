"""The encoder-decoder: padding, generation with what is kept, the search among several beams."""

import itertools
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

from zoo import gpt, registry, transformer
from zoo.backends import backend
from zoo.evaluation.attention_maps import attention_maps
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import decoder_for
from zoo.generation.sampling import generate
from zoo.models.transformer import CONFIGURATIONS

SIZES = {
    "source_vocabulary_size": 40, "target_vocabulary_size": 50, "max_length": 96, "num_layers": 2,
    "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 48, "dropout": 0.0, "padding": 39,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "paper": {"tie_embeddings": False},
    "pre_norm": {
        **registry.get("transformer").examples["pre_norm"], **SIZES, "num_heads": 4,
        "share_embeddings": False,
    },
    "learned": {"positions": "learned", "norm_first": True},
}  # fmt: skip
SOURCES = [[5, 6, 7, 8, 9, 10, 11], [3, 4], [12, 13, 14, 15]]
PROMPTS = [[1, 2, 3], [1], [4, 5, 1, 0, 3]]
WIDTH = 80


def made(kind: str = "paper", **options: Any) -> keras.Model:
    """With weights that let tokens vary: where a token stands says more than which it is."""
    model = transformer(**{**SIZES, **KINDS[kind], **options})
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        layer = variable.path.split("/")[0].split("_")[-1]
        stddev = {"embedding": 0.07, "positions": 1.0, "output": 0.5}.get(layer, 0.05)
        if len(variable.shape) > 1:
            variable.assign(generator.normal(0, stddev, variable.shape))
    return model


def forward(model: keras.Model, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logits (B, T, V) by a forward pass over all of the targets."""
    if "_forward" not in vars(model):
        vars(model)["_forward"] = backend.inference_function(
            model, lambda *ids: model([ops.convert_to_tensor(x) for x in ids], training=False)
        )
    return ops.convert_to_numpy(vars(model)["_forward"](sources, targets))


def padded(rows: list[list[int]], width: int = 16, fill: int = 39) -> np.ndarray:
    ids = np.full((len(rows), width), fill, np.int32)
    for row, given in zip(ids, rows):
        row[: len(given)] = given
    return ids


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> keras.Model:
    return made(request.param)


def test_the_counts_of_the_named_configurations() -> None:
    count = registry.get("transformer").count
    # The paper says 65 and 213 million, of about 37,000 tokens.
    assert count(**CONFIGURATIONS["base"]) == 63_082_496
    assert count(**CONFIGURATIONS["big"]) == 214_245_376
    for name, d, f in (("base", 512, 2048), ("big", 1024, 4096)):
        encoder, decoder = 4 * d**2 + 2 * d * f + 9 * d + f, 8 * d**2 + 2 * d * f + 15 * d + f
        assert count(**CONFIGURATIONS[name]) == 37000 * d + 6 * (encoder + decoder)
    small = CONFIGURATIONS["small"]
    assert transformer(**small).count_params() == count(**small)


def test_padding_changes_nothing(model: keras.Model) -> None:
    alone = forward(model, np.array(SOURCES[:1]), np.array(PROMPTS[:1]))
    beside = forward(model, padded(SOURCES), padded(PROMPTS))
    np.testing.assert_allclose(beside[:1, : len(PROMPTS[0])], alone, atol=1e-5)


def test_nothing_looks_at_padding_or_ahead() -> None:
    model = made("pre_norm")
    maps = attention_maps(model, [padded(SOURCES, 9), padded(PROMPTS, 6)])
    assert len(maps) == 6
    for path, weights in maps.items():
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        if "decoder" in path and "cross" not in path:
            assert not np.triu(weights, 1).any()
        else:
            assert all(not weights[row, ..., len(ids) :].any() for row, ids in enumerate(SOURCES))


def test_a_source_of_padding_alone_is_finite(model: keras.Model) -> None:
    assert np.isfinite(forward(model, padded([[39, 39]] * 3), padded(PROMPTS))).all()


def test_kept_keys_and_values_change_nothing(model: keras.Model) -> None:
    """At each of 64 steps, for sources and prompts of different lengths in one batch."""
    rows = [list(prompt) for prompt in PROMPTS]
    decoder = decoder_for(model)
    prompts, sources = ([np.array(ids) for ids in given] for given in (PROMPTS, SOURCES))
    steps = [ops.convert_to_numpy(decoder.prefill(prompts, 64, sources))]
    for _ in range(64):
        ids = steps[-1].argmax(-1)
        for row, token in zip(rows, ids.tolist()):
            row.append(token)
        steps.append(ops.convert_to_numpy(decoder.decode(ids[:, None].astype(np.int32))))
    expected = forward(model, padded(SOURCES), padded(rows, WIDTH))
    for number, prompt in enumerate(PROMPTS):
        found = [logits[number] for logits in steps]
        whole = expected[number, len(prompt) - 1 : len(rows[number])]
        np.testing.assert_allclose(found, whole, atol=1e-5)
        assert len(set(rows[number])) > 5  # or it would be too easy


# ------------------------------------------------------------------ beams


def scores(
    model: keras.Model, sources: Any, prompts: Any, continuations: Any, penalty: float = 0.6
) -> np.ndarray:
    """Of continuations, by a forward pass over each."""
    whole = [[*prompt, *map(int, ids)] for prompt, ids in zip(prompts, continuations)]
    logs = log_softmax(forward(model, padded(sources), padded(whole, WIDTH, fill=0)), axis=-1)
    totals = [
        sum(row[len(prompt) - 1 + i, token] for i, token in enumerate(ids))
        for row, prompt, ids in zip(logs, prompts, continuations)
    ]
    lengths = np.array([len(ids) for ids in continuations])
    return np.array(totals) / ((5 + lengths) / 6) ** penalty


def test_many_beams_find_the_likeliest_of_all() -> None:
    """Held against every sequence there is, with and without an end."""
    model, stop, others = made(target_vocabulary_size=6), 2, (0, 1, 3, 4, 5)
    everything = [
        [*ids, stop] for length in range(3) for ids in itertools.product(others, repeat=length)
    ]
    everything += map(list, itertools.product(others, repeat=3))
    found = beam_search(model, [[1]] * 3, 3, 40, stop_tokens=[stop], sources=SOURCES)
    for source, ids in zip(SOURCES, found):
        count = len(everything)
        all_scores = scores(model, [source] * count, [[1]] * count, everything)
        assert ids.tolist() == everything[int(all_scores.argmax())]


def stop_of(model: keras.Model) -> int:
    """A token that comes amid what the model writes after the first prompt."""
    written = generate(model, PROMPTS[:1], 20, sources=SOURCES[:1], temperature=0.0)[0].tolist()
    return next(
        token for place, token in enumerate(written) if place > 2 and token not in written[:place]
    )


def test_one_beam_is_greedy(model: keras.Model) -> None:
    stops = [stop_of(model)]
    greedy = generate(model, PROMPTS, 20, sources=SOURCES, temperature=0.0, stop_tokens=stops)
    assert 3 < len(greedy[0]) < 20
    beams = beam_search(model, PROMPTS, 20, 1, stop_tokens=stops, sources=SOURCES)
    for one, other in zip(greedy, beams):
        np.testing.assert_array_equal(one, other)


def test_what_is_found_has_ended_or_is_full_and_is_the_same_alone(model: keras.Model) -> None:
    stops = [stop_of(model), 3, 8]
    together = beam_search(model, PROMPTS, 12, 4, stop_tokens=stops, sources=SOURCES)
    for found, prompt, source in zip(together, PROMPTS, SOURCES):
        assert len(found) == 12 or found[-1] in stops
        assert not set(found[:-1].tolist()) & set(stops)
        (alone,) = beam_search(model, [prompt], 12, 4, stop_tokens=stops, sources=[source])
        np.testing.assert_array_equal(found, alone)


def test_more_beams_find_likelier_ones(model: keras.Model) -> None:
    one, several = (
        scores(model, SOURCES, PROMPTS, beam_search(model, PROMPTS, 12, n, sources=SOURCES))
        for n in (1, 6)
    )
    assert several.sum() > one.sum()


def test_it_ends_where_the_context_does() -> None:
    model = made(max_length=8)
    greedy = generate(model, PROMPTS, 20, sources=SOURCES, temperature=0.0)
    beams = beam_search(model, PROMPTS, 20, sources=SOURCES)
    # The last token of the longest prompt's context has one after it.
    assert {len(ids) for ids in (*greedy, *beams)} == {8 + 1 - 5}


def test_a_greater_length_penalty_gives_longer_ones() -> None:
    model = made(target_vocabulary_size=6)
    kernel = model.get_layer("output").kernel
    kernel.assign(0.01 * kernel.value)  # each token is about as likely as another
    short, long = (
        beam_search(model, PROMPTS, 12, 8, penalty, [2], SOURCES) for penalty in (0.0, 6.0)
    )
    assert [row.tolist() for row in short] == [[2]] * 3
    assert all(len(row) > 1 for row in long)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sources": None}, "`sources` must hold one for each.*Received: 0 sources for 3 prompts"),
        ({"sources": SOURCES[:2]}, "Received: 2 sources for 3 prompts"),
        ({"sources": np.ones((2, 3), int)}, "Received: 2 sources for 3 prompts"),
        ({"sources": [[], [1], [2]]}, "Each of `sources` must be a sequence of integers"),
        ({"sources": [[1], [40], [2]]}, r"`sources` must hold ids in \[0, 40\).*id 40 at index 1"),
        ({"sources": [[1] * 97, [1], [2]]}, "Each of `sources` must have at most.*Received: 97"),
        ({"prompts": [[1], [50], [2]]}, r"`prompts` must hold ids in \[0, 50\).*id 50 at index 1"),
    ],
)
@pytest.mark.parametrize("function", [generate, beam_search])
def test_generation_refuses(function: Any, arguments: dict[str, Any], text: str) -> None:
    given = {"prompts": PROMPTS, "sources": SOURCES, "max_new_tokens": 3, **arguments}
    with pytest.raises(ValueError, match=text):
        function(made(), **given)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_beams": 0}, "`num_beams` must be a whole number of at least 1"),
        ({"length_penalty": -1.0}, "`length_penalty` must be 0 or more. Received: .*-1.0"),
        ({"length_penalty": math.nan}, "`length_penalty` must be 0 or more"),
    ],
)
def test_the_search_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        beam_search(made(), PROMPTS, 3, sources=SOURCES, **arguments)


def test_a_decoder_alone_reads_no_sources() -> None:
    model = gpt(8, num_layers=1, num_heads=2, hidden_dim=8)
    with pytest.raises(ValueError, match=r"read by an encoder-decoder only\. Received: 1 sources"):
        generate(model, [[1]], 2, sources=[[1]])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"share_embeddings": True}, "needs one vocabulary for both. Received: .*=40, .*=50"),
        ({"padding": 40}, r"`padding` must lie in \[0, 40\).*Received: padding=40"),
        ({"positions": "none"}, "learned, sinusoidal, rotary. Received: positions=none"),
        ({"num_heads": 5}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=5"),
        ({"target_vocabulary_size": 0}, "`target_vocabulary_size` must be a whole number"),
    ],
)
def test_it_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        transformer(**{**SIZES, **arguments})


def test_as_many_sources_as_targets() -> None:
    with pytest.raises(ValueError, match="Received: 3 sources and 2 targets"):
        made()([padded(SOURCES, 8), padded(PROMPTS[:2], 8)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_that_is_too_long(kind: str) -> None:
    with pytest.raises(ValueError, match=r"at most `max_length` = 96 tokens.*Received: 97"):
        made(kind)([np.zeros((1, 97), np.int32), np.zeros((1, 3), np.int32)])
