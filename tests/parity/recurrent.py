"""Recurrent networks with PyTorch's weights, for a worker."""

import itertools
from typing import Any

import numpy as np
from keras import ops

import zoo
from zoo.interop import pytorch

CELLS = ("simple_rnn", "lstm", "gru")
FEATURES, UNITS, CLASSES, WORDS = 5, 7, 3, 11
LENGTHS = [6, 4, 1, 3]
CASES = list(itertools.product(CELLS, (1, 2), (False, True)))  # cell, layers, bidirectional

Case = tuple[str, int, bool]
State = dict[str, np.ndarray]


def classifier_logits(case: Case, state: State, x: np.ndarray) -> tuple[np.ndarray, State]:
    """Computes logits of padded sequences with PyTorch's weights and exports the weights."""
    cell, num_layers, bidirectional = case
    model = zoo.rnn_classifier(
        (None, FEATURES), CLASSES, cell, UNITS, num_layers,
        bidirectional=bidirectional, mask=True,
    )  # fmt: skip
    pytorch.load(model, state)
    mask = np.arange(x.shape[1]) < np.array(LENGTHS)[:, None]
    return to_numpy(model([x, mask])), pytorch.state_dict(model)


def language_model_logits(cell: str, state: State, ids: np.ndarray) -> tuple[np.ndarray, State]:
    """Computes logits of the next word at every step and exports the weights."""
    model = zoo.rnn_language_model(WORDS, cell, FEATURES, UNITS, 2)
    pytorch.load(model, state)
    return to_numpy(model(ids)), pytorch.state_dict(model)


def to_numpy(tensor: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(ops.stop_gradient(tensor)))
