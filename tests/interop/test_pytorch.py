from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file

import zoo
from tests import reference
from zoo.interop import pytorch

SHAPES = {
    "conv1.weight": (32, 3, 3, 3),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 3, 3),
    "conv2.bias": (64,),
    "conv3.weight": (128, 64, 3, 3),
    "conv3.bias": (128,),
    "fc1.weight": (512, 128 * 12 * 12),
    "fc1.bias": (512,),
    "fc2.weight": (10, 512),
    "fc2.bias": (10,),
}


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0, 0.6 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 48, 48, 3)).astype(np.float32)


def assert_logits_agree(model, state: dict[str, np.ndarray], x: np.ndarray) -> None:
    logits = ops.convert_to_numpy(model(x, training=False))
    expected = reference.my_net(state, x.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 0.05


def test_load_and_state_dict_match_my_net(state: dict[str, np.ndarray], x: np.ndarray) -> None:
    model = zoo.cnn_48x48(10)
    pytorch.load(model, state)
    assert_logits_agree(model, state, x)
    saved = pytorch.state_dict(model)
    assert {name: array.shape for name, array in saved.items()} == SHAPES
    for name, array in saved.items():
        np.testing.assert_array_equal(array, state[name])


def test_load_and_save_safetensors(
    state: dict[str, np.ndarray], x: np.ndarray, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "my_net.safetensors")
    model = zoo.cnn_48x48(10)
    pytorch.load(model, tmp_path / "my_net.safetensors")
    assert_logits_agree(model, state, x)
    pytorch.save(model, tmp_path / "saved.safetensors")
    other = zoo.cnn_48x48(10, seed=1)
    pytorch.load(other, str(tmp_path / "saved.safetensors"))
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fc2.bias": None}, r"fc2\.bias is missing"),
        ({"bn1.weight": np.zeros(3)}, r"bn1\.weight is unknown"),
        (
            {"fc1.weight": np.zeros((512, 64 * 24 * 24), np.float32)},
            r"fc1\.weight has shape \(512, 36864\) instead of \(512, 18432\)",
        ),
        ({"fc2.bias": np.array(["a"] * 10)}, r"fc2\.bias is of type <U1"),
        ({"fc2.bias": None, "x": np.zeros(1)}, r"fc2\.bias is missing; x is unknown"),
    ],
)
def test_load_rejects_mismatches_and_leaves_weights_unchanged(
    state: dict[str, np.ndarray], change: dict, text: str
) -> None:
    model = zoo.cnn_48x48(10)
    initial_weights = model.get_weights()
    changed = {name: array for name, array in (state | change).items() if array is not None}
    with pytest.raises(ValueError, match=text):
        pytorch.load(model, changed)
    for a, b in zip(initial_weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_load_rejects_other_files(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"must be a safetensors file.*weights\.pt"):
        pytorch.load(zoo.cnn_48x48(10), tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        pytorch.load(zoo.cnn_48x48(10), tmp_path / "none.safetensors")


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_recurrent_layers_convert_to_one_stack(cell: str) -> None:
    """Names and shapes are PyTorch's, biases are added, and the gates of a GRU are reordered."""
    model = zoo.rnn_classifier((None, 3), 2, cell, 4, num_layers=2, bidirectional=True)
    state = pytorch.state_dict(model)
    num_gates = {"simple_rnn": 1, "lstm": 4, "gru": 3}[cell]
    shapes = {"output.weight": (2, 8), "output.bias": (2,)}
    for level, width in ((0, 3), (1, 8)):
        for direction in ("", "_reverse"):
            end = f"_l{level}{direction}"
            shapes |= {
                f"rnn.weight_ih{end}": (num_gates * 4, width),
                f"rnn.weight_hh{end}": (num_gates * 4, 4),
                f"rnn.bias_ih{end}": (num_gates * 4,),
                f"rnn.bias_hh{end}": (num_gates * 4,),
            }
    assert {name: array.shape for name, array in state.items()} == shapes
    generator = np.random.default_rng(0)
    state = {name: generator.normal(size=a.shape).astype(np.float32) for name, a in state.items()}
    pytorch.load(model, state)
    saved = pytorch.state_dict(model)
    for name, array in state.items():
        if cell == "gru" or "bias_" not in name:
            np.testing.assert_array_equal(saved[name], array)
        elif "bias_ih" in name:
            other = name.replace("bias_ih", "bias_hh")
            np.testing.assert_array_equal(saved[name] + saved[other], array + state[other])
    if cell == "gru":
        kernel = model.get_layer("rnn1_both").forward_layer.cell.kernel
        update_gate = ops.convert_to_numpy(kernel.value)[:, :4]  # PyTorch's second gate
        np.testing.assert_array_equal(update_gate, state["rnn.weight_ih_l0"][4:8].T)


def test_state_dict_rejects_recurrent_layer_without_number() -> None:
    sequence = keras.Input((5, 3))
    model = keras.Model(sequence, zoo.layers.recurrent.LSTM(4, name="memory")(sequence))
    with pytest.raises(ValueError, match=r"such as rnn1.*Received: memory, a LSTM"):
        pytorch.state_dict(model)
