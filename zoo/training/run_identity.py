"""What a run depends on: its configuration, the files that its training reads, the software."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from pydantic import JsonValue

from zoo import backends
from zoo.backends import backend
from zoo.files import documents
from zoo.training.checkpoints import Identity, differences, identities
from zoo.validation import show

CONFIG = "config.json"
INPUTS = "inputs.json"


class RunIdentity:
    """Identity of a run, by which another run's directory or checkpoint is refused.

    Args:
        config: Configuration that decides the results, as JSON can hold it.
        extendable: Name in `config` that a later call may raise, such as `epochs`; not compared.
    """

    def __init__(self, config: dict[str, Any], extendable: str | None):
        self.config = config
        self.extendable = extendable
        self.inputs: dict[str, str] = {}

    @property
    def configuration(self) -> dict[str, Any]:
        """The configuration without the entry that may be raised."""
        return {k: v for k, v in self.config.items() if k != self.extendable}

    @property
    def for_checkpoint(self) -> dict[str, dict[str, Any]]:
        """Identity that the checkpoints of the run hold, beside the order of the examples."""
        return {"configuration": self.configuration, "inputs": self.inputs}

    def is_of(self, identity: Identity) -> bool:
        """Whether a checkpoint of this identity has the configuration of this run."""
        return identity.get("configuration") == self.configuration

    def has_checkpoint(self, run_dir: Path) -> bool:
        """Whether a directory has a checkpoint of this configuration."""
        return any(map(self.is_of, identities(run_dir / "checkpoints")))

    def read_config(self, run_dir: Path) -> dict[str, Any] | None:
        """The content of config.json, None if there is no such file.

        Raises:
            ValueError: If the file is damaged.
        """
        path = run_dir / CONFIG
        if not path.exists():
            return None
        schema = dict[str, JsonValue]
        try:
            return documents.read(path, schema, "Restore the file, or give another `--run-dir`")
        except ValueError:
            if not self.has_checkpoint(run_dir):
                raise
            remedy = "Remove that file to go on after the last checkpoint"
            return documents.read(path, schema, remedy)

    def check_config(self, run_dir: Path, earlier: dict[str, Any]) -> None:
        """Compares the configuration with that of config.json.

        Raises:
            ValueError: If they differ (the text names in what), or less is asked for than the run
                has reached.
        """
        name = self.extendable
        compared = {key: value for key, value in earlier.items() if key != name}
        if differing := ", ".join(differences(compared, self.configuration)):
            if self.has_checkpoint(run_dir):
                raise ValueError(
                    f"{run_dir / CONFIG} must be that of the checkpoints, which belong to the "
                    f"flags that are given. Received: {differing}. Remove that file to go on after "
                    "the last checkpoint"
                )
            raise ValueError(
                f"`run_dir` {run_dir} belongs to another configuration: {differing}. Give the same "
                "flags to go on with it, or another `--run-dir`"
            )
        reached = 0 if name is None else earlier.get(name, 0)
        if not isinstance(reached, int):
            raise ValueError(
                f"{run_dir / CONFIG}: `{name}` must be a whole number. Received: {show(reached)}. "
                "Restore the file, or give another `--run-dir`"
            )
        if name is not None and reached > self.config[name]:
            raise ValueError(
                f"`{name}` must be at least {reached}, the {name} of the run in {run_dir}. "
                f"Received: {name}={self.config[name]}"
            )

    def bind(self, run_dir: Path, name: str, content: bytes) -> None:
        """Adds a file to the inputs of the run.

        Args:
            run_dir: Run directory.
            name: Path of the file in the directory.
            content: Content of the file.

        Raises:
            ValueError: If the run was begun with another content, or inputs.json is damaged.
        """
        recorded = self._recorded_inputs(run_dir)
        digest = hashlib.sha256(content).hexdigest()
        if recorded.get(name, digest) != digest:
            raise ValueError(
                f"{run_dir / name} must be the file that the run was begun with, of the SHA-256 "
                f"{recorded[name]}. Received: {digest}. Restore the file, or remove it, so that "
                "the same command makes it again"
            )
        self.inputs = {**recorded, name: digest}

    def _recorded_inputs(self, run_dir: Path) -> Mapping[str, Any]:
        """The digests in inputs.json or, without it, in the newest checkpoint of the run."""
        if (run_dir / INPUTS).exists():
            remedy = "Remove that file, whose content the checkpoints hold, too"
            return documents.read(run_dir / INPUTS, dict[str, str], remedy)
        checkpoints = filter(self.is_of, identities(run_dir / "checkpoints"))
        return next((identity.get("inputs", {}) for identity in checkpoints), {})


def environment() -> dict[str, str]:
    """Versions and device of the run, for metrics.json."""
    return {
        "backend": backends.name,
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
    }
