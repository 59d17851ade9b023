"""Order of features: models that read flattened images, and models that are refused."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import zoo
from tests import reference
from zoo.interop import pytorch

Tensor = Any


def conv_features(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """PyTorch's `conv(x).flatten(1)` of images (B, H, W, C)."""
    features = reference.conv2d(x.transpose(0, 3, 1, 2), state["conv.weight"], state["conv.bias"])
    return features.reshape(len(x), -1)


def with_conv(head: Callable[[Tensor], Any], **options: Any) -> keras.Model:
    """Model of a convolution of images (6, 6, 3) and further layers."""
    image = keras.Input((6, 6, 3), name="image")
    conv = layers.Conv2D(4, 3, padding="same", name="conv", **options)
    return keras.Model(image, head(conv(image)))


def dense(x: Tensor) -> Tensor:
    return layers.Dense(5, name="fc")(x)


def with_batch_norm(x: Tensor) -> Tensor:
    """Batch normalization of flattened features, which are permuted, too."""
    return dense(layers.BatchNormalization(epsilon=1e-5, name="norm")(layers.Flatten()(x)))


def with_layer_norm(x: Tensor) -> Tensor:
    return dense(layers.LayerNormalization(epsilon=1e-5, name="norm")(layers.Flatten()(x)))


def with_inner_model(x: Tensor) -> Tensor:
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, dense(layers.Flatten()(inputs)), name="head")(x)


FLATTENED = {
    "flatten": lambda x: dense(layers.Flatten()(x)),
    "layers_between": lambda x: dense(
        layers.Dropout(0.5)(layers.Activation("linear")(layers.Flatten()(layers.ReLU()(x))))
    ),
    "reshape": lambda x: dense(layers.Reshape((-1,))(x)),
    "reshapes": lambda x: dense(layers.Flatten()(layers.Reshape((12, 12))(x))),
    "operations": lambda x: dense(ops.reshape(ops.relu(x), (-1, 144))),
    "permuted": lambda x: dense(layers.Flatten()(layers.Permute((3, 1, 2))(x))),
    "transposed": lambda x: dense(layers.Flatten()(ops.transpose(x, (0, 3, 1, 2)))),
    "flatten_channels_first": lambda x: dense(
        layers.Flatten("channels_first")(layers.Permute((3, 1, 2))(x))
    ),
    "sum": lambda x: dense(layers.Flatten()(layers.Add()([x, layers.ReLU()(x)]))),
    "batch_norm": with_batch_norm,
    "layer_norm": with_layer_norm,
    "inner_model": with_inner_model,
}


def random_state(model: keras.Model) -> dict[str, np.ndarray]:
    """Random tensors of the names and shapes of a model; variances are positive."""
    generator = np.random.default_rng(0)
    state = {}
    for name, array in pytorch.state_dict(model).items():
        values = generator.normal(0, 0.3, array.shape).astype(np.float32)
        state[name] = np.abs(values) + 0.5 if name.endswith("running_var") else values
    return state


def assert_there_and_back(model: keras.Model) -> dict[str, np.ndarray]:
    """Loads random tensors and converts them back to the same bits."""
    state = random_state(model)
    pytorch.load(model, state)
    saved = pytorch.state_dict(model)
    assert list(saved) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)
    return state


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 6, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("head", FLATTENED)
def test_flattened_images_match_pytorch(head: str, x: np.ndarray) -> None:
    model = with_conv(FLATTENED[head])
    state = assert_there_and_back(model)
    features = conv_features(state, x)
    if head in ("layers_between", "operations"):
        features = np.maximum(features, 0)
    if head == "sum":
        features = features + np.maximum(features, 0)
    if head == "batch_norm":
        deviation = np.sqrt(state["norm.running_var"] + 1e-5)
        features = (features - state["norm.running_mean"]) / deviation
    if head == "layer_norm":
        features = features - features.mean(1, keepdims=True)
        features = features / np.sqrt((features**2).mean(1, keepdims=True) + 1e-5)
    if "norm.weight" in state:
        features = features * state["norm.weight"] + state["norm.bias"]
    name = "head.fc" if head == "inner_model" else "fc"
    expected = features @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    outputs = ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(outputs, expected, atol=2e-5)


def test_two_dense_layers_read_one_flattened_image(x: np.ndarray) -> None:
    def heads(x: Tensor) -> list[Tensor]:
        x = layers.Flatten()(x)
        return [layers.Dense(5, name="a")(x), layers.Dense(1, name="b")(x)]

    model = with_conv(heads)
    state = assert_there_and_back(model)
    for name, outputs in zip("ab", model(x)):
        expected = conv_features(state, x) @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=2e-5)


