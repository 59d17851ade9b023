"""The document's architectures, one family a file."""
