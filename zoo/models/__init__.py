"""Architectures of the document, one model family in each file."""