def test_concatenated_features_match_pytorch(x: np.ndarray) -> None:
    """`torch.cat([conv(x).flatten(1), numbers], 1)`."""
    image, numbers = keras.Input((6, 6, 3)), keras.Input((7,))
    flat = layers.Flatten()(layers.Conv2D(4, 3, padding="same", name="conv")(image))
    model = keras.Model([image, numbers], dense(layers.Concatenate()([flat, numbers])))
    state = assert_there_and_back(model)
    y = np.random.default_rng(2).normal(size=(3, 7)).astype(np.float32)
    features = np.concatenate([conv_features(state, x), y], axis=1)
    expected = features @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(model([x, y])), expected, atol=2e-5)


def test_channels_first_flatten_reorders_and_plain_flatten_does_not() -> None:
    """Weights only, since TensorFlow has no channels-first convolution on a CPU."""
    kernel = np.arange(72, dtype=np.float32).reshape(1, 72)
    for data_format in ("channels_last", "channels_first"):
        image = keras.Input((3, 6, 4))
        x = layers.Conv2D(3, 3, padding="same", data_format="channels_first", name="conv")(image)
        x = layers.Flatten(data_format)(x)
        model = keras.Model(image, layers.Dense(1, name="fc")(x))
        pytorch.load(model, random_state(model) | {"fc.weight": kernel})
        rows = ops.convert_to_numpy(model.get_layer("fc").kernel.value)[:, 0]
        expected = kernel.reshape(3, 6, 4)
        if data_format == "channels_first":  # Keras' flatten moves the channels to the end
            expected = expected.transpose(1, 2, 0)
        np.testing.assert_array_equal(rows, expected.ravel())
        saved = pytorch.state_dict(model)["fc.weight"]
        np.testing.assert_array_equal(saved, kernel)


def test_images_flattened_at_once_are_channels_first_in_pytorch(x: np.ndarray) -> None:
    model = zoo.mlp((6, 6, 3), 5, hidden_units=())
    state = assert_there_and_back(model)
    features = x.transpose(0, 3, 1, 2).reshape(3, -1)
    expected = features @ state["output.weight"].T + state["output.bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=2e-5)


def test_sequences_and_pooled_images_keep_their_order() -> None:
    ids = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, name="words")(ids)
    x = layers.Conv1D(3, 2, name="conv")(x)
    x = layers.GlobalMaxPooling1D()(x)
    y = layers.Flatten()(zoo.layers.LSTM(2, return_sequences=True, name="rnn1")(
        layers.Embedding(9, 4, name="others")(ids)
    ))  # fmt: skip
    model = keras.Model(ids, [layers.Dense(2, name="a")(x), layers.Dense(2, name="b")(y)])
    state = random_state(model)
    pytorch.load(model, state)
    for name in ("a", "b"):
        kernel = ops.convert_to_numpy(model.get_layer(name).kernel.value)
        np.testing.assert_array_equal(kernel.T, state[f"{name}.weight"])


REDUCED = {
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "pixel": lambda x: x[:, 2, 3],
    "resized": lambda x: layers.GlobalMaxPooling2D()(layers.Resizing(3, 3)(x)),
    "squeezed": lambda x: layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x)),
}


@pytest.mark.parametrize("reduce", REDUCED)
def test_reduced_images_keep_their_channels(reduce: str) -> None:
    model = with_conv(lambda x: dense(REDUCED[reduce](x)))
    state = assert_there_and_back(model)
    kernel = ops.convert_to_numpy(model.get_layer("fc").kernel.value)
    np.testing.assert_array_equal(kernel.T, state["fc.weight"])


def squeeze_and_excite(x: Tensor) -> Tensor:
    """Channels scaled by gates (1, 1, channels), then flattened."""
    gates = layers.Dense(4, "sigmoid", name="gates")(layers.GlobalAveragePooling2D()(x))
    return dense(layers.Flatten()(layers.Multiply()([x, layers.Reshape((1, 1, 4))(gates)])))


def test_scaled_channels_match_pytorch(x: np.ndarray) -> None:
    model = with_conv(squeeze_and_excite)
    state = assert_there_and_back(model)
    features = conv_features(state, x).reshape(3, 4, 36)
    gates = features.mean(2) @ state["gates.weight"].T + state["gates.bias"]
    features = (features / (1 + np.exp(-gates))[..., None]).reshape(3, -1)
    expected = features @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=2e-5)


