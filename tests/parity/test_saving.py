"""`.keras` files of every builder, saved on each backend and loaded on each."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.parity import saving
from zoo.backends import NAMES
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


def exchange(
    workers: Workers, folder: Path, save: Callable[..., Any], load: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Saves on every backend, then loads every backend's files on every backend, in float64.

    Returns:
        Results of `save` by backend, and of `load` by the backends that loaded and saved.
    """
    for name in NAMES:
        (folder / name).mkdir()

    def load_from_all(target: str) -> dict[str, Any]:
        return {source: workers[target, "float64"](load, folder / source) for source in NAMES}

    with ThreadPoolExecutor(len(NAMES)) as pool:
        saved = pool.map(lambda name: workers[name, "float64"](save, folder / name), NAMES)
        saved_by_name = dict(zip(NAMES, saved))
        return saved_by_name, dict(zip(NAMES, pool.map(load_from_all, NAMES)))


def test_models_of_every_builder_load_on_every_backend(
    all_backends: Workers, tmp_path: Path
) -> None:
    """Every variable to the bit, and steps that are made as on the backend that loads."""
    saved, loaded = exchange(all_backends, tmp_path, saving.save_all, saving.load_all)
    for target in NAMES:
        for source in NAMES:
            assert loaded[target][source] == saved[target], (source, target)
        assert {result.jit_compile for result in saved[target].values()} == {target == "jax"}


def test_loaded_models_take_the_next_steps_on_every_backend(
    all_backends: Workers, tmp_path: Path
) -> None:
    """The first loss depends on weights and dropout masks, the second on the optimizer's state."""
    saved, loaded = exchange(all_backends, tmp_path, saving.train_and_save, saving.load_and_train)
    for target in NAMES:
        for source in NAMES:
            for model, losses in loaded[target][source].items():
                # In float64 rounding is 1e-13.
                assert losses == pytest.approx(saved[source][model], rel=1e-9), (source, target)
