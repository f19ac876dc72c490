"""The running suites that the end-to-end tests use too, and one of a test's own."""

import pytest

from tests.end_to_end.conftest import shared, suite, suites
from tests.end_to_end.suite import start_suite

__all__ = ["own_suite", "shared", "suite", "suites"]


@pytest.fixture
def own_suite(tmp_path):
    """A suite whose models may be changed: an unloaded one stays in the index."""
    own = start_suite("pipeline", tmp_path)
    try:
        own.wait_until_ready()
        yield own
    finally:
        own.end()