def generator_from_view() -> keras.Model:
    """`fc(x).view(-1, 4, 3, 3)` and a transposed convolution, as in a DCGAN."""
    inputs = keras.Input((5,))
    x = layers.Permute((2, 3, 1))(layers.Reshape((4, 3, 3))(layers.Dense(36, name="fc")(inputs)))
    return keras.Model(inputs, layers.Conv2DTranspose(2, 2, strides=2, name="deconv")(x))


def test_generator_from_view_keeps_its_order() -> None:
    state = assert_there_and_back(generator_from_view())
    assert state["deconv.weight"].shape == (4, 2, 2, 2)


def reshaped_to_image(x: Tensor) -> Tensor:
    x = layers.Reshape((3, 3, 4))(layers.Dense(36, name="fc")(layers.Flatten()(x)))
    return layers.Conv2D(2, 3, name="conv2")(x)


def joined_rows(x: Tensor) -> Tensor:
    return dense(layers.Reshape((6, 24))(x))


def flattened_dense(x: Tensor) -> Tensor:
    return dense(layers.Flatten()(layers.Dense(4, name="pixels")(x)))


def custom(x: Tensor) -> Tensor:
    return dense(layers.Flatten()(layers.Lambda(ops.abs, x.shape[1:], name="magnitude")(x)))


def groups_of_flattened(x: Tensor) -> Tensor:
    return dense(layers.GroupNormalization(4, name="norm")(layers.Flatten()(x)))


class Reversed(keras.Model):
    """Functional model with a `call` of its own."""

    def __init__(self) -> None:
        inputs = keras.Input((6, 6, 4))
        super().__init__(inputs, dense(layers.Flatten()(inputs)), name="reversed")

    def call(self, x: Tensor) -> Tensor:
        return super().call(x[:, ::-1])


class Both(layers.Layer):
    """Layer without weights that combines two inputs."""

    def call(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


def two_inputs(x: Tensor) -> Tensor:
    units = layers.Dense(144, name="units")(layers.GlobalAveragePooling2D()(x))
    return dense(Both(name="both")(units, layers.Flatten()(x)))


class Patches(layers.Layer):
    """Layer of the user that has a data format and cuts the image."""

    data_format = "channels_last"

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, 36, 4))[:, :, ::-1]

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], 36, 4)


def channels_fastest(x: Tensor, axes: Any = (1, 3, 2, 4, 5)) -> Tensor:
    """Sub-pixel upsampling of 8 channels to 2, which are in another order than PyTorch's."""
    x = layers.Conv2D(8, 3, padding="same", name="up")(x)
    x = layers.Permute(axes)(layers.Reshape((6, 6, 2, 2, 2))(x))
    return layers.Reshape((12, 12, 2), name="shuffled")(x)


def shuffled(x: Tensor) -> Tensor:
    """Sub-pixel upsampling as `nn.PixelShuffle(2)`, to 2 channels."""
    return channels_fastest(x, (1, 4, 2, 5, 3))


def depth_to_space(x: Tensor) -> Tensor:
    x = ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 2, 1)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, 12, 12, 1))


def shared(x: Tensor) -> list[Tensor]:
    layer = layers.Dense(5, name="fc")
    last = layers.Flatten()(x)
    return [layer(last), layer(layers.Flatten()(layers.Permute((3, 1, 2))(x)))]


REFUSED = {
    "reshaped_to_image": (reshaped_to_image, r"conv2, a Conv2D.*Reshape\(\(channels, height"),
    "override": (lambda x: Reversed()(x), "reversed, a Reversed"),
    "two_inputs": (two_inputs, "fc, a Dense.*the layer both, a Both, may give either"),
    "patches": (
        lambda x: dense(Patches(name="patches")(x)),
        "fc, a Dense.*the layer patches, a Pa",
    ),
    "joined_rows": (joined_rows, r"fc, a Dense.*\(6, 24\), cuts or joins axes.*Permute"),
    "flattened_dense": (flattened_dense, "fc, a Dense.*the layer pixels, a Dense, may give either"),
    "custom": (custom, "fc, a Dense.*the layer magnitude, a Lambda, may give either"),
    "groups": (groups_of_flattened, "norm, a GroupNormalization.*other features"),
    "shared": (shared, "fc, a Dense.*called twice, with features in different orders"),
    "shuffled_dense": (lambda x: dense(channels_fastest(x)), r"fc, a Dense.*cuts or joins axes"),
    "prelu": (lambda x: layers.PReLU(name="prelu")(x), "prelu, a PReLU.*no conversion"),
}


