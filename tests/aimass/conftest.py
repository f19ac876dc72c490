"""A running suite, and the command line as a person runs it."""

import subprocess

import pytest

from tests.end_to_end.conftest import suites
from tests.end_to_end.suite import AIMASS, clean_environment

__all__ = ["suites"]


@pytest.fixture
def suite(suites):
    """The suite of one process; what a user of the client sees is the same in both modes."""
    return suites["pipeline"]


@pytest.fixture
def run(tmp_path):
    """A function that runs `aimass` with arguments: run("predict", file, AIMASS_ADDRESS=...)."""

    def run(*arguments, **settings):
        environment = clean_environment(AIMASS_HOME=str(tmp_path / "home"), COLUMNS="200", **settings)
        return subprocess.run(
            [AIMASS, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def aimass(run, suite):
    """A function that runs `aimass` with arguments against the running suite."""
    return lambda *arguments: run(*arguments, AIMASS_ADDRESS=suite.address)
