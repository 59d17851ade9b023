"""Training of a model whose weights are divided among several devices."""

from contextlib import AbstractContextManager

from zoo.backends import backend
from zoo.validation import Count, validated


@validated
def sharded_model(devices: Count) -> AbstractContextManager[None]:
    """Context manager in which the weights of a `gpt` are divided among devices.

    Each device of this process holds and updates its part of the attention heads, of the
    feed-forward units and of the embeddings, and all compute every batch. A model is created,
    trained and used within the context. The losses are those of one device. Files hold whole
    arrays, so that training goes on with any number of devices.

        with zoo.training.sharded_model(devices=2):
            trainer = Trainer(gpt(num_heads=4))

    Args:
        devices: Number of devices, which must divide `num_heads`, `num_kv_heads`, `hidden_dim` and
            `intermediate_dim`.

    Raises:
        ValueError: If the backend is not JAX, or this process has fewer devices.
    """
    return backend.sharded_model(devices)
