"""Runs as real processes: they end, fail, are killed, cancelled and found again."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import Conflict, Overloaded
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.progress import Progress, finished_epochs
from services.trainer.runs.record import RunState
from services.trainer.runs.store import Run, RunStore
from tests.trainer.runs.conftest import CountingLauncher, Create, Follower, Supervise

SERVICE = Path(__file__).with_name("supervisor_process.py")


def epochs_of(entries: list[Progress]) -> list[int]:
    return [entry.epoch for entry in entries if entry.kind == "epoch"]


async def test_a_queued_run_succeeds_with_what_its_process_has_left(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    create("a")
    await supervise()

    run, entries = await follow.end("a")

    assert (run.state, run.reason, run.attempts, run.metrics) == (RunState.SUCCEEDED, "", 1, {"test_accuracy": 0.5})
    assert run.create_time <= (run.start_time or "") <= (run.finish_time or "")
    assert epochs_of(entries) == [1, 2, 3]


async def test_a_run_that_is_created_later_starts_without_a_wake_up(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    await supervise()
    create("a")

    assert (await follow.end("a"))[0].state is RunState.SUCCEEDED


async def test_a_run_fails_with_the_sentence_of_its_process(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    create("a", fail="the loss is not finite in epoch 3; lower learning_rate")
    await supervise()

    run, _ = await follow.end("a")

    assert (run.state, run.reason) == (RunState.FAILED, "the loss is not finite in epoch 3; lower learning_rate")


async def test_a_process_that_dies_three_times_in_the_same_epoch_fails_its_run(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    create("a", die_in=1)
    await supervise()

    run, _ = await follow.end("a")

    assert (run.state, run.attempts) == (RunState.FAILED, 3)
    assert run.reason == (
        "its process was killed by signal 9 three times without finishing an epoch, "
        "as the kernel does when memory runs out"
    )


async def test_a_run_whose_process_dies_after_each_epoch_goes_on_to_its_end(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    create("a", epochs=3, die_after_each=True)
    await supervise()

    run, entries = await follow.end("a")

    assert (run.state, run.attempts) == (RunState.SUCCEEDED, 4)
    assert epochs_of(entries) == [1, 2, 3]


async def test_a_process_that_ends_without_an_outcome_is_quoted(
    create: Create, supervise: Supervise, follow: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.runs.store.MOST_DEATHS", 1)
    create("a", exit_code=3)
    await supervise()

    run, _ = await follow.end("a")

    assert (run.state, run.attempts) == (RunState.FAILED, 2)  # the first death still had brought epochs
    assert run.reason == (
        "its process ended with exit code 3 once without finishing a further epoch; see log.txt: a last word"
    )


async def test_a_process_killed_at_random_moments_loses_no_finished_epoch(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path
) -> None:
    create("a", epochs=120)
    await supervise()
    moments = sorted(random.Random(0).sample(range(2, 110), 3))

    for moment in moments:
        await follow.entry("a", "epoch", moment)
        pid = RunFolder(runs_dir / "a").signed()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    run, entries = await follow.end("a")

    assert (run.state, run.attempts) == (RunState.SUCCEEDED, 4)
    assert sorted(finished_epochs(entries)) == list(range(1, 121))
    assert len(epochs_of(entries)) <= 123  # one that was being told when the process was killed may be told again


async def test_what_a_dead_process_has_left_running_is_ended_before_its_run_goes_on(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path
) -> None:
    create("a", hold_at=2, children=True)
    await supervise()
    await follow.entry("a", "step")
    first = RunFolder(runs_dir / "a").signed()
    assert first is not None

    os.kill(first, signal.SIGKILL)

    second = await follow.attempt("a", 2)  # the child had inherited the lock, too, so it must be gone
    assert second.deaths == 0


async def test_a_queued_run_is_cancelled_at_once(create: Create, store: RunStore) -> None:
    create("a")

    run = store.request_cancel("a")

    assert run.state is RunState.CANCELLED
    assert run.finish_time is not None


async def test_a_running_run_is_cancelled_and_goes_on_from_its_checkpoint_when_resumed(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, runs_dir: Path
) -> None:
    create("a", hold_at=3)
    supervisor = await supervise()
    await follow.entry("a", "step")

    store.request_cancel("a")
    run, _ = await follow.end("a")
    assert (run.state, run.reason, supervisor.running) == (RunState.CANCELLED, "", {})

    store.resume("a", "service")
    resumed = await follow.state("a", RunState.RUNNING)
    assert (resumed.cancel_requested, resumed.attempts, resumed.finish_time) == (False, 2, None)
    store.request_cancel("a")
    run, entries = await follow.end("a")
    assert epochs_of(entries) == [1, 2]


async def test_a_process_that_does_not_stop_is_killed(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore
) -> None:
    create("a", hold_at=1, stubborn=True)
    await supervise(grace_seconds=0.05)
    await follow.entry("a", "step")

    store.request_cancel("a")

    assert (await follow.end("a"))[0].state is RunState.CANCELLED


async def test_no_more_runs_than_allowed_are_at_work_and_the_oldest_comes_first(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore
) -> None:
    for name in "abc":
        create(name, hold_at=1)
    supervisor = await supervise(most_parallel=2)
    await asyncio.gather(follow.entry("a", "step"), follow.entry("b", "step"))

    assert set(supervisor.running) == {"a", "b"}
    assert store.get("c").state is RunState.QUEUED

    store.request_cancel("a")
    await follow.entry("c", "step")
    assert set(supervisor.running) == {"b", "c"}


async def test_a_refit_starts_beside_a_long_run_and_before_those_that_wait_for_its_end(
    create: Create,
    create_refit: Callable[[str, str], Run],
    supervise: Supervise,
    follow: Follower,
    store: RunStore,
) -> None:
    create("long", hold_at=1)
    create("waiting")
    create_refit("refit", "slice")
    create_refit("held", "held")
    create_refit("after", "slice")
    supervisor = await supervise()
    await follow.entry("long", "step")

    assert (await follow.end("refit"))[0].state is RunState.SUCCEEDED
    await follow.entry("held", "step")
    assert set(supervisor.running) == {"long", "held"}
    assert {store.get(name).state for name in ("waiting", "after")} == {RunState.QUEUED}

    store.request_cancel("held")
    assert (await follow.end("after"))[0].state is RunState.SUCCEEDED
    assert store.get("waiting").state is RunState.QUEUED


async def test_two_supervisors_of_one_queue_start_each_run_once(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    for name in "abcd":
        create(name)
    await asyncio.gather(supervise(most_parallel=2), supervise(most_parallel=2))

    ends = [await follow.end(name) for name in "abcd"]

    assert [(run.state, run.attempts) for run, _ in ends] == [(RunState.SUCCEEDED, 1)] * 4
    assert [epochs_of(entries) for _, entries in ends] == [[1, 2, 3]] * 4


async def test_a_supervisor_leaves_the_runs_of_another_queue_alone(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore
) -> None:
    create("theirs", queue="command-line")
    create("ours")
    await supervise()

    await follow.end("ours")

    assert store.get("theirs").state is RunState.QUEUED


async def test_runs_of_a_supervisor_that_stops_are_queued_and_go_on_at_the_next_start(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, runs_dir: Path
) -> None:
    create("a", epochs=150)
    supervisor = await supervise()
    await follow.entry("a", "epoch", 2)

    await supervisor.stop()
    stopped = store.get("a")
    assert (stopped.state, stopped.deaths) == (RunState.QUEUED, 0)
    assert not RunFolder(runs_dir / "a").is_held
    await supervise()

    run, entries = await follow.end("a")
    assert (run.state, run.attempts, epochs_of(entries)) == (RunState.SUCCEEDED, 2, list(range(1, 151)))


def kill_a_service(tmp_path: Path, run_id: str) -> None:
    """Start a supervisor in a process of its own, wait until it has started the run, and kill it."""
    service = subprocess.Popen([sys.executable, SERVICE, tmp_path, run_id], stdout=subprocess.PIPE)
    with service:
        assert service.stdout is not None
        service.stdout.readline()
        service.kill()


async def test_a_run_goes_on_without_its_service_and_is_found_again(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", hold_at=3)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    pid = RunFolder(runs_dir / "a").signed()
    await follow.entry("a", "step")

    supervisor = await supervise()
    assert (list(supervisor.running), RunFolder(runs_dir / "a").signed()) == (["a"], pid)
    store.request_cancel("a")

    run, entries = await follow.end("a")
    assert (run.state, run.attempts, epochs_of(entries)) == (RunState.CANCELLED, 1, [1, 2])


async def test_a_run_that_has_ended_without_its_service_is_taken_down_at_the_next_start(
    create: Create, supervise: Supervise, store: RunStore, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", epochs=100)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    await CountingLauncher({}).find(RunFolder(runs_dir / "a")).wait()
    assert store.get("a").state is RunState.RUNNING

    await supervise()

    assert (store.get("a").state, store.get("a").attempts) == (RunState.SUCCEEDED, 1)


async def test_a_run_that_was_killed_with_its_service_goes_on_at_the_next_start(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", epochs=300)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    pid = RunFolder(runs_dir / "a").signed()
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    await CountingLauncher({}).find(RunFolder(runs_dir / "a")).wait()

    await supervise()

    run, entries = await follow.end("a")
    assert (run.state, run.attempts, sorted(finished_epochs(entries))) == (
        RunState.SUCCEEDED, 2, list(range(1, 301)),
    )  # fmt: skip


async def test_a_run_without_the_disk_space_waits_and_says_why(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore
) -> None:
    create("a")
    supervisor = await supervise(min_free_bytes=2**60)

    reason = await follow.reason("a")

    assert reason.startswith("waits: ")
    assert "TRAINER_MIN_FREE_BYTES is 1073741824.0 GiB" in reason
    assert store.get("a").state is RunState.QUEUED
    with pytest.raises(Overloaded, match="remove runs that are no longer needed"):
        supervisor.check_disk()


@pytest.fixture
def in_the_way(runs_dir: Path) -> Path:
    """A file where the folder of run a would be."""
    runs_dir.mkdir()
    (runs_dir / "a").write_text("in the way")
    return runs_dir / "a"


async def test_a_run_whose_folder_cannot_be_made_waits_and_holds_up_no_other(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, in_the_way: Path
) -> None:
    create("a")
    create("b")
    await supervise()

    assert (await follow.end("b"))[0].state is RunState.SUCCEEDED
    waiting = store.get("a")
    assert (waiting.state, waiting.reason.startswith("waits: ")) == (RunState.QUEUED, True)
    await asyncio.to_thread(in_the_way.unlink)
    assert (await follow.end("a"))[0].state is RunState.SUCCEEDED


async def test_a_run_whose_folder_belongs_to_another_fails(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path
) -> None:
    run = create("a")
    RunFolder(runs_dir / "a").create(run.request().model_copy(update={"trusted": True}))
    await supervise()

    ended, _ = await follow.end("a")

    assert ended.state is RunState.FAILED
    assert ended.reason.startswith("its process cannot be started: ")
    assert ended.reason.endswith("belongs to another run; give this one another id")


async def test_a_run_that_is_taken_over_by_two_is_taken_down_once(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore
) -> None:
    create("a", hold_at=1)
    await supervise()
    other = await supervise(queue="command-line")
    await follow.entry("a", "step")

    for _ in range(2):
        assert (await other.take_over(store.request_cancel("a"))).queue == "service"  # whose supervisor lives
    assert not other.running

    run, _ = await follow.end("a")
    assert (run.state, run.attempts) == (RunState.CANCELLED, 1)


async def test_a_run_whose_supervisor_is_gone_is_cancelled_by_another(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, tmp_path: Path
) -> None:
    create("a", hold_at=1)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    other = await supervise(queue="command-line")

    await other.take_over(store.request_cancel("a"))

    assert (await follow.end("a"))[0].state is RunState.CANCELLED


async def test_what_another_queue_has_left_running_is_taken_down_when_its_process_has_ended(
    create: Create, supervise: Supervise, store: RunStore, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", epochs=100)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    await CountingLauncher({}).find(RunFolder(runs_dir / "a")).wait()

    await supervise(queue="command-line")

    assert (store.get("a").state, store.get("a").attempts) == (RunState.SUCCEEDED, 1)


async def test_what_another_queue_has_left_is_taken_down_whenever_its_process_ends(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", hold_at=2)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    other = await supervise(queue="command-line")
    await follow.entry("a", "step")
    assert (store.get("a").state, dict(other.running)) == (RunState.RUNNING, {})  # its process is at work

    pid = RunFolder(runs_dir / "a").signed()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    waiting = await follow.state("a", RunState.QUEUED)
    assert (waiting.queue, waiting.attempts) == ("service", 1)


async def test_a_run_at_work_whose_supervisor_is_gone_is_seen_through_by_who_takes_it_over(
    create: Create, supervise: Supervise, follow: Follower, store: RunStore, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", epochs=400)
    await asyncio.to_thread(kill_a_service, tmp_path, "a")
    pid = RunFolder(runs_dir / "a").signed()
    other = await supervise(queue="command-line")

    taken = await other.take_over(store.get("a"))

    assert (taken.queue, list(other.running), RunFolder(runs_dir / "a").signed()) == ("command-line", ["a"], pid)
    run, entries = await follow.end("a")
    assert (run.state, run.attempts, epochs_of(entries)) == (RunState.SUCCEEDED, 1, list(range(1, 401)))


async def test_a_run_at_work_cannot_be_held_by_anyone_else(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path
) -> None:
    create("a", hold_at=1)
    await supervise()
    await follow.entry("a", "step")

    with (
        pytest.raises(Conflict, match="a process is at work on run 'a'; cancel it"),
        RunFolder(runs_dir / "a").locked(),
    ):
        pass
