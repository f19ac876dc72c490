"""Facts, read from real rows, run folders and a real inference service."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import delete

from aimass.inference.v1 import lifecycle_pb2
from services.common.errors import NotReady
from services.common.manifest import Dataset, Graph, Manifest, Training
from services.trainer.data.models import create_model
from services.trainer.data.observing import Role
from services.trainer.data.tables import ObservationRow, SampleRow, SnapshotRow, SnapshotSampleRow
from services.trainer.loop.cycle_payloads import (
    CandidatePublished,
    CycleEnded,
    CycleStarted,
    GateBegun,
    GateDecided,
    GateMeasured,
    PublicationIntended,
    RunCreated,
    RunEnded,
    SnapshotMade,
)
from services.trainer.loop.facts import Absence, TrafficFact
from services.trainer.loop.log import EventLog, Leases
from services.trainer.loop.origins import Origins
from services.trainer.loop.policy import Strategy
from services.trainer.loop.policy_file import load_policy
from services.trainer.loop.reading import Reader
from services.trainer.loop.reducer import fold
from services.trainer.loop.refusals import REFUSAL, Refusal
from services.trainer.loop.served import Served
from services.trainer.loop.stages import ABSENT_SECONDS
from services.trainer.loop.state import LoopState
from services.trainer.loop.tables import FigureRow, LoopModelRow, PublicationRow
from services.trainer.loop.values import GateFigures, GateOutcome, Goal, Outcome, Paired, Reason, Ruling
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import Outcome as RunOutcome
from services.trainer.runs.record import Request, RunKind, RunState
from services.trainer.runs.store import RunStore
from services.trainer.storage.database import Database
from tests.conftest import Classifier
from tests.conftest import Served as Running
from tests.trainer.loop.conftest import MODEL, SPEC, Clock
from tests.trainer.loop.rows import (
    SET,
    TIME,
    add_answers,
    add_draws,
    add_figure,
    add_holdout,
    add_pictures,
    add_review,
    add_reviews,
    add_samples,
    add_set_answers,
)

POLICY = load_policy().default


@pytest.fixture
def store(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
async def served(inference: Running) -> AsyncIterator[Served]:
    opened = Served(inference.address)
    yield opened
    await opened.close()


@pytest.fixture
def reader(
    database: Database, log: EventLog, served: Served, store: RunStore, runs: Path, tmp_path: Path, clock: Clock
) -> Reader:
    with database.begin() as session:
        session.add(LoopModelRow(model=MODEL, salt="0", base=SET, create_time=TIME))
    return Reader(database, log, served, store, Origins(database, store, runs), tmp_path / "no-blobs" / "yet", clock)


class Runs:
    """Makes runs that have succeeded, with the manifests that they have left."""

    def __init__(self, store: RunStore, runs: Path, classifier: Classifier) -> None:
        self._store = store
        self._runs = runs
        self._manifest = classifier.manifest

    def add(
        self, run_id: str, seconds: float = 0.0, *, graph_bytes: int = 0, digest: int = 0, **options: object
    ) -> None:
        """Add a run that took *seconds*, 0 for one that another machine has made; *digest* is its data set's."""
        chosen = make_options("quick", dict(options))
        request = Request(id=run_id, kind=RunKind.TRAINING, options=chosen, create_time=TIME)
        outcome = RunOutcome(state=RunState.SUCCEEDED, finish_time=TIME)
        if seconds:
            self._store.create(request, "service")
            claimed = self._store.claim(run_id, "service", 1)
            assert claimed is not None
            assert claimed.start_time is not None
            end = datetime.fromisoformat(claimed.start_time).timestamp() + seconds
            finish = datetime.fromtimestamp(end, datetime.fromisoformat(TIME).tzinfo).isoformat()
            self._store.finish(run_id, outcome.model_copy(update={"finish_time": finish}))
        else:
            self._store.adopt(request, outcome, "service")
        self._write(run_id, chosen, graph_bytes, digest)

    def _write(self, run_id: str, options: TrainingOptions, graph_bytes: int, digest: int) -> None:
        graph = self._manifest.graph
        assert graph is not None
        if graph_bytes:
            graph = Graph(sha256=f"sha256:{graph_bytes:064x}", size_bytes=graph_bytes)
        training = Training(
            run_id=run_id, recipe="quick", options=options.model_dump(mode="json"), seconds=1.0,
            dataset=Dataset(name=options.dataset, digest=f"sha256:{digest:064x}", counts={"train": 1000}),
        )  # fmt: skip
        folder = self._runs / run_id
        folder.mkdir(parents=True)
        manifest = self._manifest.model_copy(update={"graph": graph, "training": training})
        (folder / "model.json").write_text(Manifest.to_json(manifest))


