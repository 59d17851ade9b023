"""Worker processes that all tests of the check share: starting one takes seconds."""

from collections.abc import Iterator

import pytest

from tests.parity.faults import FAULTY
from zoo.parity import Workers


@pytest.fixture(scope="session")
def everywhere() -> Iterator[Workers]:
    """All three backends."""
    with Workers() as shared:
        yield shared


@pytest.fixture(scope="session")
def workers(everywhere: Workers) -> Workers:
    """Two backends, one of them that with the planted faults."""
    return everywhere.only("torch", FAULTY)
