"""Flags that the recipes share, and the run directory that they give."""

import dataclasses
import importlib.util
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import keras

from zoo.backends import backend
from zoo.progress import ProgressLines, shows_bar
from zoo.training import cluster
from zoo.training.cluster import COORDINATOR, Cluster
from zoo.training.launcher import distributed
from zoo.training.run_directory import RunDirectory
from zoo.validation import Count, Index, Seed, validated


@validated
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every recipe that trains.

    A recipe's own are a dataclass on top of it. Both are `validated`: a flag is refused by its name
    and rule, which its annotation declares, before anything is made.
    """

    seed: Seed = 0
    """Seed of all random draws, such as initial weights; the same run on every backend."""
    dtype_policy: Literal["float32", "bfloat16", "mixed_bfloat16"] = "float32"
    """Dtype policy of the network."""
    run_dir: Path | None = None
    """Directory of results and checkpoints; by default a new folder in runs/."""
    checkpoint_steps: Count = 200
    """Steps between two checkpoints, besides one after each epoch."""
    gradient_accumulation: Count = 1
    """Batches whose gradients are added for each step, one after another: the losses of a batch so
    many times as large, with the memory of one."""
    patience: Count | None = None
    """Epochs without a better validation loss after which training stops; by default never."""
    tensorboard: Path | None = None
    """Directory of TensorBoard's event files; by default none are written."""
    deterministic: bool = False
    """Turn on the backend's deterministic switches; slower on some devices."""
    devices: Count = 1
    """Devices of this machine that train together; on a CPU, processes. The batches are split among
    them, so the results are those of one device."""
    num_nodes: Count = 1
    """Machines that train together; run the same command on each, with another --node-rank."""
    node_rank: Index = 0
    """Number of this machine, from 0 on."""
    coordinator: Annotated[str, COORDINATOR] | None = None
    """Address HOST:PORT of machine 0, with a free port; needed with --num-nodes."""
    max_restarts: Index = 3
    """How often the devices' processes start again, from the last checkpoint, after one was
    killed."""
    quiet: bool = False
    """Print nothing but warnings and errors."""

    def prepare(self) -> None:
        """Turns on what the flags ask of the backend, and refuses what it cannot do."""
        if self.deterministic:
            backend.make_deterministic()
        if self.tensorboard is not None:
            check_tensorboard()

    def distributed(self) -> AbstractContextManager[Cluster | None]:
        """Context manager of the training, for as many devices as the flags say."""
        return distributed(
            self.devices, self.num_nodes, self.node_rank, self.coordinator, self.max_restarts
        )

    @property
    def verbose(self) -> int:
        """`verbose` of `fit`: a progress bar on a terminal, a line for each epoch elsewhere."""
        return 0 if self.quiet or not cluster.is_first() else 1 if shows_bar() else 2

    def progress(self) -> list[keras.callbacks.Callback]:
        """Keras callbacks that print lines of progress where there is no bar."""
        return [ProgressLines()] if self.verbose == 2 else []

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Keras callbacks that the flags ask for."""
        chosen = self.progress()
        if self.patience is not None:
            chosen.append(keras.callbacks.EarlyStopping("val_loss", patience=self.patience))
        if self.tensorboard is not None and cluster.is_first():
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


def set_defaults(config: Any, **values: Any) -> None:
    """Sets those of a frozen dataclass' fields that are None, in its `__post_init__`."""
    for name, value in values.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


_NOT_RESULTS = {
    "run_dir", "quick", "quiet", "checkpoint_steps", "deterministic", "tensorboard", "devices",
    "num_nodes", "node_rank", "coordinator", "max_restarts",
}  # fmt: skip

_BATCH_SIZES = {"batch_size", "batch_tokens"}  # of a part, where gradients are accumulated


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
    launched = cluster.launched()
    new_path = Path("runs") / f"{recipe}-{launched or datetime.now():%Y%m%d-%H%M%S}"
    ignored = _NOT_RESULTS.union(not_results)
    decisive = {k: v for k, v in dataclasses.asdict(config).items() if k not in ignored}
    # What decides is the size of the batch as a whole, not of the parts that are computed at once.
    parts = decisive.pop("gradient_accumulation", 1)
    decisive |= {name: decisive[name] * parts for name in _BATCH_SIZES & decisive.keys()}
    settings = {"recipe": recipe, **decisive}
    return RunDirectory(
        config.run_dir or new_path,
        settings,
        extendable,
        new=config.run_dir is None and launched is None,
    )