@pytest.fixture
def made(store: RunStore, runs: Path, tiny_classifier: Classifier) -> Runs:
    return Runs(store, runs, tiny_classifier)


def published(database: Database, version: int, run_id: str, snapshot: str | None = None) -> None:
    with database.begin() as session:
        session.add(
            PublicationRow(id=f"publication-{version}", model=MODEL, run=run_id, version=version, snapshot=snapshot)
        )


def snapshot(database: Database, digest: str, pictures: list[int]) -> None:
    with database.begin() as session:
        session.add(
            SnapshotRow(
                digest=digest, model=MODEL, base=SET, base_digest="sha256:" + "0" * 64, base_drawn=[], counts={},
                create_time=TIME,
            )
        )  # fmt: skip
        session.flush()
        for number in pictures:
            session.add(SnapshotSampleRow(snapshot=digest, observation=number, sample=number, label=0, part="train"))


def at_gate(clock: Clock, margin: float = 0.0, *, proposed: bool = False) -> LoopState:
    """Return the state of a loop whose candidate, version 2, is judged against version 1."""
    state = LoopState(MODEL)
    started = CycleStarted(
        reason=Reason.BY_HAND, accepted=1, goal=Goal.BETTER, champion=1, candidate=2 if proposed else 0, generation=0,
        policy_digest="a",
    )  # fmt: skip
    making = (
        SnapshotMade(digest="s", last_sample=1),
        RunCreated(run_id="run-2", attempt=0, strategy=Strategy.REFIT),
        RunEnded(run_id="run-2", state="SUCCEEDED"),
        PublicationIntended(publication_id="publication-2", run_id="run-2"),
        CandidatePublished(version=2),
    )
    begun = GateBegun(candidate_count=1, error_share=0.03, margin=margin)
    for payload in (started, *(() if proposed else making), begun):
        state = fold(state, state.next_event(payload, clock()))
    return state


async def test_samples_to_learn_from_are_counted_and_those_to_judge_by_are_not(
    reader: Reader, database: Database
) -> None:
    add_samples(database, 3)
    add_samples(database, 2, Role.JUDGE)
    add_samples(database, 1)

    facts = await reader.facts(LoopState(MODEL, last_sample=3), POLICY)

    assert (facts.accepted, facts.accepted_since) == (4, 1)
    assert facts.stored_bytes == 600
    assert facts.free_bytes is not None
    assert facts.free_bytes > 0


async def test_what_inference_would_say_is_unknown_while_it_is_away(
    reader: Reader, database: Database, inference: Running, clock: Clock
) -> None:
    assert (await reader.facts(LoopState(MODEL), POLICY)).traffic is not None
    add_samples(database, 1)
    await inference.server.stop(0)

    idle, judged = (await reader.facts(LoopState(MODEL), POLICY), await reader.facts(at_gate(clock), POLICY))

    assert (idle.traffic, idle.shadow, idle.canary, idle.accepted) == (None, None, None, 1)
    assert judged.gate is not None  # rows are there all the same


async def test_every_figure_that_raises_an_alarm_is_one_whatever_draw_was_the_newest(
    reader: Reader, database: Database
) -> None:
    with database.begin() as session:
        for kind, number, last, alarm in (
            ("softmax_shift", 1, 500, True),
            ("label_shift", 1, 500, True),
            ("label_shift", 2, 900, True),
            ("softmax_shift", 2, 900, False),
            ("quality", 1, 900, True),
            ("error_drift", 1, 900, True),
            ("error_drift", 2, 900, True),
        ):
            session.add(
                FigureRow(
                    model=MODEL, kind=kind, number=number, window={"last": last}, time=TIME,
                    values={"alarm": alarm, "level": 0.001, "threshold": 0.01},
                )
            )  # fmt: skip

    alarms = (await reader.facts(LoopState(MODEL), POLICY)).alarms

    assert [(each.detector, each.number) for each in alarms] == [
        ("error_drift", 1), ("label_shift", 1), ("softmax_shift", 1), ("error_drift", 2), ("label_shift", 2),
    ]  # fmt: skip
    assert (alarms[0].level, alarms[0].threshold) == (0.001, 0.01)


