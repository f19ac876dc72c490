"""Whole cycles against a real inference service: from the trigger to the promotion, and whatever comes between."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import update

from aimass.inference.v1 import lifecycle_pb2
from services.trainer.data.models import Model, find_model
from services.trainer.data.tables import ObservationRow
from services.trainer.loop import director as directing
from services.trainer.loop import directors as managing
from services.trainer.loop.counting import Memory
from services.trainer.loop.directors import Directors, adopt_model
from services.trainer.loop.payloads import DeletionRequested, RejectionWished, RollbackWished, TrafficChanged
from services.trainer.loop.state import LoopState, Stage
from services.trainer.loop.tables import LoopModelRow
from services.trainer.loop.values import Outcome, Wanted
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import MODEL, SPEC
from tests.trainer.loop.home import BAD, STARTER, Home

WHOLE_CYCLE = [
    "cycle.started", "snapshot.made", "run.created", "run.ended", "pin.intended", "pinned", "publication.intended",
    "candidate.published", "gate.begun", "gate.decided", "shadow.intended", "shadow.started", "shadow.ended",
    "canary.intended", "canary.moved", "canary.ended", "promotion.intended", "promoted", "cycle.ended",
]  # fmt: skip


def ended(state: LoopState) -> bool:
    return state.cycle is None and state.last_cycle is not None


def at(stage: Stage) -> Callable[[LoopState], bool]:
    return lambda state: state.cycle is not None and state.cycle.stage == stage


async def test_new_samples_become_a_version_that_serves(home: Home) -> None:
    director = home.life("only")
    home.accept(4)
    assert not await home_settles(home, director)
    home.accept(1)

    state = await home.play(director, ended)

    cycle = state.last_cycle
    assert cycle is not None
    assert home.kinds == WHOLE_CYCLE
    assert (cycle.outcome, cycle.champion, cycle.candidate) == (Outcome.PROMOTED, 1, 2)
    assert (await home.stable())[0] == 2
    assert cycle.attempt is not None
    assert home.launcher.started == [cycle.attempt.run_id]
    run = home.store.get(cycle.attempt.run_id)
    assert run.client_id == f"loop:{MODEL}:1:0"
    publications = {each.version: each for each in (await home.served.model(MODEL)).versions}
    assert publications[2].publication_id == cycle.publication_id
    assert home.analysed  # the pictures were to be looked at when the gate began
    origin = (await home.reader.facts(state, home.policy)).origin
    assert origin is not None
    assert origin.run_id == run.id  # what comes next starts from what serves now


async def home_settles(home: Home, director: directing.Director) -> bool:
    """Let *director* step until it has nothing to do; return whether it has begun a cycle."""
    while await director.step():
        continue
    return home.state().cycle is not None


async def test_a_candidate_that_is_worse_is_refused_and_gets_no_traffic(home: Home) -> None:
    home.accept()
    home.quality = BAD

    state = await home.play(home.life("only"), ended)

    assert state.last_cycle is not None
    assert (state.last_cycle.outcome, state.last_cycle.ruling.rule) == (Outcome.REFUSED, "WORSE_ON_HOLDOUT")
    assert home.kinds[-1] == "cycle.ended"
    assert await home.stable() == (1, 1)  # changed once: the champion was named


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_process_that_dies_at_every_step_repeats_nothing(home: Home, moment: str) -> None:
    home.accept()
    home.log.deaths = moment == "after"

    state = await home.play(home.life("first", dies_before=moment == "before"), ended)

    assert home.kinds == WHOLE_CYCLE
    assert state.last_cycle is not None
    assert state.last_cycle.outcome == Outcome.PROMOTED
    assert len(home.launcher.started) == 1
    assert home.versions_published() == 1
    fact = await home.served.model(MODEL)
    assert [each.version for each in fact.versions] == [1, 2]
    assert await home.stable() == (2, 4)  # pin, shadow, canary, promotion: each once


async def test_of_two_directors_one_acts(home: Home) -> None:
    home.accept()
    first, second = home.life("first"), home.life("second")
    moves = {"first": 0, "second": 0}

    async def drive(name: str, director: directing.Director) -> None:
        while not ended(home.state()):
            if await director.step():
                moves[name] += 1
            else:
                await home.turn()

    await asyncio.gather(drive("first", first), drive("second", second))

    assert sorted(map(bool, moves.values())) == [False, True]
    assert home.kinds == WHOLE_CYCLE
    assert len(home.launcher.started) == 1


async def test_a_hand_on_the_traffic_ends_the_cycle_and_stays(home: Home) -> None:
    home.accept()
    director = home.life("only")
    await home.play(director, lambda state: state.cycle is not None and state.cycle.trial is not None)
    _, generation = await home.stable()
    await home.served.set_traffic(MODEL, Wanted(stable=2), generation)

    state = await home.play(director, ended)

    assert state.last_cycle is not None
    assert (state.last_cycle.outcome, state.last_cycle.ruling.rule) == (Outcome.ABANDONED, "TRAFFIC_CHANGED")
    assert await home.stable() == (2, generation + 1)
    changes = [event.payload for event in home.events() if event.kind == "traffic.changed"]
    assert changes == [TrafficChanged(generation=generation + 1, stable=2, previous=1)]


async def test_a_promotion_is_taken_back_by_hand(home: Home) -> None:
    home.accept()
    director = home.life("only")
    await home.play(director, ended)
    home.log.ask(MODEL, RollbackWished(request_id="by-hand-1"))

    await home.play(director, lambda state: home.kinds[-1] == "rolled_back")

    assert (await home.stable())[0] == 1
    assert home.kinds[-3:] == ["wish.rollback", "rollback.intended", "rolled_back"]


async def test_a_wish_cuts_a_rest_short_and_a_vote_does_not(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directing, "LEAST_SECONDS", directing.LONGEST_SECONDS)
    director = home.life("only")
    rest = asyncio.create_task(director._rest())

    director.wake()
    for _ in range(100):
        await asyncio.sleep(0)
    rests = not rest.done()
    director.hurry()
    async with asyncio.timeout(directing.LONGEST_SECONDS / 2):
        await rest

    assert rests


async def test_a_run_is_cancelled_when_its_cycle_is_rejected(home: Home) -> None:
    home.accept()
    home.launcher.waits = True
    director = home.life("only")
    await home.play(director, lambda state: state.cycle is not None and bool(state.cycle.running))
    home.log.ask(MODEL, RejectionWished(request_id="by-hand-1"))

    state = await home.play(director, ended)

    assert state.last_cycle is not None
    assert state.last_cycle.attempt is not None
    assert state.last_cycle.attempt.state == "CANCELLED"
    assert (state.last_cycle.outcome, state.last_cycle.ruling.rule) == (Outcome.REFUSED, "REJECTED_BY_HAND")


async def test_a_run_that_cannot_be_made_fails_the_cycle_and_the_next_one_waits_longer(home: Home) -> None:
    home.accept()
    home.policy = home.policy.model_copy(
        update={"trigger": home.policy.trigger.model_copy(update={"least_gap_minutes": 10.0})}
    )
    director = home.life("only")
    await home.play(director, at(Stage.RUN))
    (home.control.folder(STARTER) / "model.json").unlink()  # the champion's run was erased
    home.origins._manifests.clear()

    state = await home.play(director, ended)

    assert state.last_cycle is not None
    assert (state.last_cycle.outcome, state.failures) == (Outcome.FAILED, 1)
    assert not await director.step()
    assert await home.stable() == (1, 0)


async def test_a_cycle_waits_for_an_inference_that_is_away(home: Home) -> None:
    home.accept()
    director = home.life("only")
    await home.play(director, at(Stage.RUN))
    await home.inference.server.stop(0)

    for _ in range(20):
        await director.step()
        await asyncio.sleep(0.02)

    state = home.state()
    assert state.cycle is not None
    assert state.cycle.stage in (Stage.RUN, Stage.PUBLISH)
    assert state.cycle.ending is None


async def test_tainted_versions_are_forgotten_and_deleted_once_another_serves(home: Home) -> None:
    home.accept()
    director = home.life("only")
    await home.play(director, ended)
    home.erasing.versions = (1,)
    home.log.ask(MODEL, DeletionRequested(deletion_id="deletion-1", subject_digest="0", deadline=home.events()[0].time))

    state = await home.play(director, lambda state: home.kinds[-1] == "deletion.completed")

    fact = await home.served.model(MODEL)
    assert state.tainted == {1}
    assert [each.version for each in fact.versions] == [2]
    assert fact.traffic.previous_version == 0
    assert not await home_settles(home, director)
    assert "traffic.changed" not in home.kinds  # the loop itself has let it forget a version
    assert home.erasing.erased == ["deletion-1"]


async def test_directors_find_their_models_wake_and_stop(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directing, "LOOK_SECONDS", 0.02)
    directors = Directors(home.database, home.served, lambda model: home.life("service"))
    directors.start()
    assert directors.disabled_reason("other") != ""
    home.accept()

    while not ended(home.state()):
        directors.wake(MODEL)
        await home.turn()
    await directors.stop()

    assert directors.disabled_reason(MODEL) == ""
    assert home.kinds == WHOLE_CYCLE
    assert await home.life("after").step() in (True, False)
    assert home.leases("after").hold(MODEL) is not None  # it was free at once
    assert home.leases("later").hold(MODEL) is None


def served_model(name: str, *labels: str, spec: bytes = b"") -> lifecycle_pb2.ModelState:
    version = lifecycle_pb2.ModelVersion(
        version=1, state=lifecycle_pb2.ModelVersion.STATE_READY, labels=labels, preprocess_spec=spec
    )
    return lifecycle_pb2.ModelState(model=name, versions=[version])


class Idle:
    """A loop in which nothing happens."""

    disabled_reason = ""

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        self.begun.set()
        await self.ended.wait()

    def stop(self) -> None:
        self.ended.set()


class Two:
    """Inference that serves two models."""

    async def models(self) -> dict[str, lifecycle_pb2.ModelState]:
        spec = SPEC.canonical_json()
        return {name: served_model(name, "cat", "dog", spec=spec) for name in ("birds", "pets")}


async def test_a_model_that_fails_keeps_no_other_from_its_loop(database: Database) -> None:
    def settle(model: str, version: int, digest: str) -> None:
        if model == "birds":
            raise ValueError(model)

    idle = Idle()
    directors = Directors(database, Two(), lambda model: idle, settle=settle)  # type: ignore[arg-type, return-value]
    directors.start()

    async with asyncio.timeout(60):
        await idle.begun.wait()

    assert directors.disabled_reason("pets") == ""
    await directors.stop()


def test_what_an_operator_has_published_becomes_a_task(database: Database) -> None:
    spec = SPEC.canonical_json()

    assert adopt_model(database, served_model("pets", "cat", "dog", spec=spec)) == ""
    assert adopt_model(database, served_model("pets", "cat", "dog", spec=spec)) == ""

    assert find_model(database, "pets").labels == ("cat", "dog")
    with database.read() as session:
        assert session.get_one(LoopModelRow, "pets").salt


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (served_model(MODEL, "cat", "dog", spec=SPEC.canonical_json()), "is a task with red, green, blue"),
        (served_model("other"), "does not say its labels"),
        (served_model("other", "cat", "dog", spec=b'{"input": "x", "layout": "NCHW"}'), "preprocess spec"),
        (lifecycle_pb2.ModelState(model="other"), "has no version that serves"),
    ],
)
def test_what_cannot_be_learnt_has_no_loop_and_a_reason(
    database: Database, task: Model, state: lifecycle_pb2.ModelState, problem: str
) -> None:
    assert problem in adopt_model(database, state)


async def test_an_analyst_is_asked_for_again_while_its_work_is_waited_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    director = home.life("only")
    await home_settles(home, director)
    assert home.analysed == []  # nothing is there to look at

    with home.database.begin() as session:
        session.execute(update(ObservationRow).values(stale=True))
    fresh = home.life("only")
    home.reader._counting._memory = Memory()  # as some seconds later
    assert not await fresh.step()
    assert not await fresh.step()
    assert home.analysed == [MODEL]  # the one that was asked for is believed for a while

    monkeypatch.setattr(directing, "ANALYST_SECONDS", 0.0)
    assert not await fresh.step()
    assert home.analysed == [MODEL, MODEL]

    with home.database.begin() as session:
        session.execute(update(ObservationRow).values(stale=False))
    home.accept()
    await home.play(fresh, lambda state: at(Stage.GATE)(state) and state.cycle is not None and bool(state.cycle.gate))
    asked = len(home.analysed)
    while await fresh.step():
        continue
    assert not await fresh.step()
    assert len(home.analysed) > asked + 1  # also where no event comes at the gate


async def test_what_a_model_lacks_is_looked_for_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managing, "MODELS_SECONDS", 0.01)
    monkeypatch.setattr(managing, "SETTLE_SECONDS", 0.0)
    settled: list[tuple[str, int]] = []
    often = asyncio.Event()
    here = asyncio.get_running_loop()

    def settle(model: str, version: int, digest: str) -> None:
        assert digest.startswith("sha256:")
        settled.append((model, version))
        if len(settled) == 3:
            here.call_soon_threadsafe(often.set)

    directors = Directors(home.database, home.served, lambda model: home.life("service"), settle=settle)
    directors.start()
    async with asyncio.timeout(30):
        await often.wait()
    await directors.stop()

    assert set(settled) == {(MODEL, 1)}
    assert len(directors.running) == 1
