"""Comparison with the document's own PyTorch code; runs where PyTorch is the backend."""

import numpy as np
import pytest
from keras import ops

import zoo
from tests import reference
from zoo.backends import name
from zoo.interop import pytorch

if name != "torch":
    pytest.skip("needs PyTorch as the backend", allow_module_level=True)

import torch

from benchmarks.document import MY_NET


def test_reference_equals_my_net() -> None:
    torch.manual_seed(0)
    net = MY_NET(10).eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 48, 48)).astype(np.float32)
    state = {name: array.numpy() for name, array in net.state_dict().items()}
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference.my_net(state, x), expected, atol=1e-6)


def test_state_dict_loads_strictly_into_my_net() -> None:
    model = zoo.cnn_48x48(10)
    net = MY_NET(10)
    state = {name: torch.from_numpy(a) for name, a in pytorch.state_dict(model).items()}
    net.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    logits = ops.convert_to_numpy(model(x, training=False).detach())
    np.testing.assert_allclose(logits, expected, atol=1e-5)