async def test_a_champion_comes_from_the_run_that_has_its_graph(reader: Reader, made: Runs) -> None:
    assert (await reader.facts(LoopState(MODEL), POLICY)).origin is None
    made.add("starter", dataset=SET)

    origin = (await reader.facts(LoopState(MODEL), POLICY)).origin

    assert origin is not None
    assert (origin.run_id, origin.has_encoder, origin.has_base) == ("starter", False, True)


async def test_a_tainted_champion_gives_way_to_its_newest_clean_ancestor(
    reader: Reader, database: Database, made: Runs
) -> None:
    snapshot(database, "s1", [])
    made.add("starter", dataset="cifar10", graph_bytes=1)
    made.add("first", dataset="snapshot:s1", start_from="run:starter", graph_bytes=2)
    made.add("second", dataset="snapshot:s1", start_from="run:first", graph_bytes=3)
    published(database, 1, "second", "s1")

    clean = (await reader.facts(LoopState(MODEL), POLICY)).origin
    tainted = (await reader.facts(LoopState(MODEL, tainted=frozenset({1})), POLICY)).origin
    published(database, 7, "first")
    more = (await reader.facts(LoopState(MODEL, tainted=frozenset({1, 7})), POLICY)).origin

    assert clean is not None
    assert tainted is not None
    assert more is not None
    assert [(each.run_id, each.has_base) for each in (clean, tainted, more)] == [
        ("second", True), ("first", True), ("starter", False)
    ]  # fmt: skip


async def test_the_gate_is_measured_anew_when_somebody_judges(reader: Reader, database: Database, clock: Clock) -> None:
    state = at_gate(clock)
    pictures = add_pictures(database, 40)
    add_draws(database, pictures)
    add_answers(database, 1, dict.fromkeys(pictures, 0))
    add_answers(database, 2, dict.fromkeys(pictures, 1))

    before = (await reader.facts(state, POLICY)).gate
    again = (await reader.facts(state, POLICY)).gate
    add_reviews(database, dict.fromkeys(pictures[:30], 1))
    after = (await reader.facts(state, POLICY)).gate

    assert before is not None
    assert after is not None
    assert again is before
    assert (before.live.count, before.labels_wanted) == (0, 40)
    assert (after.live.wins, after.labels_wanted) == (30, 10)
    assert after.log_e > 10
    assert after.guards.holdout_drop is None  # the hold-out is not answered


async def test_guards_are_measured_on_the_whole_holdout(reader: Reader, database: Database, clock: Clock) -> None:
    state = at_gate(clock)
    labels = [0, 1, 2] * 20
    add_holdout(database, labels)
    add_set_answers(database, 1, labels)
    waiting = (await reader.facts(state, POLICY)).gate
    add_set_answers(database, 2, [0, 1, 1] * 20)

    gate = (await reader.facts(state, POLICY)).gate

    assert waiting is not None
    assert gate is not None
    assert waiting.holdout.count == 0
    assert (gate.holdout.losses, gate.holdout.ties) == (20, 40)
    guards = gate.guards
    assert (guards.class_count, guards.worst_class) == (3, 2)
    assert guards.class_log_e is not None
    assert guards.class_log_e > 10
    assert guards.holdout_drop == pytest.approx(1 / 3)
    assert guards.calibration_rise is not None
    assert guards.calibration_rise > 0.1
    assert (guards.latency_ratio, guards.size_ratio, guards.corrupted_drop) == (None, None, None)


