"""`nn.RNN`, `nn.LSTM` and `nn.GRU` against the zoo's on every backend, there and back."""

from typing import Any

import numpy as np
import pytest

from tests.parity import recurrent
from tests.parity.recurrent import CASES, CELLS, CLASSES, FEATURES, LENGTHS, UNITS, WORDS
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
TOLERANCE = 1e-5  # measured: 2e-7


def classified(net: Any, x: np.ndarray) -> np.ndarray:
    """PyTorch's logits of padded sequences."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    packed = pack_padded_sequence(
        torch.from_numpy(x), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    _, last = net["rnn"](packed)
    last = last[0] if isinstance(last, tuple) else last  # an LSTM has two states
    both = net["rnn"].bidirectional
    states = torch.cat([last[-2], last[-1]], -1) if both else last[-1]
    return net["output"](states).detach().numpy()


def test_classifiers_of_padded_sequences(everywhere: Workers) -> None:
    """One layer and two, in one direction and both."""
    import torch
    from torch import nn

    kinds = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, max(LENGTHS), FEATURES)).astype(np.float32)
    for case in CASES:
        cell, num_layers, both = case
        rnn = kinds[cell](FEATURES, UNITS, num_layers, batch_first=True, bidirectional=both)
        output = nn.Linear(2 * UNITS if both else UNITS, CLASSES)
        net = nn.ModuleDict({"rnn": rnn, "output": output})
        expected = classified(net, x)
        state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
        for name in everywhere.names:
            found, back = everywhere[name, "float32"](recurrent.classified, case, state, x)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=f"{name}, {case}")
            tensors = {key: torch.from_numpy(array.copy()) for key, array in back.items()}
            net.load_state_dict(tensors, strict=True)
            np.testing.assert_allclose(classified(net, x), expected, atol=TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
def test_language_models(cell: str, everywhere: Workers) -> None:
    """Every step of two layers."""
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
    for name in everywhere.names:
        found, back = everywhere[name, "float32"](recurrent.predicted, cell, state, ids)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=name)
        assert {key: array.shape for key, array in back.items()} == {
            key: array.shape for key, array in state.items()
        }
