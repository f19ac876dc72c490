"""The table of runs, on the database that migrations make."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.errors import Conflict, NotFound
from services.trainer.clock import now
from services.trainer.options import ConversionOptions, Range, TuningOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import Outcome, Request, RunKind, RunState
from services.trainer.runs.store import LONG_KINDS, SHORT_KINDS, Run, RunFilter, RunStore
from tests.trainer.runs.conftest import Create, make_request


def succeeded() -> Outcome:
    return Outcome(state=RunState.SUCCEEDED, metrics={"test_accuracy": 0.5, "nan": float("nan")}, finish_time=now())


def test_a_created_run_is_queued_and_gives_back_its_request(store: RunStore) -> None:
    request = make_request("a", epochs=7)

    run = store.create(request, "service", "mine")

    assert store.get("a") == run
    assert run.request() == request
    assert (run.state, run.recipe, run.dataset, run.queue, run.client_id, run.attempts) == (
        RunState.QUEUED, "quick", "cifar10-slice", "service", "mine", 0,
    )  # fmt: skip


def test_a_search_is_listed_under_what_it_starts_from(store: RunStore) -> None:
    options = TuningOptions(training=make_options("fast"), space={"learning_rate": Range(low=0.1, high=1)})

    run = store.create(Request(id="a", kind=RunKind.TUNING, options=options, create_time=now()), "service")

    assert (run.recipe, run.dataset) == ("fast", "cifar10")
    assert run.request().options == options


def test_the_same_client_id_gives_the_same_run(store: RunStore) -> None:
    first = store.create(make_request("a"), "service", "mine")
    store.claim("a", "service", 1)

    again = store.create(make_request("b"), "service", "mine")

    assert (again.id, again.create_time, again.state) == ("a", first.create_time, RunState.RUNNING)
    with pytest.raises(Conflict, match="client id 'mine' belongs to run 'a', of which something else was asked"):
        store.create(make_request("b", epochs=9), "service", "mine")


def test_runs_without_a_client_id_are_all_different(store: RunStore, create: Create) -> None:
    create("a")
    create("b")

    assert [run.id for run in store.list(RunFilter())] == ["b", "a"]


def test_the_same_id_gives_the_same_run_and_belongs_to_no_other(store: RunStore, create: Create) -> None:
    first = create("a")
    store.claim("a", "service", 1)

    again = create("a")

    assert (again.number, again.create_time, again.state) == (first.number, first.create_time, RunState.RUNNING)
    with pytest.raises(Conflict, match="run 'a' exists already with other options; go on with it by its id alone"):
        create("a", epochs=9)


def test_a_running_run_is_moved_as_long_as_it_is_the_same(store: RunStore, create: Create) -> None:
    create("a")
    claimed = store.claim("a", "service", 1)
    assert claimed is not None

    assert store.move(claimed, "command").queue == "command"
    assert store.move(claimed, "another").queue == "command"
    store.requeue("a")
    later = store.claim("a", "command", 1)
    assert later is not None
    assert store.move(claimed, "service").queue == "command"


def test_requests_of_one_client_id_at_the_same_moment_make_one_run(store: RunStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda n: store.create(make_request(f"r{n}"), "service", "mine"), range(16)))

    assert len({run.id for run in runs}) == 1
    assert len(store.list(RunFilter())) == 1


def test_an_unknown_run_is_not_found(store: RunStore) -> None:
    for act in (
        store.get, store.request_cancel, store.requeue,
        lambda run_id: store.resume(run_id, "service"), lambda run_id: store.claim(run_id, "service", 1),
    ):  # fmt: skip
        with pytest.raises(NotFound, match="run 'nothing' is unknown"):
            act("nothing")


def test_runs_are_selected_by_what_they_are(store: RunStore, create: Create) -> None:
    create("a")
    create("b", queue="other")
    store.create(Request(id="c", kind=RunKind.TRAINING, options=make_options("fast"), create_time=now()), "service")
    conversion = ConversionOptions(source="run:a")
    store.create(Request(id="d", kind=RunKind.CONVERSION, options=conversion, create_time=now()), "service")
    store.claim("a", "service", 9)

    def ids(selected: RunFilter) -> list[str]:
        return [run.id for run in store.list(selected)]

    assert ids(RunFilter()) == ["d", "c", "b", "a"]
    assert ids(RunFilter(states=(RunState.RUNNING, RunState.FAILED))) == ["a"]
    assert ids(RunFilter(kind=RunKind.CONVERSION)) == ["d"]
    assert ids(RunFilter(recipe="quick", queue="service")) == ["a"]
    assert ids(RunFilter(dataset="cifar10")) == ["c"]
    assert store.counts() == {RunState.RUNNING: 1, RunState.QUEUED: 3}


def test_runs_are_listed_in_pages(store: RunStore, create: Create) -> None:
    for name in "abcde":
        create(name)

    first = store.list(RunFilter(), 2)
    second = store.list(RunFilter(), 2, first[-1].number)

    assert [[run.id for run in page] for page in (first, second)] == [["e", "d"], ["c", "b"]]


def test_a_run_is_claimed_by_one_and_within_the_bound(store: RunStore, create: Create) -> None:
    for number in range(12):
        create(f"r{number}")

    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda n: store.claim(f"r{n % 12}", "service", 3), range(48)))

    claimed = [run.id for run in claims if run is not None]
    assert len(claimed) == len(set(claimed)) == 3
    assert store.counts()[RunState.RUNNING] == 3


def test_runs_of_another_queue_neither_are_claimed_nor_count(store: RunStore, create: Create) -> None:
    create("a", queue="other")
    create("b")

    assert store.claim("a", "service", 1) is None
    assert store.claim("a", "other", 1) is not None
    assert store.claim("b", "service", 1) is not None


def test_a_refit_is_claimed_beside_a_long_run_and_one_at_a_time(
    store: RunStore, create: Create, create_refit: Callable[[str, str], Run]
) -> None:
    create("long")
    create("other")
    create_refit("refit", "slice")
    create_refit("next", "slice")
    assert store.claim("long", "service", 1) is not None

    assert store.claim("refit", "service", 1) is not None
    assert (store.claim("next", "service", 1), store.claim("other", "service", 1)) == (None, None)
    store.finish("long", succeeded())
    assert store.claim("next", "service", 1) is None
    assert store.claim("other", "service", 1) is not None
    assert (store.waiting("service", SHORT_KINDS), store.waiting("service", LONG_KINDS)) == (["next"], [])


def test_the_end_of_a_run_is_taken_over_once(store: RunStore, create: Create) -> None:
    create("a")
    store.claim("a", "service", 1)

    ended = store.finish("a", succeeded())
    later = store.finish("a", Outcome(state=RunState.FAILED, reason="later", finish_time=now()))

    assert (ended.state, ended.metrics) == (RunState.SUCCEEDED, {"test_accuracy": 0.5})
    assert later == ended == store.requeue("a") == store.bury("a", 1, "vanished")


def test_a_requeued_run_keeps_its_place_and_its_start(store: RunStore, create: Create) -> None:
    create("a")
    create("b")
    started = store.claim("a", "service", 1)
    assert started is not None

    run = store.requeue("a")

    assert (run.state, run.start_time, run.finish_time) == (RunState.QUEUED, started.start_time, None)
    assert store.waiting("service", LONG_KINDS) == ["a", "b"]


def test_deaths_count_from_the_last_epoch_that_was_finished(store: RunStore, create: Create) -> None:
    create("a")
    ends = []
    for epochs in (0, 0, 1, 1, 4, 4, 4, 4):
        assert store.claim("a", "service", 1) is not None
        ends.append(store.bury("a", epochs, "was killed by signal 9", "; a hint"))

    assert [run.deaths for run in ends] == [1, 2, 0, 1, 0, 1, 2, 3]
    assert [run.state for run in ends] == [RunState.QUEUED] * 7 + [RunState.FAILED]
    reason = "its process was killed by signal 9 three times without finishing a further epoch; a hint"
    assert ends[-1].reason == reason
    assert store.resume("a", "service").deaths == 0


def test_a_run_that_dies_while_somebody_wants_its_end_is_cancelled(store: RunStore, create: Create) -> None:
    create("a")
    create("b")
    for name in "ab":
        store.claim(name, "service", 2)
        assert store.request_cancel(name).state is RunState.RUNNING
    create("c")
    assert sorted(store.to_be_cancelled(["a", "b", "c"])) == ["a", "b"]
    assert store.to_be_cancelled(["a"]) == ["a"]

    assert store.bury("a", 0, "vanished").state is RunState.CANCELLED
    assert store.requeue("b").state is RunState.CANCELLED
    assert store.to_be_cancelled(["a", "b"]) == []


def test_only_what_has_not_ended_is_cancelled(store: RunStore, create: Create) -> None:
    create("a")
    create("b")
    store.claim("a", "service", 1)
    store.finish("a", succeeded())

    with pytest.raises(Conflict, match="run 'a' has SUCCEEDED already"):
        store.request_cancel("a")
    cancelled = store.request_cancel("b")
    assert store.request_cancel("b") == cancelled


def test_only_what_has_not_succeeded_is_resumed(store: RunStore, create: Create) -> None:
    create("a")
    create("b")
    store.claim("a", "service", 1)
    running = store.resume("a", "other")
    store.finish("a", succeeded())
    store.request_cancel("b")

    with pytest.raises(Conflict, match="run 'a' has succeeded, and nothing is left to do"):
        store.resume("a", "service")
    assert (running.state, running.queue) == (RunState.RUNNING, "service")
    resumed = store.resume("b", "other")
    assert (resumed.state, resumed.queue, resumed.cancel_requested, resumed.finish_time) == (
        RunState.QUEUED, "other", False, None,
    )  # fmt: skip


def test_a_run_says_why_it_waits_until_it_is_claimed(store: RunStore, create: Create) -> None:
    create("a")

    store.note("a", "waits: the disk is full")

    assert store.get("a").reason == "waits: the disk is full"
    claimed = store.claim("a", "service", 1)
    assert claimed is not None
    assert claimed.reason == ""
    store.note("a", "too late")
    assert store.get("a").reason == ""