@pytest.mark.parametrize(
    ("proposed", "source", "digest", "metrics", "drop"),
    [
        (False, "run:other", 2, {"corrupted_accuracy": 0.5, "source_corrupted_accuracy": 0.55}, 0.05),
        (True, "run:first", 2, {"corrupted_accuracy": 0.5, "source_corrupted_accuracy": 0.55}, 0.05),
        (True, f"{MODEL}@1", 2, {"corrupted_accuracy": 0.5, "source_corrupted_accuracy": 0.55}, 0.05),
        (True, "run:other", 2, {"corrupted_accuracy": 0.5, "source_corrupted_accuracy": 0.55}, None),
        (True, "run:other", 1, {"corrupted_accuracy": 0.5, "source_corrupted_accuracy": 0.55}, 0.1),
        (False, "run:first", 2, {"corrupted_accuracy": 0.5}, None),
        (False, "run:first", 1, {"corrupted_accuracy": 0.5}, 0.1),
        (False, "run:first", 1, {}, None),
    ],
)
async def test_accuracies_on_spoiled_pictures_are_compared_where_they_are_of_the_same_pictures(
    reader: Reader, database: Database, made: Runs, served: Served, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    proposed: bool, source: str, digest: int, metrics: dict[str, float], drop: float | None,
) -> None:  # fmt: skip
    """The champion, of the run `first`, has learnt the data set 1, and says 0.6."""
    made.add("first", graph_bytes=1, digest=1)
    made.add("second", graph_bytes=2, digest=digest, start_from=source)
    published(database, 1, "first")
    published(database, 2, "second")
    add_holdout(database, [0, 1, 2])
    for version in (1, 2):
        add_set_answers(database, version, [0, 1, 2])

    async def model(name: str) -> lifecycle_pb2.ModelState:
        figures = {1: {"corrupted_accuracy": 0.6}, 2: metrics}
        versions = [lifecycle_pb2.ModelVersion(version=each, metrics=figures[each]) for each in figures]
        return lifecycle_pb2.ModelState(model=name, versions=versions)

    async def time_ratio(*versions: object) -> None:
        return None

    monkeypatch.setattr(served, "model", model)
    monkeypatch.setattr(served, "time_ratio", time_ratio)
    gate = (await reader.facts(at_gate(clock, proposed=proposed), POLICY)).gate

    assert gate is not None
    assert gate.guards.corrupted_drop == (None if drop is None else pytest.approx(drop))
    assert gate.guards.size_ratio == 2
    assert gate.guards.impossible == (() if drop is not None else ("corrupted_drop",))


async def test_the_margin_is_that_with_which_the_gate_began(reader: Reader, database: Database, clock: Clock) -> None:
    pictures = add_pictures(database, 400)
    add_draws(database, pictures)
    for version in (1, 2):
        add_answers(database, version, dict.fromkeys(pictures, 0))

    strict = (await reader.facts(at_gate(clock), POLICY)).gate
    lenient = (await reader.facts(at_gate(clock, margin=0.03), POLICY)).gate

    assert strict is not None
    assert lenient is not None
    assert strict.live.log_e_better == 0
    assert lenient.live.log_e_better > 2


async def test_live_accuracy_leaves_out_what_the_champion_has_learnt(reader: Reader, database: Database) -> None:
    learnt, *fresh = add_pictures(database, 5, Role.TRAIN)
    add_answers(database, 1, {learnt: 0}, learnt=True)
    add_draws(database, [learnt, *fresh])
    assert (await reader.facts(LoopState(MODEL), POLICY)).accuracy is None
    for picture, label in zip(fresh, (0, 0, 0, 1), strict=True):
        add_review(database, picture, label)

    waiting = (await reader.facts(LoopState(MODEL), POLICY)).accuracy
    add_answers(database, 1, dict.fromkeys(fresh, 0))  # that none was learnt is known by that alone
    accuracy = (await reader.facts(LoopState(MODEL), POLICY)).accuracy
    version, same = await reader.accuracy(MODEL)

    assert waiting is None
    assert accuracy is not None
    assert (accuracy.count, accuracy.estimate) == (4, pytest.approx(0.75))
    assert (version, same) == (1, accuracy)


async def test_seconds_are_foretold_by_runs_of_this_machine_alone(
    reader: Reader, database: Database, made: Runs
) -> None:
    add_samples(database, 10)
    made.add("elsewhere", epochs=10)
    nothing = (await reader.facts(LoopState(MODEL), POLICY)).seconds
    made.add("here", seconds=100.0, epochs=10, graph_bytes=5)
    published(database, 1, "here")

    seconds = (await reader.facts(LoopState(MODEL), POLICY)).seconds

    learnt = 10 + POLICY.retrain.base_least
    assert nothing == {}
    assert seconds == {
        Strategy.INCREMENTAL: pytest.approx(100 / 10_000 * 8 * learnt),
        Strategy.SCRATCH: pytest.approx(100 / 10_000 * 30 * learnt),
    }