@pytest.mark.parametrize("head", REFUSED)
def test_models_of_unknown_order_are_refused(head: str) -> None:
    build, text = REFUSED[head]
    with pytest.raises(ValueError, match=rf"`model` must have a counterpart.*Received: {text}"):
        pytorch.state_dict(with_conv(build))


OUTPUTS = {
    "channels_fastest": (channels_fastest, r"\(12, 12, 2\) of shuffled.*nn\.PixelShuffle"),
    "lambda": (
        lambda x: layers.Lambda(depth_to_space, (12, 12, 1), name="d2s")(x),
        r"\(12, 12, 1\) of d2s.*the layer d2s, a Lambda, may give.*a model that ends before it",
    ),
    "flattened": (lambda x: layers.Flatten(name="flat")(x), r"\(144,\) of flat.*joins axes"),
    "joined": (lambda x: layers.Reshape((6, 24), name="rows")(x), r"\(6, 24\) of rows.*joins axes"),
    "second": (lambda x: [dense(layers.Flatten()(x)), layers.Reshape((6, 24))(x)], r"\(6, 24\)"),
    "boxes": (lambda x: layers.Reshape((72, 2))(x), r"\(72, 2\) of"),
}


@pytest.mark.parametrize("head", OUTPUTS)
def test_outputs_of_another_order_are_refused(head: str) -> None:
    build, text = OUTPUTS[head]
    with pytest.raises(ValueError, match=rf"`model` must have outputs in PyTorch.*output {text}"):
        pytorch.state_dict(with_conv(build))


KEPT = {
    "boxes": lambda x: layers.Reshape((6, 6, 2, 2))(x),  # `view(B, 2, 2, H, W)` and a permutation
    "sequence": lambda x: layers.Reshape((36, 4))(x),
    "channels_first": lambda x: layers.Permute((3, 1, 2))(x),
    "flattened": lambda x: layers.Flatten()(layers.Permute((3, 1, 2))(x)),
    "classes": lambda x: ops.argmax(x, -1),
    "tokens": lambda x: layers.Dense(5, name="fc")(layers.Reshape((36, 4))(x)),
    "windows": lambda x: layers.Reshape((9, 4, 4))(
        layers.Permute((1, 3, 2, 4, 5))(layers.Reshape((3, 2, 3, 2, 4))(x))
    ),
    "padded": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
    "halves": lambda x: ops.split(x, 2, -1),
    "map": lambda x: ops.mean(x, -1, keepdims=True),
}


@pytest.mark.parametrize("head", KEPT)
def test_outputs_with_other_axes_only_are_converted(head: str) -> None:
    assert_there_and_back(with_conv(KEPT[head]))


