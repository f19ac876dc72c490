"""The trainer on a real PostgreSQL server: the way from a captured answer to its end, and what differs from SQLite."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, select, text

from services.common.errors import Conflict, InvalidInput, NotReady
from services.common.identity import Caller, Scope
from services.common.manifest import PreprocessSpec
from services.trainer.data.models import create_model
from services.trainer.data.observing import State
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, VoteRow
from services.trainer.feedback.capturing import stored_bytes
from services.trainer.feedback.contributors import create_key
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.queue import ObservationFilter, Order
from services.trainer.feedback.retention import make_room
from services.trainer.feedback.review import Decision, Reviewing
from services.trainer.feedback.voting import NewFeedback, Voting
from services.trainer.loop.log import EventLog, Leases, gate_is_open
from services.trainer.loop.overview import read_overview
from services.trainer.loop.payloads import TriggerWished
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.reading import Reader
from services.trainer.loop.served import Served
from services.trainer.loop.state import LoopState
from services.trainer.storage import database as database_module
from services.trainer.storage.database import Base, Database
from tests.conftest import Served as Running
from tests.trainer.feedback.conftest import SPEC, Groups, captured, pictures, prediction_id
from tests.trainer.provenance.conftest import House
from tests.trainer.storage.conftest import PostgreSQL

REX = Caller("rex", frozenset({Scope.FEEDBACK}), trusted=True)
ANN, BEN = (Caller(name, frozenset({Scope.FEEDBACK})) for name in ("ann", "ben"))


@pytest.fixture
def url(postgresql: PostgreSQL) -> str:
    return postgresql.create("migrated")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(Database(url)) as opened:
        yield opened


@pytest.fixture
def other(url: str) -> Iterator[Database]:
    """The same database, as another process opens it."""
    with closing(Database(url)) as opened:
        yield opened


@pytest.fixture
def voting(house: House, policies: dict[str, Groups]) -> Voting:
    return Voting(house.database, house.folders.blobs, lambda name: policies[name], house.sifter)


@pytest.fixture
def reviewing(house: House) -> Reviewing:
    return Reviewing(house.database, house.folders.blobs, house.sifter)


@pytest.fixture
async def served(inference: Running) -> AsyncIterator[Served]:
    opened = Served(inference.address)
    yield opened
    await opened.close()


def test_migrations_make_the_tables_that_the_code_has(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    engine.dispose()

    assert differences == []


def test_several_processes_may_migrate_at_once(postgresql: PostgreSQL) -> None:
    url = postgresql.create()
    databases = [Database(url) for _ in range(3)]

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(Database.migrate, databases))

    with databases[0].read() as session:
        assert session.scalar(text("SELECT count(*) FROM runs")) == 0
    for each in databases:
        each.close()


def test_what_users_say_becomes_samples_until_they_are_forgotten(
    house: House, voting: Voting, reviewing: Reviewing
) -> None:
    create_key(house.database, "rex", [Scope.FEEDBACK], trusted=True)
    first, second, third = house.capture(3, "ann", seed=1)
    said = voting.send(ANN, NewFeedback(prediction_id(1000), label="dog", comment="a dog"))
    agreed = voting.send(BEN, NewFeedback(prediction_id(1000), label="dog"))
    decided = voting.send(REX, NewFeedback(prediction_id(1001), correct=True))
    proposed = voting.send(ANN, NewFeedback(prediction_id(1002), label="parrot"))

    assert [each.state for each in (said, agreed, decided)] == [State.PENDING, State.ACCEPTED, State.ACCEPTED]
    assert proposed.state == State.PROPOSED
    queue = {
        order: [each.number for each in reviewing.list("pets", ObservationFilter(), order).observations]
        for order in Order
    }
    assert queue[Order.NEWEST] == [third, second, first]
    assert sorted(queue[Order.UNCERTAIN]) == [first, second, third]
    assert reviewing.review(REX, third, Decision.LABEL, "cow").state == State.ACCEPTED
    with house.database.read() as session:
        overview = read_overview(session, LoopState("pets"), LoopPolicy())
    assert (overview.accepted, overview.states) == (3, {"ACCEPTED": 3})
    assert overview.agreed == 0.25

    house.deletions.delete_contributor("ann", "deletion-1")
    house.clock.passed += 10
    house.erasure.rows("pets", "deletion-1")
    left = house.erasure.runs("pets", "deletion-1", ())

    assert left["references_left"] == 0
    assert [house.count(table) for table in (ObservationRow, PredictionRow, VoteRow, SampleRow)] == [0, 0, 0, 0]


def test_draws_are_numbered_once_however_many_take_them_in(
    database: Database, other: Database, house: House, policies: dict[str, Groups]
) -> None:
    second = Intake(other, house.folders.blobs, lambda name: policies[name])
    images = pictures(2)

    def take(number: int) -> None:
        taking = second if number % 2 else house.intake
        taking.take([captured(10 * number + offset, images[offset]) for offset in range(2)])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(take, range(10)))
    second.close()

    with database.read() as session:
        assert sorted(session.scalars(select(PredictionRow.draw))) == list(range(1, 21))
        assert session.scalar(select(func.count()).select_from(ObservationRow)) == 2


def test_one_process_alone_drives_a_loop_and_events_have_numbers_without_gaps(
    database: Database, other: Database, house: House
) -> None:
    ours, theirs = Leases(database, "ours", clock=house.clock), Leases(other, "theirs", clock=house.clock)
    lease = ours.hold("pets")
    assert lease is not None
    assert theirs.hold("pets") is None

    logs = [EventLog(each, house.clock) for each in (database, other)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda n: logs[n % 2].ask("pets", TriggerWished(request_id=f"request-{n // 2}")), range(20)))
    assert [event.number for event in house.events.read("pets")] == list(range(1, 11))

    house.clock.passed += 60
    taken = theirs.hold("pets")
    assert taken is not None
    assert taken.fence == lease.fence + 1
    event = LoopState("pets", number=10).next_event(TriggerWished(request_id="late"), house.clock())
    with pytest.raises(Conflict, match="another process has taken over"):
        logs[0].append(event, lease)


def test_the_oldest_pictures_make_room(house: House, policies: dict[str, Groups]) -> None:
    for number, picture in enumerate(house.capture(3, "ann", seed=1)):
        house.age(picture, f"2026-01-03T00:00:0{number}.000Z")
    with house.database.read() as session:
        stored = stored_bytes(session, "pets")
    assert type(stored) is int
    policy = policies["pets"].capture.model_copy(update={"max_bytes": stored})

    freed = make_room(house.database, house.folders.blobs, "pets", policy, house.clock(), gate_is_open)

    assert freed is not None
    assert (freed.observations, house.picture(1)) == (1, None)


async def test_the_facts_of_a_loop_are_read(house: House, served: Served) -> None:
    create_model(
        house.database,
        "tiny",
        ("red", "green", "blue"),
        PreprocessSpec(input="image", width=4, height=4).canonical_json(),
    )
    house.capture(2, "ann", seed=1)
    reader = Reader(house.database, house.events, served, house.store, house.origins, house.folders.blobs, house.clock)

    facts = await reader.facts(LoopState("tiny"), LoopPolicy())

    assert (facts.accepted, facts.stored_bytes) == (0, 0)


def test_a_reader_sees_one_state_and_writes_nothing(database: Database, other: Database) -> None:
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM models")) == 0
        create_model(other, "pets", ["cat", "dog"], SPEC.canonical_json())
        assert session.scalar(text("SELECT count(*) FROM models")) == 0
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM models")) == 1


def test_who_waits_too_long_for_another_transaction_is_told(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOCK_SECONDS", 0.1)
    words = "canceling statement due to lock timeout; check"
    with closing(Database(url)) as waiting, database.begin(alone=True), pytest.raises(NotReady, match=words):
        waiting.migrate()


def test_what_no_text_may_have_is_refused_in_a_sentence(house: House, voting: Voting) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    with pytest.raises(InvalidInput, match=r"comment has the character U\+0000 at position 2, which is not kept"):
        voting.send(ANN, NewFeedback(prediction_id(1000), label="dog", comment="a\0b"))
    with pytest.raises(InvalidInput, match=r"a value cannot be kept in the trainer's database: .*NUL"):
        house.events.was_asked("pets", TriggerWished(request_id="a\0b"))
    refused = house.intake.take([captured(7, pictures(1)[0], label="c\0t"), captured(8, pictures(1)[0])])

    assert [each.refusal for each in refused] == ["MALFORMED", ""]
    assert picture


def test_a_user_who_may_make_no_tables_is_told_so(postgresql: PostgreSQL) -> None:
    postgresql.execute("CREATE ROLE guest LOGIN")
    url = postgresql.create().replace("aimass@", "guest@")

    with closing(Database(url)) as database, pytest.raises(NotReady, match="make that user the owner of the database"):
        database.migrate()
