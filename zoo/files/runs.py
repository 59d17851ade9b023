"""Finished runs: directories whose `manifest.json` has the SHA-256 of what belongs to the model.

    model = load_model("runs/mlp")

The manifest is the last file that a run writes. It covers every `.json` and `.h5` file of the
directory: the configuration, the metrics, the model, its weights, its vocabulary or prompts, and
its schedule.
"""

from collections.abc import Sequence
from pathlib import Path

import keras

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


class FinishedRun(SavedModel):
    """Directory of a finished run, whose files are verified before they are read.

    Args:
        folder: Run directory.
        recipes: Names of the recipes that write such runs, for error messages.
        needs: Names of files that the run must have.
        argument: Name of the argument `folder` in error messages.

    Raises:
        ValueError: If the directory is no finished run, a file is missing, or the manifest is
            damaged.
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
        for name in ("metrics.json", *needs, MANIFEST):
            if not (path / name).exists():
                scripts = " or ".join(f"recipes/{recipe}.py" for recipe in recipes) or "a recipe"
                begun = (path / "config.json").exists()
                remedy = ". Give the recipe this directory again, which finishes the run"
                raise ValueError(
                    f"`{argument}` must hold a finished run of {scripts}. Received: {path}, which "
                    f"has no {name}{remedy if begun else ''}"
                )
        advice = (
            "give the recipe this directory again, which finishes the run from its last checkpoint"
        )
        remedy = f"Restore the file, or remove it and {advice}"
        records = documents.read(path / MANIFEST, Manifest, remedy).files
        super().__init__(
            path, records, MANIFEST, "the run was finished",
            f"Restore the file, or remove {path / MANIFEST} and {advice}",
        )  # fmt: skip
        for name in needs:
            self._record(name)


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
