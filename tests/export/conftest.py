"""Fixtures of the tests of the export."""

from collections.abc import Iterator

import pytest

from zoo.parity import Workers


@pytest.fixture(scope="package")
def workers() -> Iterator[Workers]:
    with Workers(min_backends=1) as pool:
        yield pool