async def test_a_cycle_is_worth_more_with_more_requests(reader: Reader, database: Database, clock: Clock) -> None:
    add_samples(database, 1)
    unknown = (await reader.facts(LoopState(MODEL), POLICY)).worth
    clock.pass_by(3600)
    pictures = add_pictures(database, 4)
    add_draws(database, pictures[:2], share=0.01)
    little = (await reader.facts(LoopState(MODEL), POLICY)).worth
    clock.pass_by(60)
    add_draws(database, pictures[2:], share=0.0001)

    much = (await reader.facts(LoopState(MODEL), POLICY)).worth

    assert unknown is None  # nothing was drawn, so that the traffic is not known
    assert little is not None
    assert much is not None
    # 200 requests an hour, of which the champion gets an eighth wrong; three in ten of those could be right.
    assert little.value == pytest.approx(200 * 24 * 0.125 * 0.3 * POLICY.trigger.cost.per_error)
    assert much.value > 50 * little.value
    assert much.pays


async def test_a_cycle_is_worth_less_where_earlier_candidates_have_put_little_right(
    reader: Reader, database: Database, log: EventLog, clock: Clock
) -> None:
    add_samples(database, 1)
    clock.pass_by(3600)
    add_draws(database, add_pictures(database, 2), share=0.01)
    hopeful = (await reader.facts(LoopState(MODEL), POLICY)).worth
    state = LoopState(MODEL)
    lease = Leases(database, "director", clock=clock).hold(MODEL)
    assert lease is not None
    for payload in (
        CycleStarted(reason=Reason.PROPOSED, accepted=1, champion=1, candidate=2, generation=0, policy_digest="a"),
        GateBegun(candidate_count=1, error_share=0.03, margin=0.0),
        GateMeasured(figures=GateFigures(holdout=Paired(wins=3, ties=297), champion_errors=90)),
        GateMeasured(figures=GateFigures(holdout=Paired(wins=3, ties=297), champion_errors=90, log_e=0.1)),
        GateDecided(outcome=GateOutcome.EXHAUSTED, ruling=Ruling(rule="NOT_PROVED")),
        CycleEnded(outcome=Outcome.REFUSED, stage="GATE"),
    ):
        event = state.next_event(payload, clock())
        log.append(event, lease)
        state = fold(state, event)

    taught = (await reader.facts(state, POLICY)).worth

    assert hopeful is not None
    assert taught is not None
    assert taught.value == pytest.approx(hopeful.value * (3 + 3) / (10 + 90) / 0.3)  # a prior of 3 in 10


async def test_a_hold_out_is_the_base_or_what_the_policy_names_once_it_is_read(
    reader: Reader, database: Database
) -> None:
    named = POLICY.model_copy(update={"judging": POLICY.judging.model_copy(update={"holdout": SET})})
    base = await reader.facts(LoopState(MODEL), POLICY)
    unread = await reader.facts(LoopState(MODEL), named)
    add_holdout(database, [0, 1])
    read = await reader.facts(LoopState(MODEL), named)
    with database.begin() as session:
        session.get_one(LoopModelRow, MODEL).base = ""
    without = await reader.facts(LoopState(MODEL), POLICY)

    assert [each.has_holdout for each in (base, unread, read, without)] == [True, False, True, False]
    assert [each.has_base for each in (base, without)] == [True, False]
    assert unread.pictures_wait  # the analyst reads the set


async def test_what_is_said_of_another_model_counts_nothing_anew(
    reader: Reader, database: Database, clock: Clock
) -> None:
    create_model(database, "other", ("cat", "dog"), SPEC.canonical_json())
    pictures = add_pictures(database, 3)
    add_draws(database, pictures)
    state = at_gate(clock)
    before = (await reader.facts(state, POLICY)).gate

    (foreign,) = add_pictures(database, 1)
    with database.begin() as session:
        session.get_one(ObservationRow, foreign).model = "other"

    assert (await reader.facts(state, POLICY)).gate is before


async def test_samples_are_counted_anew_when_one_comes(reader: Reader, database: Database, clock: Clock) -> None:
    numbers = add_samples(database, 3)
    first = (await reader.facts(LoopState(MODEL), POLICY)).accepted
    with database.begin() as session:
        session.execute(delete(SampleRow).where(SampleRow.observation == numbers[0]))  # its time was over
    second = (await reader.facts(LoopState(MODEL), POLICY)).accepted
    clock.pass_by(60)
    third = (await reader.facts(LoopState(MODEL), POLICY)).accepted
    add_samples(database, 1)
    fourth = (await reader.facts(LoopState(MODEL), POLICY)).accepted

    assert (first, second, third, fourth) == (3, 3, 2, 3)


