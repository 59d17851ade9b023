"""Recurrent models of every backend against `nn.RNN`, `nn.LSTM` and `nn.GRU`, and their export."""

from typing import Any

import numpy as np
import pytest

from tests.parity import recurrent
from tests.parity.recurrent import CASES, CELLS, CLASSES, FEATURES, LENGTHS, UNITS, WORDS
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
TOLERANCE = 1e-5  # measured: 2e-7


def torch_classifier_logits(net: Any, x: np.ndarray) -> np.ndarray:
    """Computes PyTorch's logits of padded sequences."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    packed = pack_padded_sequence(
        torch.from_numpy(x), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    _, last = net["rnn"](packed)
    last = last[0] if isinstance(last, tuple) else last  # an LSTM has two states
    bidirectional = net["rnn"].bidirectional
    states = torch.cat([last[-2], last[-1]], -1) if bidirectional else last[-1]
    return net["output"](states).detach().numpy()


def test_rnn_classifier_matches_pytorch(all_backends: Workers) -> None:
    """One and two layers, unidirectional and bidirectional, on padded sequences."""
    import torch
    from torch import nn

    kinds = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, max(LENGTHS), FEATURES)).astype(np.float32)
    for case in CASES:
        cell, num_layers, bidirectional = case
        options = {"batch_first": True, "bidirectional": bidirectional}
        rnn = kinds[cell](FEATURES, UNITS, num_layers, **options)
        output = nn.Linear(2 * UNITS if bidirectional else UNITS, CLASSES)
        net = nn.ModuleDict({"rnn": rnn, "output": output})
        expected = torch_classifier_logits(net, x)
        state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
        for name in all_backends.names:
            logits, exported = all_backends[name](recurrent.classifier_logits, case, state, x)
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE, err_msg=f"{name}, {case}")
            tensors = {key: torch.from_numpy(array.copy()) for key, array in exported.items()}
            net.load_state_dict(tensors, strict=True)
            np.testing.assert_allclose(torch_classifier_logits(net, x), expected, atol=TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
def test_rnn_language_model_matches_pytorch(cell: str, all_backends: Workers) -> None:
    """All steps of a two-layer model."""
    import torch
    from torch import nn

    kinds = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(WORDS, FEATURES),
            "rnn": kinds[cell](FEATURES, UNITS, 2, batch_first=True),
            "output": nn.Linear(UNITS, WORDS),
        }
    )
    ids = np.random.default_rng(0).integers(0, WORDS, (3, 8)).astype(np.int32)
    outputs, _ = net["rnn"](net["embedding"](torch.from_numpy(ids)))
    expected = net["output"](outputs).detach().numpy()
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    for name in all_backends.names:
        logits, exported = all_backends[name](recurrent.language_model_logits, cell, state, ids)
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, err_msg=name)
        assert {key: array.shape for key, array in exported.items()} == {
            key: array.shape for key, array in state.items()
        }
