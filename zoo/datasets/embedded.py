"""Data files that come with the package, verified by SHA-256."""

import hashlib
from importlib import resources
from typing import Any, BinaryIO, cast


def embedded(name: str, sha256: str) -> BinaryIO:
    """Opens a file of `zoo/data/` to read, once its content has proved to be the one meant.

    Raises:
        OSError: if its SHA-256 is another.
    """
    path = resources.files("zoo").joinpath("data", name)
    file: Any = path.open("rb")
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        file.close()
        raise OSError(
            f"The embedded data is damaged: {path} must have the SHA-256 {sha256}. "
            f"Received: {found}. Install keras-zoo again"
        )
    file.seek(0)
    return cast(BinaryIO, file)
