"""Run directories: the files that a recipe leaves behind, and that let it be resumed.

config.json        the configuration
history.csv        a row for each epoch
metrics.json       the results; written last, so its presence says that the run is finished
*.png              the plots
model.weights.h5   the trained weights
checkpoints/       the last two checkpoints
"""

import csv
import dataclasses
import importlib.util
import io
import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import keras
from rich.console import Console

from zoo import backends
from zoo.backends import backend
from zoo.training.callbacks import StepCheckpoint, TrainingState
from zoo.training.checkpoints import atomic_write, remove_unfinished
from zoo.validation import check_sizes


class RunDirectory:
    """Directory of one run, opened for a configuration.

    Args:
        path: The directory; created if it is not there.
        config: Configuration that decides the results, as JSON can hold it. A directory that was
            begun with another configuration is refused.
        extendable: Names in `config` that a later call may raise, such as `epochs`. They are not
            compared; a run that has reached less than is asked for goes on.

    Raises:
        ValueError: If the path is a file, holds something else than a run, or belongs to another
            configuration; the text names what differs.
        OSError: If the directory cannot be created or written to.
    """

    def __init__(self, path: Path, config: dict[str, Any], extendable: str | None = None):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"`run_dir` must be a directory or a new path. Received: the file {self.path}"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno, f"`run_dir` cannot be created: {error.strerror}. Received: {self.path}"
            ) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"`run_dir` must be writable. Received: {self.path}")
        remove_unfinished(self.path)
        config = json.loads(json.dumps(config))
        self._config = config
        self._extendable = extendable
        if (self.path / "config.json").exists():
            self._refuse_other(config)
        elif any(self.path.iterdir()):
            raise ValueError(
                "`run_dir` must be new, empty, or an earlier run's. Received: "
                f"{self.path}, which holds other files"
            )

    def write_config(self) -> None:
        """Writes config.json, once the configuration has proved sound."""
        if self._read_if_there("config.json") == self._config:
            return
        (self.path / "metrics.json").unlink(missing_ok=True)  # of a shorter run, which goes on
        self.write("config.json", _json(self._config))

    def _refuse_other(self, config: dict[str, Any]) -> None:
        earlier = self._read("config.json")
        differing = [
            f"{name} was {earlier.get(name)!r} and is {config.get(name)!r}"
            for name in sorted({*earlier, *config} - {self._extendable})
            if earlier.get(name) != config.get(name)
        ]
        if differing:
            raise ValueError(
                f"`run_dir` {self.path} belongs to another configuration: {', '.join(differing)}. "
                "Give the same flags to go on with it, or another `--run-dir`"
            )
        name = self._extendable
        if name is not None and (earlier.get(name) or 0) > config[name]:
            raise ValueError(
                f"`{name}` must be at least {earlier[name]}, the {name} of the run in {self.path}. "
                f"Received: {name}={config[name]}"
            )

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Results of a finished run; None before, and if more is asked for than it has reached."""
        metrics = self._read_if_there("metrics.json")
        if metrics is None or self._extendable is None:
            return metrics
        earlier = self._read("config.json")
        return metrics if earlier.get(self._extendable) == self._config[self._extendable] else None

    def _read_if_there(self, name: str) -> dict[str, Any] | None:
        return self._read(name) if (self.path / name).exists() else None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"`run_dir` {self.path} holds a damaged {name} ({error}). Remove that file, or "
                "give another `--run-dir`"
            ) from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the directory, whole or not at all."""
        with atomic_write(self.path / name) as file:
            file.write(content)

    def write_history(self, rows: list[dict[str, float]]) -> None:
        """Writes history.csv, a row for each epoch; nothing before the first."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.write("history.csv", text.getvalue().encode())

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes metrics.json, which says that the run is finished."""
        self.write("metrics.json", _json(metrics))

    def save_model(self, model: keras.Model) -> None:
        """Writes the architecture, model.json, and the weights, model.weights.h5."""
        self.write("model.json", model.to_json(indent=2).encode())
        model.save_weights(self.path / "model.weights.h5")

    def checkpoint(self, every: int = 200, only_trainable: bool = False) -> StepCheckpoint:
        """The checkpoints of the run, for `zoo.Trainer.fit`; they keep history.csv up to date."""
        return _RunCheckpoint(self, every, only_trainable)

    def finish(
        self,
        recipe: str,
        model: keras.Model,
        state: TrainingState,
        console: Console,
        /,
        **results: Any,
    ) -> dict[str, Any]:
        """Writes the results of a training and says where they are.

        Args:
            recipe: Name of the recipe.
            model: Trained network.
            state: State of the training, from the checkpoint.
            console: Console for the message.
            **results: Further entries of metrics.json.

        Returns:
            The content of metrics.json.
        """
        metrics = {
            "recipe": recipe,
            "model": model.name,
            **environment(),
            "backends": state.backends,
            "parameters": model.count_params(),
            **results,
            "examples_per_second": state.examples_per_second,
            "wall_seconds": state.wall_seconds,
        }
        self.write_metrics(metrics)
        console.print(f"Results are in {self.path}")
        return metrics


