"""Which version answers, and the follower that keeps knowing it."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from aimass.inference.v1.lifecycle_pb2 import Canary, ModelState, ModelVersion, Traffic, WatchTrafficResponse
from services.common import traffic
from services.common.errors import NotFound, NotReady
from services.common.traffic import TrafficFollower, choose_version, ready_versions, routing_share

READY, LOADING, UNAVAILABLE = ModelVersion.STATE_READY, ModelVersion.STATE_LOADING, ModelVersion.STATE_UNAVAILABLE


def state(stable: int = 0, **versions: int) -> ModelState:
    """Return a model's state; `v1=READY` stands for version 1."""
    return ModelState(
        model="m",
        traffic=Traffic(stable_version=stable),
        versions=[
            ModelVersion(version=int(name[1:]), state=state, state_reason="broken" if state == UNAVAILABLE else "")
            for name, state in versions.items()
        ],
    )


@pytest.mark.parametrize(
    ("model", "requested", "chosen"),
    [
        (state(v1=READY, v2=READY), 0, 2),
        (state(v1=READY, v2=LOADING), 0, 1),
        (state(stable=1, v1=READY, v2=READY), 0, 1),
        (state(stable=1, v1=READY, v2=READY), 2, 2),
        (state(stable=2, v1=READY, v2=UNAVAILABLE), 1, 1),
    ],
)
def test_version_is_the_requested_one_then_the_stable_one_then_the_newest_ready_one(model, requested, chosen):
    assert choose_version(model, requested) == chosen


@pytest.mark.parametrize(
    ("model", "requested", "error", "words"),
    [
        (state(), 0, NotReady, "model 'm' has no version that is ready; publish one"),
        (state(v1=UNAVAILABLE), 0, NotReady, "no version that is ready; version 1: broken"),
        (state(v1=READY, v2=READY), 3, NotFound, "has no version 3; name one that it has: 1, 2"),
        (state(v1=READY), -1, NotFound, "has no version -1"),
        (state(), 1, NotFound, "name one that it has: none"),
        (state(v1=LOADING), 1, NotReady, "version 1 of model 'm' is LOADING: try again"),
        (state(stable=2, v1=READY, v2=UNAVAILABLE), 0, NotReady, "version 2 of model 'm' is UNAVAILABLE: broken"),
        (state(stable=9, v1=READY), 0, NotFound, "has no version 9"),
    ],
)
def test_version_that_cannot_serve_is_refused_with_what_could(model, requested, error, words):
    with pytest.raises(error, match=words):
        choose_version(model, requested)


def test_a_canary_takes_the_keys_below_its_share_and_only_of_requests_that_name_no_version():
    model = state(stable=1, v1=READY, v2=READY)
    model.traffic.canary.CopyFrom(Canary(version=2, share=routing_share("m", "key")))
    assert choose_version(model, routing_key="key") == 1
    model.traffic.canary.share += 1e-9

    assert choose_version(model, routing_key="key") == 2
    assert choose_version(model, 1, "key") == 1
    assert choose_version(model) == 1


def test_a_canary_that_is_not_ready_gets_nothing():
    model = state(stable=1, v1=READY, v2=UNAVAILABLE)
    model.traffic.canary.CopyFrom(Canary(version=2, share=1.0))

    assert choose_version(model, routing_key="key") == 1


def test_keys_are_spread_evenly_and_each_model_spreads_them_anew():
    shares = np.array([[routing_share(model, str(key)) for key in range(4000)] for model in ("one", "other")])

    assert np.all(np.abs(np.histogram(shares[0], 10, (0, 1))[0] - 400) < 100)
    assert abs(np.corrcoef(shares)[0, 1]) < 0.1


def test_ready_versions_leave_out_the_rest():
    assert ready_versions(state(v1=READY, v2=LOADING, v3=UNAVAILABLE, v4=READY)) == [1, 4]


@pytest.fixture
async def follow(monkeypatch):
    """A function that follows a list of streams, one after the other; an exception in a stream ends it."""
    monkeypatch.setattr(traffic, "RECONNECT_SECONDS", 0)
    followers = []

    def follow(*streams) -> TrafficFollower:
        remaining = iter(streams)

        async def watch() -> AsyncIterator[WatchTrafficResponse]:
            for item in next(remaining, ()):
                if isinstance(item, Exception):
                    raise item
                yield WatchTrafficResponse(models=item)
            if not remaining.__length_hint__():
                await asyncio.Event().wait()

        followers.append(TrafficFollower(watch))
        return followers[-1]

    yield follow
    for follower in followers:
        await follower.close()


async def test_follower_starts_with_the_first_state(follow):
    follower = follow([[state(v1=READY)]])
    with pytest.raises(NotReady, match="has not arrived"):
        follower.model("m")

    await follower.start()

    assert choose_version(follower.model("m")) == 1
    with pytest.raises(NotFound, match="model 'x' is unknown; name one that this suite has: m") as caught:
        follower.model("x")
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_follower_asks_again_when_a_stream_ends_or_breaks(follow):
    follower = follow([[state(v1=READY)]], [ValueError("broken")], [], [[state(v1=READY, v2=READY)]])
    await follower.start()

    assert await follower.wait_for(lambda: len(follower.model("m").versions) == 2, seconds=60)


async def test_follower_keeps_the_last_state_while_nobody_tells(follow):
    follower = follow([[state(v1=READY)], ConnectionError()], [ConnectionError()], [])
    await follower.start()

    assert not await follower.wait_for(lambda: len(follower.model("m").versions) == 2, seconds=0.01)
    assert choose_version(follower.model("m")) == 1


async def test_follower_forgets_a_model_that_is_gone(follow):
    follower = follow([[state(v1=READY)], []])
    await follower.start()

    assert await follower.wait_for(lambda: not follower.models, seconds=60)


async def test_follower_that_is_closed_follows_no_more(follow):
    follower = follow([[state(v1=READY)]])
    await follower.start()
    before = asyncio.all_tasks()
    await follower.close()

    assert len(before - asyncio.all_tasks()) == 1
    assert choose_version(follower.model("m")) == 1
