"""Fine-tuning: a model that begins with the weights of a trained one."""

import keras

from zoo.validation import validated


@validated
def transfer_weights(target: keras.Model, weights: keras.Model) -> str | None:
    """Copies the weights of a trained model, except for a head of another width.

    Args:
        target: Model that the weights are copied to.
        weights: Trained model of the same architecture; its last layer may have another width.

    Returns:
        Name of the last layer if it keeps its initial weights; None if all weights were copied.

    Raises:
        ValueError: If another layer differs; no weight was copied.
    """
    trained = {weight.path: weight for weight in weights.weights}
    head = target.layers[-1]
    head_paths = {weight.path for weight in head.weights}
    shapes = {weight.path: tuple(weight.shape) for weight in target.weights}
    differing = [
        path
        for path in {**shapes, **trained}
        if path not in trained or shapes.get(path) != tuple(trained[path].shape)
    ]
    for path in differing:
        if path not in head_paths or path not in trained:
            received = tuple(trained[path].shape) if path in trained else "none"
            raise ValueError(
                f"`weights` must be those of a {target.name} with the same layers up to the last "
                f"one. Received: {path} of shape {received} instead of {shapes.get(path, 'none')}"
            )
    for weight in target.weights:
        if not differing or weight.path not in head_paths:
            weight.assign(trained[weight.path].value)
    return head.name if differing else None
