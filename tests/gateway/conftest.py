"""The running suites that the end-to-end tests use too."""

from tests.end_to_end.conftest import shared, suite, suites

__all__ = ["shared", "suite", "suites"]
