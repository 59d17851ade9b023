"""Tests of the flags that all recipes share."""

import importlib.util
from pathlib import Path

import keras
import pytest

from zoo.training.config import TrainingConfig, set_defaults

pytestmark = pytest.mark.once


def test_training_config_checks_flags_by_their_annotations() -> None:
    TrainingConfig(checkpoint_steps=1, patience=None)
    for name, value, rule in (
        ("checkpoint_steps", 0, "a whole number of at least 1"),
        ("patience", 1.5, "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("dtype_policy", "int8", "one of float32, bfloat16, mixed_bfloat16"),
        ("quiet", 1, "True or False"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}` must be {rule}\. Received: {name}="):
            TrainingConfig(**{name: value})


def test_training_config_gives_callbacks_that_flags_ask_for(tmp_path: Path) -> None:
    assert TrainingConfig(quiet=True).callbacks() == []
    (stopping,) = TrainingConfig(quiet=True, patience=3).callbacks()
    assert isinstance(stopping, keras.callbacks.EarlyStopping)
    assert (stopping.monitor, stopping.patience) == ("val_loss", 3)


@pytest.mark.parametrize("installed", [set(), {"tensorflow"}, {"tensorboard"}])
def test_training_config_rejects_tensorboard_where_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str]
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    missing = ", ".join(name for name in ("tensorflow", "tensorboard") if name not in installed)
    text = rf"Missing: {missing}\. Received: tensorboard=DIR.*pip install tensorflow tensorboard"
    with pytest.raises(ValueError, match=text):
        TrainingConfig(tensorboard=tmp_path).prepare()


def test_training_config_is_verbose_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, verbose in ((True, 1), (False, 2)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert TrainingConfig().verbose == verbose
        assert len(TrainingConfig().progress()) == (verbose == 2)
        assert TrainingConfig(quiet=True).verbose == 0


def test_set_defaults_sets_only_missing_fields() -> None:
    config = TrainingConfig(seed=3)
    set_defaults(config, patience=5, seed=1)
    assert (config.patience, config.seed) == (5, 3)
