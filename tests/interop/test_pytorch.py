from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file

import zoo
from tests import reference
from zoo.backends import installed
from zoo.interop import pytorch
from zoo.layers.transformer_block import TransformerBlock
from zoo.models.transformer import parameter_count

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
        ({"fc2.bias": np.zeros(10, np.int64)}, r"fc2\.bias is of type int64 instead of a floating"),
        ({"fc2.bias": np.full(10, np.nan)}, r"fc2\.bias holds a NaN or an infinity"),
        (
            {"fc2.bias": np.full(10, 1e300)},
            r"for fc2/bias holds numbers from 1e\+300 to 1e\+300, outs",
        ),
        ({"fc2.bias": None, "x": np.zeros(1)}, r"fc2\.bias is missing; x is unknown.*`rename`"),
        ({"fc2.bias": None, "fc_2.bias": np.zeros(10)}, r"is missing \(is it fc_2\.bias\?\)"),
        ({f"x{i}": np.zeros(1) for i in range(10)}, r"x7 is unknown; 2 more are unknown"),
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


PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model.")


def small_model(seed: int = 0, name: str = "fc") -> keras.Model:
    return zoo.mlp((3,), 2, (), seed=seed, name=name)


def assert_loaded(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    for name, array in pytorch.state_dict(model).items():
        np.testing.assert_array_equal(array, state[name])


@pytest.fixture
def small_state() -> dict[str, np.ndarray]:
    return pytorch.state_dict(small_model())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_load_removes_prefixes(small_state: dict[str, np.ndarray], prefix: str) -> None:
    model = small_model(1)
    pytorch.load(model, {f"{prefix}{name}": array for name, array in small_state.items()})
    assert_loaded(model, small_state)


def test_load_names_entries_beside_the_module(small_state: dict[str, np.ndarray]) -> None:
    """A larger module, as of Lightning, may hold the weights of a loss."""
    model = small_model(1)
    state = {f"classifier.{name}": array for name, array in small_state.items()}
    with pytest.raises(ValueError, match=r"fit the model: criterion\.weight is unknown$"):
        pytorch.load(model, state | {"criterion.weight": np.ones(2, np.float32)})
    pytorch.load(model, state)
    assert_loaded(model, small_state)


def test_load_keeps_a_prefix_that_the_model_has() -> None:
    x = keras.Input((3,))
    model = keras.Model(x, small_model(name="model")(x))
    state = pytorch.state_dict(model)
    assert list(state) == ["model.output.weight", "model.output.bias"]
    for prefix in ("", "module.", "model."):
        pytorch.load(model, {f"{prefix}{name}": 2 * array for name, array in state.items()})
    assert_loaded(model, {name: 2 * array for name, array in state.items()})


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "model", "net"])
def test_load_finds_the_state_dict_of_a_checkpoint(
    small_state: dict[str, np.ndarray], wrapper: str
) -> None:
    checkpoint = {
        "epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        wrapper: {f"model.{name}": array for name, array in small_state.items()},
    }  # fmt: skip
    model = small_model(1)
    pytorch.load(model, checkpoint)
    assert_loaded(model, small_state)


def test_load_rejects_a_checkpoint_of_several_state_dicts(
    small_state: dict[str, np.ndarray],
) -> None:
    checkpoint = {"epoch": 3, "net": small_state, "ema": small_state}
    text = "must hold one state_dict.*entries epoch, net, ema, of which net, ema may be one"
    with pytest.raises(ValueError, match=text):
        pytorch.load(small_model(1), checkpoint)
    pytorch.load(small_model(1), {"model": small_state, **checkpoint})  # the usual name


