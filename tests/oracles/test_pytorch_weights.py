"""Weights of PyTorch's modules in Keras layers: the outputs of both frameworks agree."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers, ops
from torch import nn

from zoo.interop import pytorch
from zoo.models.text_encoder import text_encoder

Tensor = Any
IMAGE = np.random.default_rng(0).normal(size=(3, 8, 6, 4)).astype(np.float32)
SEQUENCE = np.random.default_rng(1).normal(size=(3, 9, 4)).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def randomize(module: nn.Module) -> Any:
    """Random parameters and statistics; variances are positive."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(0, 0.3)
        for name, tensor in module.named_buffers():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module.eval()


def assert_agree(ours: keras.Model, theirs: nn.Module, x: Any, expected: torch.Tensor) -> None:
    """Compares the outputs, and the weights that are converted back, with `strict=True`."""
    outputs = ops.convert_to_numpy(ours(x, training=False))
    np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-5)
    assert np.abs(outputs).max() > 0.05
    saved = {name: torch.from_numpy(array) for name, array in pytorch.state_dict(ours).items()}
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(saved)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, state[name]), name


class Convolutions(nn.Module):
    """Convolutions, plain, grouped and depthwise, with two kinds of normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), groups=2, padding=(1, 0))
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8, bias=False)
        self.norm2 = nn.GroupNorm(4, 16)
        self.norm3 = nn.BatchNorm1d(16 * 3 * 2)
        self.fc = nn.Linear(16 * 3 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(torch.relu(self.norm1(self.conv(x))))
        x = nn.functional.max_pool2d(self.norm2(self.depthwise(x)), 2)
        return self.fc(self.norm3(x.flatten(1)))


@pytest.mark.parametrize(
    ("data_format", "flatten_format"),
    [
        ("channels_last", "channels_last"),
        ("channels_first", "channels_last"),
        ("channels_first", "channels_first"),
    ],
)
def test_convolutions_match_pytorch(data_format: str, flatten_format: str) -> None:
    axis = -1 if data_format == "channels_last" else 1
    image = keras.Input((8, 6, 4) if axis == -1 else (4, 8, 6))
    x = layers.Conv2D(8, 3, padding="same", data_format=data_format, name="conv")(image)
    x = layers.BatchNormalization(axis, epsilon=1e-5, name="norm1")(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(
        8, (3, 1), groups=2, padding="same", data_format=data_format, name="grouped"
    )(x)  # fmt: skip
    x = layers.DepthwiseConv2D(
        3, depth_multiplier=2, use_bias=False, data_format=data_format, name="depthwise"
    )(x)  # fmt: skip
    x = layers.GroupNormalization(4, axis, epsilon=1e-5, name="norm2")(x)
    x = layers.MaxPooling2D(2, data_format=data_format)(x)
    x = layers.Flatten(flatten_format)(layers.Dropout(0.5)(x))
    x = layers.BatchNormalization(epsilon=1e-5, name="norm3")(x)
    ours = keras.Model(image, layers.Dense(5, name="fc")(x))
    theirs = randomize(Convolutions())
    pytorch.load(ours, theirs.state_dict())
    inputs = IMAGE if axis == -1 else channels_first(IMAGE).numpy()
    assert_agree(ours, theirs, inputs, theirs(channels_first(IMAGE)))


@pytest.mark.parametrize(("padding", "pixels"), [("valid", 0), ("same", 1)])
def test_transposed_convolutions_match_pytorch(padding: str, pixels: int) -> None:
    """A kernel of 4 and strides of 2, where both `padding`s have a counterpart."""
    image, sequence = keras.Input((8, 6, 4)), keras.Input((9, 4))
    options = {"strides": 2, "padding": padding, "name": "deconv"}
    two = keras.Model(image, layers.Conv2DTranspose(5, (4, 4), **options)(image))
    one = keras.Model(sequence, layers.Conv1DTranspose(5, 4, **options)(sequence))
    for ours, kind, x in ((two, nn.ConvTranspose2d, IMAGE), (one, nn.ConvTranspose1d, SEQUENCE)):
        theirs = randomize(nn.ModuleDict({"deconv": kind(4, 5, 4, 2, padding=pixels)}))
        pytorch.load(ours, theirs.state_dict())
        expected = theirs["deconv"](channels_first(x))
        assert_agree(ours, theirs, x, expected.moveaxis(1, -1))


def generator(x: Tensor) -> Tensor:
    x = layers.Permute((2, 3, 1))(layers.Reshape((3, 2, 2))(layers.Dense(12, name="fc")(x)))
    return layers.Conv2DTranspose(2, 2, strides=2, name="deconv")(x)


def test_generator_from_view_matches_pytorch() -> None:
    inputs = keras.Input((4,))
    ours = keras.Model(inputs, generator(inputs))
    theirs = randomize(
        nn.ModuleDict({"fc": nn.Linear(4, 12), "deconv": nn.ConvTranspose2d(3, 2, 2, 2)})
    )
    pytorch.load(ours, theirs.state_dict())
    x = SEQUENCE[:, 0]
    features = theirs["fc"](torch.from_numpy(x)).view(-1, 3, 2, 2)
    assert_agree(ours, theirs, x, theirs["deconv"](features).moveaxis(1, -1))


def conv1d_pooled(x: Tensor) -> Tensor:
    x = layers.Conv1D(6, 3, strides=2, name="conv")(x)
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    return layers.Dense(5, name="fc")(layers.GlobalAveragePooling1D()(x))


def conv1d_flattened(x: Tensor) -> Tensor:
    x = layers.Conv1D(6, 3, strides=2, name="conv")(x)
    x = layers.LayerNormalization([1, 2], epsilon=1e-5, name="norm")(x)
    return layers.Dense(5, name="fc")(layers.Flatten()(x))


@pytest.mark.parametrize("build", [conv1d_pooled, conv1d_flattened])
def test_one_dimensional_convolutions_match_pytorch(build: Callable[[Tensor], Tensor]) -> None:
    sequence = keras.Input((9, 4))
    ours = keras.Model(sequence, build(sequence))
    pooled = build is conv1d_pooled
    theirs = randomize(
        nn.ModuleDict(
            {
                "conv": nn.Conv1d(4, 6, 3, stride=2),
                "norm": nn.LayerNorm(6 if pooled else [6, 4]),
                "fc": nn.Linear(6 if pooled else 24, 5),
            }
        )
    )
    pytorch.load(ours, theirs.state_dict())
    x = theirs["conv"](channels_first(SEQUENCE))
    x = theirs["norm"](x.transpose(1, 2)).mean(1) if pooled else theirs["norm"](x).flatten(1)
    assert_agree(ours, theirs, SEQUENCE, theirs["fc"](x))


def test_pixel_shuffle_matches_pytorch() -> None:
    image = keras.Input((8, 6, 4))
    x = layers.Reshape((8, 6, 2, 3, 3))(layers.Conv2D(18, 1, name="0")(image))
    x = layers.Reshape((24, 18, 2))(layers.Permute((1, 4, 2, 5, 3))(x))
    ours = keras.Model(image, layers.Conv2D(5, 3, name="2")(x))
    theirs = randomize(nn.Sequential(nn.Conv2d(4, 18, 1), nn.PixelShuffle(3), nn.Conv2d(2, 5, 3)))
    pytorch.load(ours, theirs.state_dict())
    expected = theirs(channels_first(IMAGE)).moveaxis(1, -1)
    assert_agree(ours, theirs, IMAGE, expected)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # warns of a slow path
def test_transformer_encoder_matches_pytorch() -> None:
    """The text encoder of `zoo.text_to_image` is an `nn.TransformerEncoder` on embeddings."""
    ours = text_encoder(12, 8, num_layers=2, num_heads=2, hidden_dim=16)
    layer = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True
    )  # fmt: skip
    theirs = randomize(
        nn.ModuleDict(
            {
                "words": nn.Embedding(12, 16),
                "word_positions": nn.Embedding(8, 16),
                "text": nn.TransformerEncoder(layer, 2, nn.LayerNorm(16)),
            }
        )
    )
    pytorch.load(ours, theirs.state_dict())
    ids = np.array([[1, 5, 7, 2, 3], [1, 8, 0, 0, 0]])
    x = theirs["words"](torch.from_numpy(ids)) + theirs["word_positions"].weight[:5]
    padding = torch.from_numpy(ids == 0)
    with torch.enable_grad():  # without gradients, PyTorch's fast path removes padding
        expected = theirs["text"](x, src_key_padding_mask=padding)
    outputs = ops.convert_to_numpy(ours(ids)[0])
    mask = ids != 0
    np.testing.assert_allclose(outputs[mask], expected.detach().numpy()[mask], atol=1e-5)
    assert pytorch.state_dict(ours).keys() == theirs.state_dict().keys()
