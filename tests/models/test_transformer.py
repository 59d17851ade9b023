"""Tests of the encoder-decoder transformer: padding, cached generation and beam search."""

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


def make_model(kind: str = "paper", **options: Any) -> keras.Model:
    """Builds a model whose positions outweigh its embeddings, so that generated tokens vary."""
    model = transformer(**{**SIZES, **KINDS[kind], **options})
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        layer = variable.path.split("/")[0].split("_")[-1]
        stddev = {"embedding": 0.07, "positions": 1.0, "output": 0.5}.get(layer, 0.05)
        if len(variable.shape) > 1:
            variable.assign(generator.normal(0, stddev, variable.shape))
    return model


def predict_logits(model: keras.Model, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the logits, (B, T, V), by a forward pass over all targets."""
    if "_predict" not in vars(model):
        vars(model)["_predict"] = backend.inference_function(
            model, lambda *ids: model([ops.convert_to_tensor(x) for x in ids], training=False)
        )
    return ops.convert_to_numpy(vars(model)["_predict"](sources, targets))


def pad(sequences: list[list[int]], width: int = 16, padding: int = 39) -> np.ndarray:
    """Returns the sequences as one array, (B, width) int32."""
    ids = np.full((len(sequences), width), padding, np.int32)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = sequence
    return ids


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> keras.Model:
    return make_model(request.param)


def test_transformer_configurations_have_the_published_parameter_counts() -> None:
    parameter_count = registry.get("transformer").parameter_count
    # The paper reports 65 and 213 million parameters, for about 37,000 tokens.
    assert parameter_count(**CONFIGURATIONS["base"]) == 63_082_496
    assert parameter_count(**CONFIGURATIONS["big"]) == 214_245_376
    for name, d, f in (("base", 512, 2048), ("big", 1024, 4096)):
        encoder, decoder = 4 * d**2 + 2 * d * f + 9 * d + f, 8 * d**2 + 2 * d * f + 15 * d + f
        expected = 37000 * d + 6 * (encoder + decoder)
        assert parameter_count(**CONFIGURATIONS[name]) == expected
    small = CONFIGURATIONS["small"]
    assert transformer(**small).count_params() == parameter_count(**small)


def test_transformer_ignores_padding(model: keras.Model) -> None:
    alone = predict_logits(model, np.array(SOURCES[:1]), np.array(PROMPTS[:1]))
    in_batch = predict_logits(model, pad(SOURCES), pad(PROMPTS))
    np.testing.assert_allclose(in_batch[:1, : len(PROMPTS[0])], alone, atol=1e-5)


def test_transformer_attention_masks_padding_and_later_tokens() -> None:
    model = make_model("pre_norm")
    maps = attention_maps(model, [pad(SOURCES, 9), pad(PROMPTS, 6)])
    assert len(maps) == 6
    for path, weights in maps.items():
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        if "decoder" in path and "cross" not in path:
            assert not np.triu(weights, 1).any()
        else:
            assert all(not weights[row, ..., len(ids) :].any() for row, ids in enumerate(SOURCES))


def test_transformer_output_is_finite_for_a_source_of_padding(model: keras.Model) -> None:
    assert np.isfinite(predict_logits(model, pad([[39, 39]] * 3), pad(PROMPTS))).all()


def test_kv_cache_decoder_agrees_with_a_forward_pass(model: keras.Model) -> None:
    """The logits agree at each of 64 steps, for sources and prompts of different lengths."""
    rows = [list(prompt) for prompt in PROMPTS]
    decoder = decoder_for(model)
    prompts, sources = (list(map(np.array, sequences)) for sequences in (PROMPTS, SOURCES))
    steps = [ops.convert_to_numpy(decoder.prefill(prompts, 64, sources))]
    for _ in range(64):
        ids = steps[-1].argmax(-1)
        for row, token in zip(rows, ids.tolist()):
            row.append(token)
        steps.append(ops.convert_to_numpy(decoder.decode(ids[:, None].astype(np.int32))))
    expected = predict_logits(model, pad(SOURCES), pad(rows, WIDTH))
    for number, prompt in enumerate(PROMPTS):
        logits = [step_logits[number] for step_logits in steps]
        expected_logits = expected[number, len(prompt) - 1 : len(rows[number])]
        np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
        assert len(set(rows[number])) > 5  # constant tokens would make the test too weak


# ------------------------------------------------------------------ beam search


def sequence_scores(
    model: keras.Model, sources: Any, prompts: Any, continuations: Any, penalty: float = 0.6
) -> np.ndarray:
    """Returns the length-normalized log-probabilities of continuations, by forward passes."""
    sequences = [[*prompt, *map(int, ids)] for prompt, ids in zip(prompts, continuations)]
    log_probabilities = log_softmax(
        predict_logits(model, pad(sources), pad(sequences, WIDTH, padding=0)), axis=-1
    )
    totals = [
        sum(row[len(prompt) - 1 + i, token] for i, token in enumerate(ids))
        for row, prompt, ids in zip(log_probabilities, prompts, continuations)
    ]
    lengths = np.array([len(ids) for ids in continuations])
    return np.array(totals) / ((5 + lengths) / 6) ** penalty


def test_beam_search_with_many_beams_finds_the_most_probable_sequence() -> None:
    """The reference scores every possible sequence, with and without a stop token."""
    model, stop, others = make_model(target_vocabulary_size=6), 2, (0, 1, 3, 4, 5)
    candidates = [
        [*ids, stop] for length in range(3) for ids in itertools.product(others, repeat=length)
    ]
    candidates += map(list, itertools.product(others, repeat=3))
    results = beam_search(model, [[1]] * 3, 3, 40, stop_tokens=[stop], sources=SOURCES)
    for source, ids in zip(SOURCES, results):
        number = len(candidates)
        scores = sequence_scores(model, [source] * number, [[1]] * number, candidates)
        assert ids.tolist() == candidates[int(scores.argmax())]


def choose_stop_token(model: keras.Model) -> int:
    """Returns a token that the model first generates after some others for the first prompt."""
    tokens = generate(model, PROMPTS[:1], 20, sources=SOURCES[:1], temperature=0.0)[0].tolist()
    return next(
        token for index, token in enumerate(tokens) if index > 2 and token not in tokens[:index]
    )


def test_beam_search_with_one_beam_is_greedy_decoding(model: keras.Model) -> None:
    stops = [choose_stop_token(model)]
    greedy = generate(model, PROMPTS, 20, sources=SOURCES, temperature=0.0, stop_tokens=stops)
    assert 3 < len(greedy[0]) < 20
    beams = beam_search(model, PROMPTS, 20, 1, stop_tokens=stops, sources=SOURCES)
    for greedy_tokens, beam_tokens in zip(greedy, beams):
        np.testing.assert_array_equal(greedy_tokens, beam_tokens)


def test_beam_search_results_are_complete_and_independent_of_the_batch(
    model: keras.Model,
) -> None:
    stops = [choose_stop_token(model), 3, 8]
    results = beam_search(model, PROMPTS, 12, 4, stop_tokens=stops, sources=SOURCES)
    for tokens, prompt, source in zip(results, PROMPTS, SOURCES):
        assert len(tokens) == 12 or tokens[-1] in stops
        assert not set(tokens[:-1].tolist()) & set(stops)
        (alone,) = beam_search(model, [prompt], 12, 4, stop_tokens=stops, sources=[source])
        np.testing.assert_array_equal(tokens, alone)


def test_beam_search_with_more_beams_finds_more_probable_sequences(model: keras.Model) -> None:
    scores_of_one, scores_of_six = (
        sequence_scores(
            model, SOURCES, PROMPTS, beam_search(model, PROMPTS, 12, num_beams, sources=SOURCES)
        )
        for num_beams in (1, 6)
    )
    assert scores_of_six.sum() > scores_of_one.sum()


def test_generation_ends_at_the_end_of_the_context() -> None:
    model = make_model(max_length=8)
    greedy = generate(model, PROMPTS, 20, sources=SOURCES, temperature=0.0)
    beams = beam_search(model, PROMPTS, 20, sources=SOURCES)
    # The model predicts one more token after the last position of the longest prompt's context.
    assert {len(ids) for ids in (*greedy, *beams)} == {8 + 1 - 5}


def test_beam_search_with_a_greater_length_penalty_gives_longer_sequences() -> None:
    model = make_model(target_vocabulary_size=6)
    kernel = model.get_layer("output").kernel
    kernel.assign(0.01 * kernel.value)  # almost uniform probabilities
    short, long = (
        beam_search(model, PROMPTS, 12, 8, penalty, [2], SOURCES) for penalty in (0.0, 6.0)
    )
    assert [row.tolist() for row in short] == [[2]] * 3
    assert all(len(row) > 1 for row in long)


# ------------------------------------------------------------------ invalid arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_generation_rejects_invalid_prompts_and_sources(
    function: Any, arguments: dict[str, Any], message: str
) -> None:
    arguments = {"prompts": PROMPTS, "sources": SOURCES, "max_new_tokens": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        function(make_model(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "`num_beams` must be a whole number of at least 1"),
        (
            {"length_penalty": -1.0},
            "`length_penalty` must be a finite number of at least 0. Received: .*-1.0",
        ),
        ({"length_penalty": math.nan}, "`length_penalty` must be a finite number of at least 0"),
    ],
)
def test_beam_search_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(make_model(), PROMPTS, 3, sources=SOURCES, **arguments)


def test_generate_rejects_sources_for_a_decoder_only_model() -> None:
    model = gpt(8, num_layers=1, num_heads=2, hidden_dim=8)
    with pytest.raises(ValueError, match=r"read by an encoder-decoder only\. Received: 1 sources"):
        generate(model, [[1]], 2, sources=[[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share_embeddings": True}, "vocabularies of one size. Received: .*=40, .*=50"),
        ({"padding": 40}, r"`padding` must lie in \[0, 40\).*Received: padding=40"),
        ({"positions": "none"}, "sinusoidal, learned, rotary. Received: positions='none'"),
        ({"num_heads": 5}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=5"),
        ({"target_vocabulary_size": 0}, "`target_vocabulary_size` must be a whole number"),
    ],
)
def test_transformer_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer(**{**SIZES, **arguments})


def test_transformer_rejects_different_numbers_of_sources_and_targets() -> None:
    with pytest.raises(ValueError, match="Received: 3 sources and 2 targets"):
        make_model()([pad(SOURCES, 8), pad(PROMPTS[:2], 8)])


@pytest.mark.parametrize("kind", KINDS)
def test_transformer_rejects_a_sequence_longer_than_max_length(kind: str) -> None:
    with pytest.raises(ValueError, match=r"at most `max_length` = 96 tokens.*Received: 97"):
        make_model(kind)([np.zeros((1, 97), np.int32), np.zeros((1, 3), np.int32)])
