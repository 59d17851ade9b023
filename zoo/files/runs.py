"""Finished runs: directories whose `manifest.json` has the SHA-256 of what belongs to the model.

    model = load_model("runs/mlp")

The manifest is the last file that a run writes. It covers every `.json` and `.h5` file of the
directory: the configuration, the metrics, the model, its weights, its vocabulary or prompts, and
its schedule.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import keras
from pydantic import ConfigDict, StringConstraints

from zoo.files import documents
from zoo.files.saved import FileRecords, SavedModel, describe_files
from zoo.validation import AnyPath, validated

MANIFEST = "manifest.json"


class Manifest(documents.Document):
    """Content of `manifest.json`: the files of a finished run by name."""

    files: FileRecords


def describe(folder: Path) -> bytes:
    """Returns the content of the manifest of a run directory."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".h5") and path.name[0] != "." and path.is_file()
    ]
    return documents.dump({"files": describe_files(p for p in files if p.name != MANIFEST)})


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


class FinishedRun(SavedModel):
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

    weights_suffix = ".weights.h5"

    def __init__(
        self,
        folder: AnyPath,
        recipes: Sequence[str] = (),
        needs: Sequence[str] = (),
        argument: str = "run_dir",
    ):
        path = Path(folder)
        manifest = path / MANIFEST
        again = (
            f"un {_recipe_command(path)} with the same flags and `--run-dir` again, which finishes "
            "the run from its last checkpoint"
        )
        commands = " or ".join(f"`zoo train {name}`" for name in recipes) or "a recipe"
        rule = f"`{argument}` must hold a finished run of {commands}"
        for name in ("metrics.json", MANIFEST):
            if not (path / name).exists():
                is_run = (path / "config.json").exists()
                remedy = f"R{again}" if is_run else "Give another directory"
                raise ValueError(f"{rule}. Received: {folder}, which has no {name}. {remedy}")
        remedy = f"Restore the file, or remove it and r{again}"
        records = documents.read(manifest, Manifest, remedy).files
        super().__init__(
            path, records, MANIFEST, "the run was finished",
            f"Restore the file, or remove it and {manifest} and r{again}",
        )  # fmt: skip
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
