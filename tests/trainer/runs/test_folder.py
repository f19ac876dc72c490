import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.clock import now
from services.trainer.runs.folder import LOCK_FILE, LOG_FILE, OUTCOME_FILE, REQUEST_FILE, RunFolder, write_document
from services.trainer.runs.record import Outcome, RunState
from tests.trainer.runs.conftest import make_request


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


def test_the_request_is_written_once_and_read_again(folder: RunFolder) -> None:
    request = make_request("a")

    folder.create(request)
    folder.create(request)

    assert folder.request() == request
    with pytest.raises(Conflict, match="belongs to another run; give this one another id"):
        folder.create(make_request("a", epochs=7))


def test_a_folder_without_a_run_is_not_found(folder: RunFolder) -> None:
    with pytest.raises(NotFound, match="run 'a' is unknown"):
        folder.request()


def test_a_damaged_record_is_named(folder: RunFolder) -> None:
    folder.create(make_request("a"))
    (folder / REQUEST_FILE).write_text("{")
    (folder / OUTCOME_FILE).write_text("{}")

    with pytest.raises(InvalidInput, match=r"^run.json of run a is damaged"):
        folder.request()
    with pytest.raises(InvalidInput, match=r"^outcome.json of run a is damaged"):
        folder.outcome()


def test_an_outcome_is_there_until_it_is_forgotten(folder: RunFolder) -> None:
    folder.create(make_request("a"))
    outcome = Outcome(state=RunState.FAILED, reason="the disk is full", finish_time=now())
    assert folder.outcome() is None

    write_document(folder / OUTCOME_FILE, outcome)

    assert folder.outcome() == outcome
    folder.forget_outcome()
    folder.forget_outcome()
    assert folder.outcome() is None


def test_a_run_is_held_by_one_at_a_time(folder: RunFolder) -> None:
    assert not folder.is_held

    with folder.locked():
        assert folder.is_held
        with pytest.raises(Conflict, match="a process is at work on run 'a'"), folder.locked():
            pass
        assert folder.is_held

    assert not folder.is_held


def test_an_error_of_the_holder_frees_the_run_and_stays_what_it_is(folder: RunFolder) -> None:
    with pytest.raises(BlockingIOError), folder.locked():
        raise BlockingIOError("of the holder")

    assert not folder.is_held


def test_a_process_that_inherits_the_lock_holds_it_until_it_ends(folder: RunFolder) -> None:
    with folder.locked() as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,), start_new_session=True
        )
        folder.sign(child.pid)

    assert (folder.is_held, folder.signed()) == (True, child.pid)

    child.kill()
    child.communicate()
    assert (folder.is_held, folder.signed()) == (False, None)


def test_who_takes_the_lock_is_not_taken_for_the_one_before(folder: RunFolder) -> None:
    with folder.locked():
        folder.sign(os.getpid())
    assert (folder / LOCK_FILE).read_text() == f"{os.getpid()}\n"

    with folder.locked():
        assert folder.signed() is None


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (None, ""),
        ("", ""),
        ("first\nlast\n\n  \n", "last"),
        ("no end", "no end"),
        ("x" * 1_000, "x" * 300),
    ],
    ids=["none", "empty", "blank", "unfinished", "long"],
)
def test_the_last_line_that_was_printed_is_found(folder: RunFolder, printed: str | None, line: str) -> None:
    folder.create(make_request("a"))
    if printed is not None:
        (folder / LOG_FILE).write_text(printed)

    assert folder.last_line() == line
