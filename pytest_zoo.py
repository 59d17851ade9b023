"""Pytest plugin of keras-zoo: fixtures that run tests on every installed backend.

    def test_my_model(keras_backends):  # once for each pair of backends
        assert_backends_agree(build_my_model, workers=keras_backends)

    def test_my_function(keras_worker):  # once for each backend
        assert keras_worker(my_function, 3) == pytest.approx(0.5)

A process can run one backend only, so the tested code runs in worker processes, which all tests
share. The plugin is a module outside the package, because pytest imports plugins in every run and
importing `zoo` would import Keras.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zoo.parity import Worker, Workers

_INSTALLED = [name for name in ("tensorflow", "torch", "jax") if importlib.util.find_spec(name)]
_PAIRS = list(itertools.combinations(_INSTALLED, 2)) or [
    pytest.param((), marks=pytest.mark.skip("needs two of tensorflow, torch, jax"))
]


@pytest.fixture(scope="session")
def _all_keras_workers() -> Iterator[Workers]:
    from zoo.parity import Workers

    with Workers(_INSTALLED, min_backends=1) as workers:
        yield workers


@pytest.fixture(params=_PAIRS, ids="-".join)
def keras_backends(request: pytest.FixtureRequest, _all_keras_workers: Workers) -> Workers:
    """Worker processes of two backends, for `check` and `assert_backends_agree`."""
    return _all_keras_workers.only(*request.param)


@pytest.fixture(params=_INSTALLED)
def keras_worker(request: pytest.FixtureRequest, _all_keras_workers: Workers) -> Worker:
    """Worker process of one backend: calls a function with its arguments and returns the result."""
    return _all_keras_workers[request.param]
