"""Saved models in folders: every file has a known digest, and is verified before it is read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import keras
from pydantic import Field, StringConstraints

from zoo import registry
from zoo.files import documents, models

T = TypeVar("T")

FileName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,99}$")]


class FileRecord(documents.Document):
    """Size and digest of a file.

    Attributes:
        bytes: Size of the file.
        sha256: SHA-256 digest of its content, in hexadecimal.
    """

    bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


FileRecords = Annotated[dict[FileName, FileRecord], Field(min_length=1, max_length=100)]


def describe_files(paths: Iterable[Path]) -> dict[str, Any]:
    """Returns the size and digest of files, by name, as JSON can hold them."""
    records = {}
    for path in paths:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        records[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return records


class SavedModel:
    """Folder of a trained model whose files are verified before they are read.

    Args:
        folder: The folder.
        records: Size and digest of each file that belongs to the model.
        index: Name of the file that holds the records.
        event: What the files were complete with, for error messages.
        remedy: Sentence of the error messages that tells what to do.
    """

    weights_suffix: ClassVar[str]  # of a weights file's name

    def __init__(
        self, folder: Path, records: Mapping[str, FileRecord], index: str, event: str, remedy: str
    ):
        self.folder = folder
        self._records = records
        self._index = index
        self._event = event
        self._remedy = remedy

    def document(self, name: str = "model") -> models.ModelDocument:
        """Returns the builder and the arguments of a model.

        Args:
            name: Name of the model's files, without their suffixes.

        Raises:
            ValueError: If the file has changed or is damaged.
            OSError: If the file cannot be read.
        """
        return self.read(self.document_file(name), models.ModelDocument)

    def __contains__(self, name: str) -> bool:
        """Whether a file of this name belongs to the model."""
        return name in self._records

    def verify(self, *names: str) -> None:
        """Compares files with their records.

        Args:
            *names: Names of the files; by default all.

        Raises:
            ValueError: If a file is missing, has no record, or has changed. The text
                names it.
            OSError: If a file cannot be read.
        """
        for name in names or self._records:
            record = self._record(name)
            path = self.folder / name
            if not path.is_file():
                raise ValueError(
                    f"{path} must be a file, as {self._index} says. Received: no file. "
                    f"{self._remedy}"
                )
            size = path.stat().st_size
            if size != record.bytes:
                raise self._changed(name, f"{record.bytes:,} bytes", f"{size:,} bytes")
            with open(path, "rb") as file:
                self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())

    def read(self, name: str, schema: type[T], max_bytes: int = documents.MAX_BYTES) -> T:
        """Reads and verifies a JSON file of the folder.

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
        """Reads and verifies a file of the folder, as `read` does, without parsing it."""
        self._record(name)
        content = documents.read_bytes(self.folder / name, self._remedy, max_bytes)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def load_model(
        self,
        name: str = "model",
        builders: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> keras.Model:
        """Builds a model of the folder and loads its weights.

        Args:
            name: Name of the model's files, without their suffixes.
            builders: Names of the builders that may have made it; by default all of the registry.
            arguments: Arguments of the builder in place of the saved ones, such as another dtype.

        Raises:
            ValueError: If a file has changed, is damaged, or does not fit the other, or the model
                is of another builder.
            OSError: If a file cannot be read.
        """
        document = self.document(name)
        if arguments:
            changed = {**document.arguments, **arguments}
            document = document.model_copy(update={"arguments": changed})
        weights = self._weights(name)
        source = str(self.folder / self.document_file(name))
        return models.build(
            document, weights, builders or sorted(registry.models), source, self._remedy
        )

    def load_weights(self, model: keras.Model, name: str = "model") -> None:
        """Loads weights of the folder into a model, wholly or not at all.

        Args:
            model: Model of the same configuration.
            name: Name of the weights file, without its suffix.

        Raises:
            ValueError: If the file has changed or does not belong to the model.
            OSError: If the file cannot be read.
        """
        models.load_weights(model, self._weights(name))

    def document_file(self, name: str) -> str:
        """Name of the file with the builder and the arguments of a model."""
        return f"{name}.json"

    def _weights(self, name: str) -> Path:
        """Path of a verified weights file."""
        self.verify(f"{name}{self.weights_suffix}")
        return self.folder / f"{name}{self.weights_suffix}"

    def _record(self, name: str) -> FileRecord:
        if name not in self._records:
            raise ValueError(
                f"{self.folder / self._index} must list {name}. Received: "
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
            f"{self.folder / name} has changed since {self._event}: it must have {expected}, as "
            f"{self._index} says. Received: {received}. {self._remedy}"
            f"{by_hand if name.endswith('.h5') else ''}"
        )
