from pathlib import Path

import pytest

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.recipes import make_options
from services.trainer.runs.record import Run, RunState, list_runs, now, open_run, read_run, started_run, write_run


def _run(run_id: str, create_time: str) -> Run:
    return Run(id=run_id, options=make_options("quick"), create_time=create_time)


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    run = _run("a", now()).replace(state=RunState.FAILED, reason="the disk is full", metrics={"test_accuracy": 0.5})

    write_run(tmp_path / "a", run)

    assert read_run(tmp_path / "a") == run
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.json"]


def test_runs_are_listed_newest_first_and_other_folders_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "old", _run("old", "2026-01-01T00:00:00Z"))
    write_run(tmp_path / "new", _run("new", "2026-01-02T00:00:00Z"))
    (tmp_path / "something-else").mkdir()

    assert [run.id for run in list_runs(tmp_path)] == ["new", "old"]


def test_a_damaged_record_is_left_out_of_the_list(tmp_path: Path) -> None:
    write_run(tmp_path / "good", _run("good", "2026-01-01T00:00:00Z"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")

    assert [run.id for run in list_runs(tmp_path)] == ["good"]


def test_no_runs_are_listed_where_the_folder_does_not_exist(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []


def test_a_folder_without_a_run_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is unknown"):
        read_run(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")

    with pytest.raises(InvalidInput, match=r"^run.json of run .* is not a valid record of a run"):
        read_run(tmp_path)


def test_a_folder_without_a_run_is_opened_as_a_new_one(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a", make_options("quick"))

    assert (run.id, run.options, run.history) == ("a", make_options("quick"), ())
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_opened_with_its_own_options_only(tmp_path: Path) -> None:
    run = _run("a", now())
    write_run(tmp_path / "a", run)

    assert open_run(tmp_path / "a", run.options) == run
    with pytest.raises(Conflict, match="run 'a' was started with other options; give none to go on with its own, or"):
        open_run(tmp_path / "a", make_options("quick", {"seed": 1}))


def test_a_started_run_is_running_and_keeps_what_it_has(tmp_path: Path) -> None:
    failed = _run("a", "2026-01-01T00:00:00Z").replace(state=RunState.FAILED, reason="interrupted", finish_time=now())

    with started_run(tmp_path / "a", failed) as run:
        assert read_run(tmp_path / "a") == run

    assert run == failed.replace(state=RunState.RUNNING, reason=None, finish_time=None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidInput("epochs is 0; give 1 or more"), "epochs is 0; give 1 or more"),
        (KeyboardInterrupt(), "interrupted; `aimass train --run-id a` goes on"),
        (MemoryError("64 GiB"), "MemoryError: 64 GiB"),
    ],
    ids=["expected", "interrupted", "unexpected"],
)
def test_a_run_that_ends_with_an_error_says_why(tmp_path: Path, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), started_run(tmp_path / "a", _run("a", "2026-01-01T00:00:00Z")):
        raise error

    run = read_run(tmp_path / "a")
    assert (run.state, run.reason) == (RunState.FAILED, reason)
    assert run.finish_time is not None
    assert run.finish_time > run.create_time
