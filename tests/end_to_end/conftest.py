"""Running suites."""

import pytest

from tests.end_to_end.models import install_models
from tests.end_to_end.suite import MODES, shared_suite, start_suite


@pytest.fixture(scope="session")
def suites(request, save_graph, tmp_path_factory):
    """The suites of both modes, by mode; shared, so not to be killed."""

    def prepare():
        return install_models(tmp_path_factory.mktemp("home"), save_graph)

    return {mode: shared_suite(request.config, mode, prepare) for mode in MODES}


@pytest.fixture(scope="session", params=MODES)
def shared(request, suites):
    return suites[request.param]


@pytest.fixture
def suite(shared):
    """The suite of either mode; shared, so not to be killed. It must not log a fault."""
    yield shared
    assert shared.new_errors() == []


@pytest.fixture(scope="module")
def start(save_graph, tmp_path_factory):
    """A function that starts a suite of the test's own: start(mode, **settings)."""
    started = []

    def start(mode, **settings):
        suite = start_suite(mode, install_models(tmp_path_factory.mktemp("home"), save_graph), **settings)
        started.append(suite)
        suite.wait_until_ready()
        return suite

    yield start
    for suite in started:
        suite.end()
