"""Tests of attention against its formula, of position encodings and of attention maps."""

import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import backends, gpt
from zoo.evaluation.attention_maps import attention_maps, plot_attention
from zoo.layers.attention import Attention, Positions, sinusoidal_table
from zoo.layers.rotary import (
    RotaryScaling,
    rotary_frequencies,
    rotary_tables,
    rotate,
    rotations,
)

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
CONTEXT = np.random.default_rng(1).normal(size=(2, 7, 8)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]], bool)


def project(layer: Any, name: str, x: np.ndarray) -> np.ndarray:
    """Returns one projection of x in float64, (B, T, heads, head_dim)."""
    kernel, bias = (
        np.asarray(w, np.float64) for w in getattr(layer, f"{name}_projection").get_weights()
    )
    return (x.astype(np.float64) @ kernel + bias).reshape(*x.shape[:2], -1, layer.head_dim)


def attention_by_formula(
    layer: Any, x: np.ndarray, y: np.ndarray, attention_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the output and the weights of attention from x to y, by the formula in NumPy."""
    q, k, v = project(layer, "query", x), project(layer, "key", y), project(layer, "value", y)
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(layer.head_dim)
    scores = np.where(attention_mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    attended = np.einsum("bnts,bsnh->btnh", weights, v).reshape(*x.shape[:2], -1)
    kernel, *bias = layer.output_projection.get_weights()
    return sum(bias, attended @ kernel), weights


def make_attention(**options: Any) -> Attention:
    """Builds a layer of 4 heads and width 8 with random weights and biases."""
    layer = Attention(4, **options)
    layer.build((None, None, 8))
    for number, variable in enumerate(layer.weights):
        variable.assign(np.random.default_rng(number).normal(size=variable.shape) / 2)
    return layer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "head_dim": 3},
        {"head_dim": 6, "use_bias": "qkv"},
    ],
)
def test_attention_matches_the_formula_in_causal_self_attention(options: dict[str, Any]) -> None:
    layer = make_attention(causal=True, **options)
    attention_mask = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    expected, _ = attention_by_formula(layer, X, X, attention_mask)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(X)), expected, atol=1e-5)


def test_attention_matches_the_formula_in_masked_cross_attention() -> None:
    layer = make_attention()
    attention_mask = np.broadcast_to(MASK[:, None], (2, 5, 7))
    expected, _ = attention_by_formula(layer, X, CONTEXT, attention_mask)
    outputs = layer(X, CONTEXT, padding_mask=ops.convert_to_tensor(MASK))
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_query_without_a_key_attends_as_if_none_was_masked(causal: bool) -> None:
    """Outputs and gradients are those of the unmasked sequence, on every backend."""
    layer = make_attention(causal=causal)
    x = keras.Input((5, 8))
    mask = keras.Input((5,), dtype="bool")
    model = keras.Model([x, mask], layer(x, padding_mask=mask))

    def loss(x: Any, mask: Any) -> Any:
        return ops.mean(ops.square(model([x, mask])))

    masks = np.ones((2, 5), bool), np.array([[True] * 5, [False] * 5])
    (whole, whole_gradients), (masked, gradients) = (
        backends.loss_and_gradients(model, loss, X, mask) for mask in masks
    )
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (masked, whole)), rtol=1e-6)
    for path, gradient in gradients.items():
        expected = ops.convert_to_numpy(whole_gradients[path])
        np.testing.assert_allclose(ops.convert_to_numpy(gradient), expected, atol=1e-6)


def test_padding_on_the_left_hides_no_key_from_the_first_queries() -> None:
    layer = make_attention(causal=True)
    mask = np.array([[False, False, True, True, True]] * 2)
    outputs = ops.convert_to_numpy(layer(X, padding_mask=ops.convert_to_tensor(mask)))
    unmasked = ops.convert_to_numpy(layer(X))
    np.testing.assert_allclose(outputs[:, :2], unmasked[:, :2], atol=1e-6)
    assert np.abs(outputs[:, 2:] - unmasked[:, 2:]).max() > 1e-3


def test_sinusoidal_table_matches_the_paper() -> None:
    table = sinusoidal_table(50, 6)
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle))
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle))


def test_rotate_makes_scores_depend_on_the_distance_only() -> None:
    cosines, sines = rotary_tables(range(40), 8)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8))

    def score(i: int, j: int) -> float:
        tensors = (
            map(ops.convert_to_tensor, (x, cosines[p], sines[p])) for x, p in ((q, i), (k, j))
        )
        a, b = (ops.convert_to_numpy(rotate(*arguments)) for arguments in tensors)
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(32, 30), abs=1e-5)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)


LLAMA3 = {
    "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_length": 8192,
}  # fmt: skip


@pytest.mark.once
def test_rotary_scaling_matches_its_definition() -> None:
    unscaled = rotary_frequencies(128, 500000.0)
    linear = RotaryScaling.from_config({"type": "linear", "factor": 2.5})
    np.testing.assert_allclose(rotary_frequencies(128, 500000.0, linear), unscaled / 2.5)
    # `apply_scaling` of Meta's llama-models, in terms of wavelengths
    expected = []
    for frequency in unscaled.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert len({round(a / b, 3) for a, b in zip(expected, unscaled)}) > 3
    scaled = rotary_frequencies(128, 500000.0, RotaryScaling.from_config(LLAMA3))
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


@pytest.mark.parametrize("max_length", [1024, 131072])
def test_rotations_of_a_long_context_match_the_angles(max_length: int) -> None:
    """The angle of position 131,071 is 131,071 radians, which float32 knows to 0.008 only."""
    positions = np.array(
        [[0, 1, 700, 1023], [5, max_length // 2 - 1, max_length - 2, max_length - 1]]
    )
    scaling = RotaryScaling.from_config(LLAMA3)
    cosines, sines = rotations(
        ops.convert_to_tensor(positions, dtype="int32"), max_length, 8, 10000.0, scaling
    )
    angles = positions[:, :, None, None] * np.tile(rotary_frequencies(8, 10000.0, scaling), 2)
    np.testing.assert_allclose(ops.convert_to_numpy(cosines), np.cos(angles), atol=2e-7)
    np.testing.assert_allclose(ops.convert_to_numpy(sines), np.sin(angles), atol=2e-7)


@pytest.mark.once
@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({"type": "yarn", "factor": 2.0}, "have the type linear or llama3. Received: .*'yarn'"),
        ({"type": "linear", "factor": 0.5}, "a factor of at least 1. Received: .*0.5"),
        ({"type": "linear", "factor": math.nan}, "have positive numbers, .*Received: .*nan"),
        ({"type": "linear", "factor": True}, "have positive numbers, .*Received: .*True"),
        ({"factor": 2.0}, "a dictionary with type, factor and possibly"),
        ({"type": "linear", "factor": 2.0, "slope": 1}, "Received: .*'slope': 1"),
        ("linear", "a dict.*Received: rotary_scaling='linear'"),
        ({"type": "llama3", "factor": 8.0}, "each of low_freq_factor, high_freq_factor, original"),
        ({**LLAMA3, "type": "linear"}, "have none of low_freq_factor, .* with the type linear"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "a `low_freq_factor` below its `high_freq_factor`"),
    ],
)
def test_rotary_scaling_rejects_invalid_arguments(scaling: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"`rotary_scaling` must .*{text}"):
        gpt(8, num_layers=1, positions="rotary", rotary_scaling=scaling)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_encodes_given_positions(kind: str) -> None:
    layer = Positions(kind, 10, initializer="glorot_uniform")
    expected = ops.convert_to_numpy(layer(X))
    positions = np.array([[3, 4], [0, 1]])
    rows = np.arange(2)[:, None]
    outputs = layer(X[rows, positions % 5], ops.convert_to_tensor(positions))
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected[rows, positions], rtol=1e-6)


def test_attention_maps_match_the_formula() -> None:
    model = gpt(11, 8, 2, num_heads=2, hidden_dim=8, seed=1)
    ids = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], np.int32)
    maps = attention_maps(model, ids)
    assert list(maps) == ["block1/attention", "block2/attention"]
    for weights in maps.values():
        assert weights.shape == (2, 2, 5, 5)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert (weights[..., ~np.tril(np.ones((5, 5), bool))] == 0).all()
    block = model.get_layer("block1")
    x = block.attention_norm(model.get_layer("positions")(model.get_layer("embedding")(ids)))
    attention_mask = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    _, expected = attention_by_formula(
        block.attention, ops.convert_to_numpy(x), ops.convert_to_numpy(x), attention_mask
    )
    np.testing.assert_allclose(maps["block1/attention"], expected, atol=1e-6)


def test_plot_attention_has_one_panel_for_each_head() -> None:
    weights = np.full((6, 2, 3), 1 / 3)
    figure = plot_attention(weights, ["a", "b"], ["x", "y", "z"])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"head {i}" for i in range(1, 7)]
    with pytest.raises(ValueError, match=r"Received: 1 and 3, weights.shape=\(6, 2, 3\)"):
        plot_attention(weights, ["a"], ["x", "y", "z"])


def test_layers_round_trip_their_configuration() -> None:
    for layer in (make_attention(causal=True), Positions("learned", 4)):
        restored = type(layer).from_config(layer.get_config())
        assert isinstance(restored, keras.layers.Layer)
        assert restored.get_config() == layer.get_config()


def test_attention_maps_of_a_single_token_are_one() -> None:
    model = gpt(8, num_layers=1, num_heads=2, hidden_dim=8)
    (weights,) = attention_maps(model, np.array([[3]])).values()
    np.testing.assert_allclose(weights, np.ones((1, 2, 1, 1)))
