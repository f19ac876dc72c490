"""The running suites that the end-to-end tests use too, and one of a test's own."""

from contextlib import AsyncExitStack

import pytest

from tests.end_to_end.conftest import shared, suite, suites
from tests.end_to_end.suite import start_suite
from tests.gateway.door import LearningTrainer, open_door

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


@pytest.fixture
async def open_gateway(serve, inference):
    """A function that opens a gateway with a learning trainer behind it: open_gateway(**settings)."""
    async with AsyncExitStack() as stack:

        async def start(trainer=None, **settings):
            return await stack.enter_async_context(
                open_door(serve, inference, trainer or LearningTrainer(), **settings)
            )

        yield start


@pytest.fixture
async def door(open_gateway):
    """A gateway as it is by default."""
    return await open_gateway()