async def test_what_an_analyst_could_not_ask_is_heeded_in_its_cycle_alone(
    reader: Reader, database: Database, clock: Clock
) -> None:
    def refused(number: int, cycle: int, version: int) -> None:
        add_figure(database, REFUSAL, number, {"cycle": cycle, "version": version}, rule="OTHER_LABELS", detail="")

    state, found = at_gate(clock), []
    for number, cycle, version in ((1, 0, 2), (2, 1, 7), (3, 1, 1), (4, 1, 2)):
        refused(number, cycle, version)
        found.append((await reader.facts(state, POLICY)).refusal)

    assert found == [None, None, Refusal(1, "OTHER_LABELS"), Refusal(2, "OTHER_LABELS")]


async def test_a_version_is_absent_from_the_first_answer_without_it_on(
    reader: Reader, served: Served, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {1: lifecycle_pb2.ModelVersion.STATE_READY, 2: lifecycle_pb2.ModelVersion.STATE_UNAVAILABLE}
    away, state = False, at_gate(clock)

    async def model(name: str) -> lifecycle_pb2.ModelState:
        if away:
            raise NotReady("inference is away")
        versions = [lifecycle_pb2.ModelVersion(version=each, state=there[each]) for each in there]
        return lifecycle_pb2.ModelState(model=name, versions=versions)

    async def look() -> Absence | None:
        clock.pass_by(10)
        return (await reader.facts(state, POLICY)).absence

    monkeypatch.setattr(served, "model", model)
    assert await look() is None  # it has no traffic yet, so it need not be loaded
    del there[2]
    assert [await look(), await look()] == [Absence(2, 0.0), Absence(2, 10.0)]
    away = True
    assert await look() is None
    away = False
    assert await look() == Absence(2, 0.0)
    there |= {1: lifecycle_pb2.ModelVersion.STATE_UNAVAILABLE, 2: lifecycle_pb2.ModelVersion.STATE_READY}
    assert await look() == Absence(1, 0.0)


async def test_a_model_that_inference_does_not_list_may_come_back_for_a_while(
    reader: Reader, served: Served, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, known = False, LoopState(MODEL, generation=5, stable=1)

    async def model(name: str) -> lifecycle_pb2.ModelState:
        if not listed:
            return lifecycle_pb2.ModelState(model=name)
        versions = [lifecycle_pb2.ModelVersion(version=1, state=lifecycle_pb2.ModelVersion.STATE_READY)]
        traffic = lifecycle_pb2.Traffic(generation=5, stable_version=1)
        return lifecycle_pb2.ModelState(model=name, versions=versions, traffic=traffic)

    async def traffic(state: LoopState) -> TrafficFact | None:
        return (await reader.facts(state, POLICY)).traffic

    monkeypatch.setattr(served, "model", model)
    assert await traffic(LoopState(MODEL)) == TrafficFact(0, 0)  # it was never there
    for _ in range(2):
        listed = False
        assert await traffic(known) is None
        clock.pass_by(ABSENT_SECONDS - 1)
        assert await traffic(known) is None
        listed = True
        assert await traffic(known) == TrafficFact(5, 1, ready=(1,))
    listed = False
    assert await traffic(known) is None
    clock.pass_by(ABSENT_SECONDS)
    assert await traffic(known) == TrafficFact(0, 0)


async def test_versions_that_take_other_pixels_cannot_be_compared_as_shadows(
    reader: Reader, served: Served, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = {1: SPEC.canonical_json(), 2: SPEC.canonical_json()}

    async def model(name: str) -> lifecycle_pb2.ModelState:
        versions = [lifecycle_pb2.ModelVersion(version=each, preprocess_spec=specs[each]) for each in specs]
        return lifecycle_pb2.ModelState(model=name, versions=versions)

    monkeypatch.setattr(served, "model", model)
    same = (await reader.facts(at_gate(clock), POLICY)).comparable
    specs[2] = SPEC.model_copy(update={"width": 8}).canonical_json()
    other = (await reader.facts(at_gate(clock), POLICY)).comparable

    assert (same, other) == (True, False)