def test_load_rejects_other_objects() -> None:
    with pytest.raises(
        ValueError, match=r"`state` must be a mapping or a path. Received: state=\[1"
    ):
        pytorch.load(small_model(), [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epoch, net, of which none may be"):
        pytorch.load(small_model(), {"epoch": 3, "net": {"layers": [1]}})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_load_converts_other_float_types(dtype: str, tmp_path: Path) -> None:
    exact = {"output.weight": np.arange(6.0).reshape(2, 3), "output.bias": np.float64([0.5, -2])}
    state = {name: array.astype(dtype) for name, array in exact.items()}
    save_file(state, tmp_path / "state.safetensors")
    for source in (state, tmp_path / "state.safetensors"):
        model = small_model(1)
        pytorch.load(model, source)
        assert_loaded(model, exact)


def test_load_copies_the_arrays(small_state: dict[str, np.ndarray]) -> None:
    model, original = small_model(1), {n: array.copy() for n, array in small_state.items()}
    pytorch.load(model, small_state)
    for array in small_state.values():
        array[:] = 7
    assert_loaded(model, original)


def test_rename_gives_other_names_in_both_directions(small_state: dict[str, np.ndarray]) -> None:
    renamed = {"head.1.weight": small_state["output.weight"], "b": small_state["output.bias"]}
    for rename in (
        {"output": "head.1", "output.bias": "b"},
        lambda name: {"output.weight": "head.1.weight", "output.bias": "b"}[name],
    ):
        model = small_model(1)
        pytorch.load(model, renamed, rename=rename)
        assert_loaded(model, small_state)
        assert list(pytorch.state_dict(model, rename=rename)) == list(renamed)


@pytest.mark.parametrize(
    ("rename", "text"),
    [
        ({"outptu": "head"}, r"keys\. Received: outptu\. Near it: output"),
        (
            lambda name: "same",
            r"a name of its own\. Received: 'same' for output\.weight and another",
        ),
        (lambda name: None, r"a name of its own\. Received: None for output\.weight"),
    ],
)
def test_rename_must_fit_the_model(rename: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pytorch.state_dict(small_model(), rename=rename)


def test_load_rejects_other_files(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"neither of the two kinds")
    with pytest.raises(ValueError, match=r"must be a safetensors file.*weights\.pt"):
        pytorch.load(small_model(), tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        pytorch.load(small_model(), tmp_path / "none.safetensors")


@pytest.mark.skipif("torch" in installed(), reason="PyTorch reads its files")
def test_load_without_pytorch_tells_how_to_convert_its_files(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 and tensors")
    with pytest.raises(
        ImportError, match=r"not installed.*weights\.pt.*python -c .import sys, torch"
    ):
        pytorch.load(small_model(), tmp_path / "weights.pt")


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
    with pytest.raises(ValueError, match=r"Received: memory, a LSTM.*such as rnn1"):
        pytorch.state_dict(model)


def there_and_back(model: keras.Model) -> dict[str, np.ndarray]:
    """Loads random tensors, and checks that they are converted back to the same bits."""
    generator = np.random.default_rng(0)
    state = {
        name: generator.normal(size=array.shape).astype(np.float32)
        for name, array in pytorch.state_dict(model).items()
    }
    pytorch.load(model, state)
    saved = pytorch.state_dict(model)
    assert list(saved) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)
    assert sum(array.size for array in state.values()) == model.count_params()
    return state


def test_transformer_has_the_names_of_nn_transformer() -> None:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "max_length": 6}
    for options in ({}, {"norm_first": True, "positions": "learned", "tie_embeddings": False}):
        model = zoo.transformer(10, 12, **sizes, **options, final_norm=True)
        names = there_and_back(model).keys()
        assert {"source_embedding.weight", "target_embedding.weight"} <= names
        assert {"encoder.norm.weight", "decoder.norm.bias"} <= names
        assert {"encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.1.norm2.bias"} <= names
        assert {"decoder.layers.1.multihead_attn.out_proj.bias"} <= names
    assert {"encoder_positions.weight", "output.weight"} <= names
    assert model.count_params() == parameter_count(
        10, 12, **sizes, **options, final_norm=True, intermediate_dim=None, num_kv_heads=None,
        activation="relu", norm="layer_norm", use_bias=True, share_embeddings=False,
    )  # fmt: skip
    without = zoo.transformer(10, 12, **sizes)
    with pytest.raises(ValueError, match=r"encoder\.norm\.weight is unknown"):
        pytorch.load(without, there_and_back(zoo.transformer(10, 12, **sizes, final_norm=True)))


def test_diffusion_models_have_the_names_of_their_layers() -> None:
    channels = {"input_shape": (8, 8, 3), "channels": (8, 16)}
    names = there_and_back(zoo.unet(**channels, num_steps=20, context_dim=4, num_blocks=2)).keys()
    assert {"conv_in.weight", "down1_1_norm1.weight", "up1_2_time.bias", "time1.weight"} <= names
    assert {"middle_attention.multihead_attn.in_proj_weight", "context_whole.weight"} <= names
    names = there_and_back(zoo.text_to_image(12, 8, hidden_dim=16, **channels)).keys()
    assert {"unet.conv_in.weight", "text_encoder.words.weight"} <= names
    assert {"text_encoder.text.layers.0.linear1.weight", "text_encoder.text.norm.bias"} <= names
    names = there_and_back(zoo.autoencoder(**channels)).keys()
    assert {"encoder.encoder_in.weight", "decoder.decoder_out.bias"} <= names


def test_state_dict_rejects_blocks_that_pytorch_lacks() -> None:
    model = zoo.gpt(9, 4, 1, 2, 8, norm="rms_norm", activation="swiglu")
    with pytest.raises(ValueError, match=r"block1, a TransformerBlock.*PyTorch's has layer norm"):
        pytorch.state_dict(model)
    there_and_back(zoo.gpt(9, 4, 2, 2, 8))
    x = keras.Input((4, 8))
    y = TransformerBlock(8, "relu", 2, name="block2")(x)
    with pytest.raises(ValueError, match=r"block2, a TransformerBlock.*output of block 1"):
        pytorch.state_dict(keras.Model(x, y))
