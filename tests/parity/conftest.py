"""Worker processes that all tests of the check share, since starting one takes seconds."""

from collections.abc import Iterator

import pytest

from tests.parity.faults import FAULTY
from zoo.parity import Workers


@pytest.fixture(scope="session")
def all_backends() -> Iterator[Workers]:
    """Workers of all three backends."""
    with Workers() as shared:
        yield shared


@pytest.fixture(scope="session")
def workers(all_backends: Workers) -> Workers:
    """Workers of two backends, one of them the backend with the planted faults."""
    return all_backends.only("torch", FAULTY)
