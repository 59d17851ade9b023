"""The run directory: everything a run leaves behind, and what lets it go on.

config.json        what was asked for
history.csv        a row an epoch
metrics.json       the results; written last, so its presence says that the run is finished
*.png              the plots
model.weights.h5   the trained weights
checkpoints/       the last two checkpoints
"""

import csv
import dataclasses
import io
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from zoo.training.checkpoints import atomic_write, remove_unfinished


class RunDirectory:
    """A run directory, opened for a configuration.

    Args:
        path: the directory; created if it is not there.
        config: what decides the results, as JSON can hold it. A directory begun with another
            configuration is refused.

    Raises:
        ValueError: if the path is a file, holds something else than a run, or belongs to another
            configuration; the text names what differs.
        OSError: if the directory cannot be created or written to.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
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
        if (self.path / "config.json").exists():
            self._refuse_other(config)
        elif any(self.path.iterdir()):
            raise ValueError(
                "`run_dir` must be new, empty, or an earlier run's. Received: "
                f"{self.path}, which holds other files"
            )

    def write_config(self) -> None:
        """Makes the directory this configuration's, once the configuration has proved sound."""
        if not (self.path / "config.json").exists():
            self.write("config.json", _json(self._config))

    def _refuse_other(self, config: dict[str, Any]) -> None:
        earlier = self._read("config.json")
        differing = [
            f"{name} was {earlier.get(name)!r} and is {config.get(name)!r}"
            for name in sorted({*earlier, *config})
            if earlier.get(name) != config.get(name)
        ]
        if differing:
            raise ValueError(
                f"`run_dir` {self.path} belongs to another configuration: {', '.join(differing)}. "
                "Give the same flags to go on with it, or another `--run-dir`"
            )

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The results of a finished run, None before."""
        return self._read("metrics.json") if (self.path / "metrics.json").exists() else None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text())
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
        """Writes a row an epoch; nothing before the first."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.write("history.csv", text.getvalue().encode())

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        self.write("metrics.json", _json(metrics))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every recipe that trains with `zoo.training.trainer.fit` can be told."""

    seed: int = 0
    """Of everything that is drawn, such as initial weights; the same run on every backend."""
    dtype_policy: Literal["float32", "bfloat16", "mixed_bfloat16"] = "float32"
    """What the network computes in."""
    run_dir: Path | None = None
    """Where results and checkpoints go; by default a new folder in runs/."""
    checkpoint_steps: int = 200
    """A checkpoint every so many steps, besides one after each epoch."""
    deterministic: bool = False
    """Turn on the backend's deterministic switches; slower on some devices."""


_NOT_RESULTS = {"run_dir", "quick", "checkpoint_steps", "deterministic"}


def open_run(recipe: str, config: Any, *not_results: str) -> RunDirectory:
    """The run directory of a recipe.

    Args:
        recipe: its name.
        config: a dataclass with a `run_dir`, a path or None for a new folder in runs/.
        *not_results: fields that do not decide the results, so that a run may go on with others,
            besides `run_dir`, `quick`, `checkpoint_steps` and `deterministic`.

    Raises:
        ValueError, OSError: as `Run` does.
    """
    path = config.run_dir or Path("runs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    ignored = _NOT_RESULTS.union(not_results)
    decisive = {k: v for k, v in dataclasses.asdict(config).items() if k not in ignored}
    return RunDirectory(path, {"recipe": recipe, **decisive})


def set_defaults(config: Any, **values: Any) -> None:
    """Gives the fields of a frozen dataclass that are None these values, in its `__post_init__`."""
    for name, value in values.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
