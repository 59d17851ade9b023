"""The History of a training that was resumed, and the callbacks that compare its epochs."""

from collections.abc import Sequence
from typing import Any

import keras

from zoo.training.callbacks import TrainingState
from zoo.validation import Count, validated


class ContinuedHistory(keras.callbacks.History):  # type: ignore[misc]
    """The History of a training, with the epochs before it was resumed.

    Args:
        state: State of the training, as `StepCheckpoint` restores and updates it.
        epochs: Number of all epochs.
        callbacks: Callbacks of the training. Those that compare epochs are shown the earlier ones:
            `EarlyStopping`, `ReduceLROnPlateau`, and `ModelCheckpoint` with `save_best_only`.

    Raises:
        ValueError: If an `EarlyStopping` is to restore the best weights, which would be lost.
    """

    @validated
    def __init__(
        self,
        state: TrainingState,
        epochs: Count,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ):
        super().__init__()
        self._state = state
        self._epochs = epochs
        self._comparing: list[Any] = [c for c in callbacks if isinstance(c, _COMPARING)]
        if any(getattr(callback, "restore_best_weights", False) for callback in self._comparing):
            raise ValueError(
                "`callbacks` must have no `EarlyStopping` with `restore_best_weights=True` where a "
                "`checkpoint` is given, since a resumed training lacks the weights of the epochs "
                "before. Load those that `ModelCheckpoint(path, save_best_only=True)` saves. "
                "Received: restore_best_weights=True"
            )

    def set_params(self, params: dict[str, Any]) -> None:
        # All callbacks share the dictionary. The rest of an epoch that was begun is a `fit` of its
        # own; these print the number of all epochs.
        params["epochs"] = self._epochs
        super().set_params(params)

    def on_train_begin(self, logs: Any = None) -> None:
        rows = self._state.history
        for callback in self._comparing:
            callback.set_model(self.model)  # where no epoch is left, `fit` has not
            for row in rows:
                if callback.monitor in row:  # else Keras warns
                    self._show(callback, row)
        self.model.stop_training = False
        self.epoch = [int(row["epoch"]) - 1 for row in rows]
        self.history: dict[str, list[float]] = {}
        for row in rows:  # which may differ in their names, with a `validation_freq` of 2
            for name, value in row.items():
                if name != "epoch":
                    self.history.setdefault(name, []).append(value)

    def _show(self, callback: Any, row: dict[str, float]) -> None:
        """Makes a callback know an earlier epoch, without an effect on model and files."""
        if not isinstance(callback, keras.callbacks.ModelCheckpoint):
            optimizer = self.model.optimizer
            rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            callback.on_epoch_end(int(row["epoch"]) - 1, dict(row))
            if isinstance(callback, keras.callbacks.ReduceLROnPlateau):
                optimizer.learning_rate = rate
        elif callback.save_best_only:
            if callback.monitor_op is None:
                callback._set_monitor_op()
            if callback._is_improvement(row[callback.monitor], callback.best):
                callback.best = row[callback.monitor]


_COMPARING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)
