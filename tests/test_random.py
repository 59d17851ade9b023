"""Random numbers, initializers and dropout: bits, distributions and errors."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from tests.reference import hash_bits
from zoo import initializers, random
from zoo.backends import backend

SAMPLERS = {
    "bits": lambda key: random.bits(key, (100, 7)),
    "uniform": lambda key: random.uniform(key, 1000),
    "symmetric": lambda key: random.uniform(key, 1000, -0.3, 0.3),
    "normal": lambda key: random.normal(key, (50, 20)),
    "scaled normal": lambda key: random.normal(key, 1000, stddev=0.02),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, 1000),
    "permutation": lambda key: random.permutation(key, 1000),
}


def on_device(key: np.ndarray) -> object:
    return ops.convert_to_tensor(key, dtype="int32")


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_random_gives_equal_bits_on_host_eager_and_compiled(sample) -> None:
    key = random.key(7, "test")
    expected = sample(key)
    compiled = backend.inference_function(keras.Model(), sample)
    for numbers in (sample(on_device(key)), compiled(on_device(key))):
        np.testing.assert_array_equal(ops.convert_to_numpy(numbers), expected)


def test_bits_equals_reference() -> None:
    for seed in range(5):
        key = random.key(seed, "test")
        assert (random.bits(key, 10_000).view(np.uint32) == hash_bits(key, 10_000)).all()


KEY = [946617714, 461098531]
FOLDED = [571360331, 1734892520]
BITS = [1627530028, 1418204997, 1081321689]
NORMAL = [-0.99019986, -1.2548068, -0.18220028]


def test_random_numbers_of_a_seed_are_stable() -> None:
    """A change of these numbers would change the results of all published seeds."""
    key = random.key(2026, "layer", 3)
    assert key.tolist() == KEY
    assert random.fold_in(key, 41).tolist() == FOLDED
    assert random.bits(key, 3).tolist() == BITS
    np.testing.assert_array_equal(random.normal(key, 3), np.float32(NORMAL))


def test_fold_in_gives_equal_keys_on_host_and_device() -> None:
    key = random.key(0, "test")
    for step in (0, 1, 12_345, 2**31 - 1):
        folded = random.fold_in(key, ops.convert_to_tensor(step, dtype="int32"))
        np.testing.assert_array_equal(ops.convert_to_numpy(folded), random.fold_in(key, step))


def test_key_differs_between_seeds_streams_and_steps() -> None:
    keys = [random.key(seed, name) for seed in range(100) for name in ("a", "b", "ab", "ba", "")]
    keys += [random.key(5, *names) for names in ((), ("a", "b"), ("ab", ""), ("", "ab"))]
    steps = [random.fold_in(key, step) for key in keys[:20] for step in range(500)]
    assert len({tuple(key) for key in keys + steps}) == len(keys) + len(steps)


def test_uniform_has_moments_and_distribution() -> None:
    numbers = random.uniform(random.key(1, "uniform"), 1_000_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * np.sqrt(1 / 12e6)
    assert abs(numbers.var() - 1 / 12) < 4 * np.sqrt(1 / 180e6)
    histogram = np.bincount((numbers * 1000).astype(int), minlength=1000)
    assert 1e-4 < stats.chisquare(histogram).pvalue < 1 - 1e-4


def test_normal_has_moments_tails_and_distribution() -> None:
    numbers = random.normal(random.key(1, "normal"), 4_000_000).astype(np.float64)
    n = len(numbers)
    assert abs(numbers.mean()) < 4 / np.sqrt(n)
    assert abs(numbers.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((numbers**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((numbers**4).mean() - 3) < 4 * np.sqrt(96 / n)
    edges = stats.norm.ppf(np.linspace(0, 1, 1001))
    histogram = np.histogram(numbers, edges)[0]
    assert 1e-4 < stats.chisquare(histogram).pvalue < 1 - 1e-4
    in_tails = (np.abs(numbers) > 4.2).sum()  # beyond the largest entry of the table
    assert 1e-4 < stats.poisson(n * 2 * stats.norm.sf(4.2)).cdf(in_tails) < 1 - 1e-4


def test_bernoulli_has_given_probability() -> None:
    for probability in (0.0, 0.25, 0.5, 1.0):
        booleans = random.bernoulli(random.key(1, "bernoulli"), probability, 1_000_000)
        deviation = np.sqrt(probability * (1 - probability) / 1e6)
        assert abs(booleans.mean() - probability) <= 4 * deviation


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (random.key(0, "a"), random.key(1, "a")),
        (random.key(0, "a"), random.key(0, "b")),
        (random.fold_in(random.key(0, "a"), 8), random.fold_in(random.key(0, "a"), 9)),
    ],
    ids=["seeds", "streams", "steps"],
)
def test_uniform_is_uncorrelated_between_neighbouring_keys(
    first: np.ndarray, second: np.ndarray
) -> None:
    a, b = random.uniform(first, 1_000_000), random.uniform(second, 1_000_000)
    for shift in (0, 1, 2, 64):
        assert abs(np.corrcoef(a[shift:], b[: len(b) - shift])[0, 1]) < 4e-3
    # Each of the 32 bits differs in half of the numbers.
    differing = random.bits(first, 100_000) ^ random.bits(second, 100_000)
    for bit in range(32):
        assert abs((differing >> bit & 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(1e5)


def test_permutation_is_complete_and_uniform() -> None:
    indices = random.permutation(random.key(3, "order"), 60_000)
    assert (np.sort(indices) == np.arange(60_000)).all()
    firsts = [random.permutation(random.fold_in(random.key(3), i), 10)[0] for i in range(5000)]
    assert stats.chisquare(np.bincount(firsts, minlength=10)).pvalue > 1e-4


def test_dropout_drops_scales_and_resumes() -> None:
    x = np.ones((64, 1000), np.float32)
    layer = random.Dropout(0.3, seed=1, name="dropout")
    first, second = (ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1) * np.float32(1 / 0.7)}
    assert abs((first == 0).mean() - 0.3) < 0.01
    assert (first != second).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=False)), x)
    # A layer with the counter restored after the first call repeats the second call.
    restored = random.Dropout(0.3, seed=1, name="dropout")
    restored.build(x.shape)
    restored.counter.state.assign([0, 1])
    np.testing.assert_array_equal(ops.convert_to_numpy(restored(x, training=True)), second)
    assert layer.count_params() == 0


def test_dropout_masks_differ_between_layers_of_one_seed() -> None:
    x = np.ones((8, 100), np.float32)
    a, b = (random.Dropout(0.5, seed=1, name=name)(x, training=True) for name in ("a", "b"))
    assert (ops.convert_to_numpy(a) != ops.convert_to_numpy(b)).any()


def test_fan_in_uniform_fills_its_range() -> None:
    kernel = ops.convert_to_numpy(initializers.FanInUniform(0, "fc/kernel")((400, 500)))
    assert np.abs(kernel).max() <= 0.05
    assert abs(kernel.std() - 0.05 / np.sqrt(3)) < 1e-4
    bias = ops.convert_to_numpy(initializers.FanInUniform(0, "fc/bias", fan_in=400)((500,)))
    assert 0.049 < np.abs(bias).max() <= 0.05
    assert abs(np.corrcoef(kernel[0], bias)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: random.key(-1), "seed=-1"),
        (lambda: random.key(1.5), r"seed=1\.5"),  # type: ignore[arg-type]
        (lambda: random.key(2**32), "seed=4294967296"),
        (lambda: random.uniform(random.key(0), 3, 2.0, 1.0), r"minval=2\.0, maxval=1\.0"),
        (lambda: random.bernoulli(random.key(0), 1.2, 3), r"probability=1\.2"),
        (lambda: random.bits(random.key(0), (2**16, 2**15)), r"shape=\(65536, 32768\)"),
        (lambda: random.Dropout(1.0), r"rate=1\.0"),
    ],
)
def test_random_rejects_invalid_arguments(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_orthogonal_gives_distinct_orthogonal_blocks() -> None:
    values = ops.convert_to_numpy(initializers.Orthogonal(0, "w")((6, 18)))
    assert values.dtype == np.float32
    blocks = np.split(values, 3, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(6), atol=1e-6)
    assert abs(blocks[0] - blocks[1]).max() > 0.1
    restored = initializers.Orthogonal.from_config(initializers.Orthogonal(0, "w").get_config())
    np.testing.assert_array_equal(ops.convert_to_numpy(restored((6, 18))), values)
    assert (ops.convert_to_numpy(initializers.Orthogonal(0, "v")((6, 18))) != values).any()
    assert (ops.convert_to_numpy(initializers.Orthogonal(1, "w")((6, 18))) != values).any()


def test_shape_may_be_that_of_a_variable() -> None:
    """TensorFlow's is no tuple."""
    weight = keras.Variable(np.zeros((3, 2), np.float32))
    drawn = random.normal(random.key(0, "weights"), weight.value.shape)
    assert drawn.shape == (3, 2)
    np.testing.assert_array_equal(drawn, random.normal(random.key(0, "weights"), (3, 2)))
