"""Data files of the package, verified by their SHA-256 digests."""

import hashlib
from importlib import resources
from typing import Any, BinaryIO, Literal, cast

from zoo.validation import validated

Part = Literal["train", "validation", "test"]  # of a corpus


@validated
def embedded(name: str, sha256: str) -> BinaryIO:
    """Opens a file of `zoo/data/` for reading, after its SHA-256 digest is verified.

    Args:
        name: Name of the file.
        sha256: Expected SHA-256 digest of the content, in hexadecimal.

    Raises:
        OSError: If the digest differs from `sha256`.
    """
    path = resources.files("zoo").joinpath("data", name)
    file: Any = path.open("rb")
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        file.close()
        raise OSError(
            f"The embedded data is damaged: {path} must have the SHA-256 {sha256}. "
            f"Received: {digest}. Install keras-zoo again"
        )
    file.seek(0)
    return cast(BinaryIO, file)