class _RunCheckpoint(StepCheckpoint):
    """Checkpoints in a run directory, beside which history.csv is kept up to date."""

    def __init__(self, run: RunDirectory, every: int, only_trainable: bool):
        hint = f"the same command with `--run-dir {run.path}` goes on"
        super().__init__(run.checkpoints, every, hint, only_trainable)
        self._run = run

    def restore(self, trainer: keras.Model) -> TrainingState:
        self._run.write_config()
        state = super().restore(trainer)
        if state.step:
            print(f"Going on after step {state.step}")
        self._run.write_history(state.history)
        return state

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        try:
            super().on_epoch_end(epoch, logs)
        finally:
            self._run.write_history(self.state.history)


def environment() -> dict[str, str]:
    """Versions and device of the run, for metrics.json."""
    return {
        "backend": backends.name,
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
    }


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every recipe that trains."""

    seed: int = 0
    """Seed of all random draws, such as initial weights; the same run on every backend."""
    dtype_policy: Literal["float32", "bfloat16", "mixed_bfloat16"] = "float32"
    """Dtype policy of the network."""
    run_dir: Path | None = None
    """Directory of results and checkpoints; by default a new folder in runs/."""
    checkpoint_steps: int = 200
    """Steps between two checkpoints, besides one after each epoch."""
    patience: int | None = None
    """Epochs without a better validation loss after which training stops; by default never."""
    tensorboard: Path | None = None
    """Directory of TensorBoard's event files; by default none are written."""
    deterministic: bool = False
    """Turn on the backend's deterministic switches; slower on some devices."""

    def check_sizes(self, *names: str) -> None:
        """Raises ValueError unless the fields of these names are at least 1, where they are set."""
        names = (*names, "checkpoint_steps", "patience")
        sizes = {name: getattr(self, name) for name in names}
        check_sizes(**{name: size for name, size in sizes.items() if size is not None})

    def prepare(self) -> None:
        """Turns on what the flags ask of the backend, and refuses what it cannot do."""
        if self.deterministic:
            backend.make_deterministic()
        if self.tensorboard is not None:
            check_tensorboard()

    @property
    def verbose(self) -> int:
        """`verbose` of `fit`: a progress bar on a terminal, a line for each epoch elsewhere."""
        return 1 if sys.stdout.isatty() else 2

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Keras callbacks that the flags ask for."""
        chosen: list[keras.callbacks.Callback] = []
        if self.patience is not None:
            chosen.append(keras.callbacks.EarlyStopping("val_loss", patience=self.patience))
        if self.tensorboard is not None:
            chosen.append(keras.callbacks.TensorBoard(self.tensorboard, write_graph=False))
        return chosen


def check_tensorboard() -> None:
    """Raises ValueError unless what writes Keras' event files is installed."""
    missing = [name for name in _TENSORBOARD if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            "`tensorboard` needs the packages tensorflow and tensorboard, with which Keras writes "
            f"event files on every backend. Missing: {', '.join(missing)}. Received: "
            "tensorboard=DIR. Install both with `pip install tensorflow tensorboard`, or read "
            "history.csv in the run directory"
        )


_TENSORBOARD = ("tensorflow", "tensorboard")
_NOT_RESULTS = {"run_dir", "quick", "checkpoint_steps", "deterministic", "tensorboard"}


def open_run(
    recipe: str, config: Any, *not_results: str, extendable: str | None = None
) -> RunDirectory:
    """The run directory of a recipe.

    Args:
        recipe: Name of the recipe.
        config: Dataclass with a `run_dir`, a path or None for a new folder in runs/.
        *not_results: Names of further fields that do not decide the results, so that a run may go
            on with other values.
        extendable: Name of the field that says how long to train; a finished run goes on if it is
            raised.

    Raises:
        ValueError, OSError: As `RunDirectory` does.
    """
    path = config.run_dir or Path("runs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    ignored = _NOT_RESULTS.union(not_results)
    decisive = {k: v for k, v in dataclasses.asdict(config).items() if k not in ignored}
    return RunDirectory(path, {"recipe": recipe, **decisive}, extendable)


def set_defaults(config: Any, **values: Any) -> None:
    """Sets those of a frozen dataclass' fields that are None, in its `__post_init__`."""
    for name, value in values.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n").encode()
