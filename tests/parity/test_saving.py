"""`.keras` files of every builder, saved on each backend and loaded on each."""

from pathlib import Path

import pytest

from tests.parity import saving
from zoo.backends import NAMES
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


def test_models_of_every_builder_load_on_every_backend(
    all_backends: Workers, tmp_path: Path
) -> None:
    """Every variable to the bit, and steps that are made as on the backend that loads."""
    saved, loaded = saving.exchange(all_backends, tmp_path, saving.save_all, saving.load_all)
    for target in NAMES:
        for source in NAMES:
            assert loaded[target][source] == saved[target], (source, target)
        assert {result.jit_compile for result in saved[target].values()} == {target == "jax"}


def test_loaded_models_take_the_next_steps_on_every_backend(
    all_backends: Workers, tmp_path: Path
) -> None:
    """The first loss depends on weights and dropout masks, the second on the optimizer's state."""
    names = ["mlp", "rnn_language_model/gru"]
    results = saving.exchange(
        all_backends, tmp_path, saving.train_and_save, saving.load_and_train, names
    )
    differences = saving.differences(*results)
    assert len(differences) == 2 * 9
    assert max(differences.values()) < 1e-9  # in float64 rounding is 1e-13