def pixel_shuffle(x: np.ndarray) -> np.ndarray:
    """`nn.PixelShuffle(2)` of images (B, 4 · C, H, W)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, 2, 2, height, width).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


def single_channel(x: Tensor) -> Tensor:
    """With one channel, `tf.nn.depth_to_space` is `nn.PixelShuffle`."""
    x = layers.Permute((1, 3, 2, 4))(layers.Reshape((6, 6, 2, 2))(x))
    return layers.Reshape((12, 12, 1))(x)


def test_tokens_match_pytorch(x: np.ndarray) -> None:
    """`fc(conv(x).flatten(2).transpose(1, 2)).mean(1)`, as in a vision transformer."""
    model = with_conv(lambda x: layers.GlobalAveragePooling1D()(KEPT["tokens"](x)))
    state = assert_there_and_back(model)
    features = conv_features(state, x).reshape(3, 4, 36).mean(2)
    expected = features @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=2e-5)


@pytest.mark.parametrize("upsample", [shuffled, single_channel])
@pytest.mark.parametrize("head", ["output", "conv", "fc"])
def test_pixel_shuffle_matches_pytorch(
    upsample: Callable[[Tensor], Tensor], head: str, x: np.ndarray
) -> None:
    last = {
        "output": lambda x: x,
        "conv": layers.Conv2D(2, 3, padding="same", name="last"),
        "fc": lambda x: dense(layers.Flatten()(x)),
    }[head]
    model = with_conv(lambda x: last(upsample(x)))
    state = assert_there_and_back(model)
    features = conv_features(state, x).reshape(3, 4, 6, 6)
    if upsample is shuffled:
        features = reference.conv2d(features, state["up.weight"], state["up.bias"])
    expected = pixel_shuffle(features)
    if head == "conv":
        expected = reference.conv2d(expected, state["last.weight"], state["last.bias"])
    if head == "fc":
        expected = expected.reshape(3, -1) @ state["fc.weight"].T + state["fc.bias"]
    outputs = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(
        outputs, np.moveaxis(expected, 1, -1) if expected.ndim > 2 else expected, atol=2e-5
    )


def spatial_attention(x: Tensor) -> Tensor:
    """Pixels scaled by a convolution of their mean and maximum, as in CBAM."""
    statistics = [function(x, -1, keepdims=True) for function in (ops.mean, ops.max)]
    statistics = layers.Concatenate()(statistics)
    gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(statistics)
    return layers.Multiply()([x, gate])


def test_spatial_attention_matches_pytorch(x: np.ndarray) -> None:
    model = with_conv(spatial_attention)
    state = assert_there_and_back(model)
    features = conv_features(state, x).reshape(3, 4, 6, 6)
    statistics = np.stack([features.mean(1), features.max(1)], axis=1)
    gate = reference.conv2d(statistics, state["gate.weight"], state["gate.bias"])
    expected = features / (1 + np.exp(-gate))
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(x)), np.moveaxis(expected, 1, -1), atol=2e-5
    )


def test_images_made_of_features_are_refused() -> None:
    """PyTorch's `fc(x).view(-1, 3, 4, 4)` has other units for each pixel."""
    x = keras.Input((5,))
    features = layers.Dense(48, name="fc")(x)
    with pytest.raises(ValueError, match=r"the output \(4, 4, 3\).*Reshape\(\(channels, height"):
        pytorch.state_dict(keras.Model(x, layers.Reshape((4, 4, 3))(features)))
    permuted = layers.Permute((2, 1, 3))(layers.Reshape((4, 4, 3))(features))
    with pytest.raises(ValueError, match=r"the output \(4, 4, 3\).*Reshape\(\(channels, height"):
        pytorch.state_dict(keras.Model(x, permuted))
    view = layers.Permute((2, 3, 1))(layers.Reshape((3, 4, 4))(features))
    assert_there_and_back(keras.Model(x, view))
    assert_there_and_back(keras.Model(x, layers.Reshape((6, 8, 1))(features)))


class Subclassed(keras.Model):
    """Two layers, the second of which may read flattened features."""

    def __init__(self, first: Any):
        super().__init__()
        self.first = first
        self.fc = layers.Dense(5, name="fc")

    def call(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.fc(ops.reshape(x, (-1, 144)) if len(x.shape) > 2 else x)


class Convolutional(keras.Model):
    """Convolution whose channels may be reordered, which no graph tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")

    def call(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv(x))


class Stack(keras.Model):
    """Two recurrent layers, the second of which reads the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.LSTM(4, return_sequences=True, name="r1")
        self.second = layers.LSTM(4, name="r2")

    def call(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_subclassed_stacks_are_refused_for_want_of_a_graph() -> None:
    model = Stack()
    model(np.zeros((2, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r"r2, a LSTM.*is subclassed.*tells which layer it reads"):
        pytorch.state_dict(model)


def test_subclassed_models_are_converted_only_without_images(x: np.ndarray) -> None:
    convolutional = Convolutional()
    convolutional(x)
    with pytest.raises(ValueError, match=r"conv, a Conv2D.*subclassed.*flattened or reshaped"):
        pytorch.state_dict(convolutional)

    model = Subclassed(layers.Conv2D(4, 3, padding="same", name="conv"))
    with pytest.raises(ValueError, match=r"must be built.*call it once"):
        pytorch.state_dict(model)
    model(x)
    with pytest.raises(ValueError, match=r"conv, a Conv2D.*subclassed.*keras\.Model\(inputs"):
        pytorch.state_dict(model)
    model = Subclassed(layers.Dense(6, name="first"))
    model(x[:, 0, 0])
    assert assert_there_and_back(model)["fc.weight"].shape == (5, 6)


def test_recurrent_stacks_are_chains() -> None:
    layer1, layer2 = (
        zoo.layers.LSTM(4, return_sequences=True, name=f"rnn{number}") for number in (1, 2)
    )
    sequence = keras.Input((5, 4))
    chain = pytorch.state_dict(keras.Model(sequence, layer2(layers.Dropout(0.1)(layer1(sequence)))))
    assert chain["rnn.weight_ih_l1"].shape == (16, 4)
    with pytest.raises(ValueError, match=r"rnn2, a LSTM.*must read the outputs of rnn1"):
        pytorch.state_dict(keras.Model(sequence, [layer1(sequence), layer2(sequence)]))
