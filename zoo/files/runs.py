"""Finished runs: directories whose `manifest.json` has the SHA-256 of what belongs to the model.

    model = load_model("runs/mlp")

The manifest is the last file that a run writes. It covers every `.json` and `.h5` file of the
directory: the configuration, the metrics, the model, its weights, its vocabulary or prompts, and
its schedule.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import keras
from pydantic import ConfigDict, Field, StringConstraints

from zoo import registry
from zoo.files import arrays, documents, models
from zoo.validation import AnyPath, validated

T = TypeVar("T")

MANIFEST = "manifest.json"

_Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,99}$")]


class FileRecord(documents.Document):
    """Size and digest of a file.

    Attributes:
        bytes: Size of the file.
        sha256: SHA-256 digest of its content, in hexadecimal.
    """

    bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(documents.Document):
    """Content of `manifest.json`: the files of a finished run by name."""

    files: Annotated[dict[_Name, FileRecord], Field(min_length=1, max_length=100)]


def describe(folder: Path) -> bytes:
    """Returns the content of the manifest of a run directory."""
    records = {}
    for path in sorted(folder.iterdir()):
        is_member = path.suffix in (".json", ".h5") and path.name[0] != "." and path.is_file()
        if is_member and path.name != MANIFEST:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            records[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return documents.dump({"files": records})


class _Recipe(documents.Document):
    """The recipe in config.json or metrics.json, which have other entries, too.

    Attributes:
        recipe: Name of the recipe.
        within: Configuration of the run that has trained this one beside its own model.
    """

    model_config = ConfigDict(extra="ignore")

    recipe: Annotated[str, StringConstraints(max_length=100)] | None = None
    within: "_Recipe | None" = None


def _recipe_command(folder: Path) -> str:
    """The command that writes to a run directory, such as "`zoo train mnist`"."""
    with contextlib.suppress(OSError, ValueError):
        config = documents.read(folder / "config.json", _Recipe, remedy="")
        if recipe := (config.within or config).recipe:
            return f"`zoo train {recipe}`"
    return "the recipe"


class FinishedRun:
    """Directory of a finished run, whose files are verified before they are read.

    Args:
        folder: Run directory.
        recipes: Names of the recipes that write such runs, for error messages.
        needs: Names of files that the run must have.
        argument: Name of the argument `folder` in error messages.

    Raises:
        ValueError: If the directory is no finished run, or one of another recipe; if a file is
            missing, or the manifest is damaged.
    """

    def __init__(
        self,
        folder: AnyPath,
        recipes: Sequence[str] = (),
        needs: Sequence[str] = (),
        argument: str = "run_dir",
    ):
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        again = (
            f"un {_recipe_command(self.folder)} with the same flags and `--run-dir` again, which "
            "finishes the run from its last checkpoint"
        )
        self._remedy = f"Restore the file, or remove it and {manifest} and r{again}"
        commands = " or ".join(f"`zoo train {name}`" for name in recipes) or "a recipe"
        rule = f"`{argument}` must hold a finished run of {commands}"
        for name in ("metrics.json", MANIFEST):
            if not (self.folder / name).exists():
                is_run = (self.folder / "config.json").exists()
                remedy = f"R{again}" if is_run else "Give another directory"
                raise ValueError(f"{rule}. Received: {folder}, which has no {name}. {remedy}")
        remedy = f"Restore the file, or remove it and r{again}"
        self._records = documents.read(manifest, Manifest, remedy).files
        if recipes:
            received = self.read("metrics.json", _Recipe).recipe
            if received not in (None, *recipes):
                raise ValueError(
                    f"{rule}. Received: {folder}, a finished run of `zoo train {received}`"
                )
        for name in needs:
            self._record(name)
            if not (self.folder / name).exists():
                raise ValueError(f"{rule}. Received: {folder}, which has no {name}. {self._remedy}")

    def __contains__(self, name: str) -> bool:
        """Whether a file of this name belongs to the run."""
        return name in self._records

    def verify(self, *names: str) -> None:
        """Compares files with the manifest.

        Args:
            *names: Names of the files; by default all of the manifest.

        Raises:
            ValueError: If a file is missing, is not in the manifest, or has changed. The text
                names it.
            OSError: If a file cannot be read.
        """
        for name in names or self._records:
            record = self._record(name)
            path = self.folder / name
            if not path.is_file():
                raise ValueError(
                    f"{path} must be a file, as {MANIFEST} says. Received: no file. {self._remedy}"
                )
            size = path.stat().st_size
            if size != record.bytes:
                raise self._changed(name, f"{record.bytes:,} bytes", f"{size:,} bytes")
            with open(path, "rb") as file:
                self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())

    def read(self, name: str, schema: type[T], max_bytes: int = documents.MAX_BYTES) -> T:
        """Reads and verifies a JSON file of the run.

        Args:
            name: Name of the file.
            schema: Type of its content, as for `documents.parse`.
            max_bytes: Largest size of the file.

        Raises:
            ValueError: If the file has changed, or is not of the schema.
            OSError: If the file cannot be read.
        """
        content = self.read_bytes(name, max_bytes)
        return documents.parse(content, schema, str(self.folder / name), self._remedy)

    def read_bytes(self, name: str, max_bytes: int = documents.MAX_BYTES) -> bytes:
        """Reads and verifies a file of the run, as `read` does, without parsing it."""
        self._record(name)
        content = documents.read_bytes(self.folder / name, self._remedy, max_bytes)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def load_model(self, name: str = "model", builders: Sequence[str] = ()) -> keras.Model:
        """Builds a model of the run and loads its weights.

        Args:
            name: Name of the model's files, without `.json` and `.weights.h5`.
            builders: Names of the builders that may have made it; by default all of the registry.

        Raises:
            ValueError: If a file has changed, is damaged, or does not fit the other, or the model
                is of another builder.
            OSError: If a file cannot be read.
        """
        content = self.read_bytes(f"{name}.json")
        self.verify(f"{name}.weights.h5")
        weights = self.folder / f"{name}.weights.h5"
        source = str(self.folder / f"{name}.json")
        return models.build(
            content, weights, builders or sorted(registry.models), source, self._remedy
        )

    def load_weights(self, model: keras.Model, name: str = "model") -> None:
        """Loads the weights of the run into a model, wholly or not at all.

        Args:
            model: Model of the same configuration.
            name: Name of the weights file, without `.weights.h5`.

        Raises:
            ValueError: If the file has changed or does not belong to the model.
            OSError: If the file cannot be read.
        """
        self.verify(f"{name}.weights.h5")
        arrays.load_weights(model, self.folder / f"{name}.weights.h5")

    def _record(self, name: str) -> FileRecord:
        if name not in self._records:
            raise ValueError(
                f"{self.folder / MANIFEST} must list {name}. Received: "
                f"{', '.join(sorted(self._records))}. {self._remedy}"
            )
        return self._records[name]

    def _compare(self, name: str, digest: str) -> None:
        expected = self._record(name).sha256
        if digest != expected:
            raise self._changed(name, f"the SHA-256 {expected}", digest)

    def _changed(self, name: str, expected: str, received: str) -> ValueError:
        by_hand = (
            ". Weights that were changed on purpose can be loaded by hand: build the model, and "
            "call its `load_weights`"
        )
        return ValueError(
            f"{self.folder / name} has changed since the run was finished: it must have "
            f"{expected}, as {MANIFEST} says. Received: {received}. {self._remedy}"
            f"{by_hand if name.endswith('.h5') else ''}"
        )


@validated
def load_model(folder: AnyPath) -> keras.Model:
    """Loads the model of a finished run.

    Args:
        folder: Run directory.

    Returns:
        The model, uncompiled, with its trained weights.

    Raises:
        ValueError: If the directory is no finished run, or a file has changed or is damaged.
        OSError: If a file cannot be read.
    """
    return FinishedRun(folder, needs=("model.json", "model.weights.h5")).load_model()
