"""Definitions in NumPy, written from the papers and PyTorch's documentation, to compare with."""

import numpy as np


def hash_bits(key: np.ndarray, size: int) -> np.ndarray:
    """The generator of `zoo.random` in unsigned 32-bit arithmetic."""
    low, high = key.view(np.uint32)
    x = np.arange(size, dtype=np.uint32) * np.uint32(0x9E3779B9)
    x ^= low
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x += high
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 with padding 1: (B, C, H, W) and (F, C, 3, 3) to (B, F, H, W)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,fcij->bfhw", windows, weight, optimize=True) + bias[:, None, None]


def max_pool(x: np.ndarray) -> np.ndarray:
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def my_net(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The document's `MY_NET` without dropout: (B, 3, 48, 48) to logits, in float64."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    relu = lambda values: np.maximum(values, 0)  # noqa: E731
    x = relu(conv2d(x.astype(np.float64), state["conv1.weight"], state["conv1.bias"]))
    x = max_pool(relu(conv2d(x, state["conv2.weight"], state["conv2.bias"])))
    x = max_pool(relu(conv2d(x, state["conv3.weight"], state["conv3.bias"])))
    x = x.reshape(len(x), -1)
    x = relu(x @ state["fc1.weight"].T + state["fc1.bias"])
    return x @ state["fc2.weight"].T + state["fc2.bias"]


class Adam:
    """`torch.optim.Adam` as its documentation defines it, in float64."""

    def __init__(self, learning_rate: float, weight_decay: float):
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.step = 0
        self.m = self.v = 0.0

    def update(self, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self.step += 1
        gradient = gradient + self.weight_decay * weight
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m = self.m / (1 - 0.9**self.step)
        v = self.v / (1 - 0.999**self.step)
        return weight - self.learning_rate * m / (np.sqrt(v) + 1e-8)
