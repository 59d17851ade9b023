"""What all tasks have: the model and its card."""

import keras

from zoo.files.weights import Card
from zoo.validation import validated


class Task:
    """Trained model.

    Args:
        model: Trained model.
        card: Card of its weights folder; None for a run.
    """

    @validated
    def __init__(self, model: keras.Model, card: Card | None = None):
        self.model = model
        self.card = card
