"""Requests that are meant to break the trainer, and what is left of it then."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.common.errors import Conflict, InvalidInput, NotFound, NotReady, ServiceError
from services.trainer.networks import building
from services.trainer.options import NETWORKS, Range, TuningOptions
from services.trainer.recipes import make_options
from services.trainer.runs.admission import MAX_DEPTH, Admission, parse_object, training_options
from services.trainer.runs.folder import ID_FILE, RunFolder
from services.trainer.runs.progress import read_progress
from services.trainer.runs.record import RunState
from services.trainer.runs.store import RunStore
from services.trainer.storage.database import Database
from tests.trainer.runs.conftest import Create, Follower, Supervise


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("json_text", "words"),
    [
        (r'{"network_options": {"a": "\ud800"}}', r"has '\ud800', which holds half of a surrogate pair"),
        (r'{"network_options": {"\udfff": 1}}', r"has '\udfff', which holds half of a surrogate pair"),
        (r'{"recipe": "\ud800"}', "surrogate pair"),
        ('{"network_options": {"widths": NaN}}', "has the number nan; use finite ones"),
        ('{"network_options": {"widths": [-Infinity]}}', "has the number -inf"),
        ('{"lr": 1e999}', "has the number inf"),
        (nested(MAX_DEPTH + 1), f"within more than {MAX_DEPTH} others; make it flatter"),
        (nested(900), f"within more than {MAX_DEPTH} others"),
    ],
    ids=["surrogate", "key", "recipe", "nan", "-inf", "huge", "deep", "deeper"],
)
def test_json_that_cannot_be_kept_is_refused(json_text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        training_options("quick", json_text)

    assert words in caught.value.message
    assert caught.value.message.encode()


def test_whole_pairs_and_depths_within_the_limit_are_let_in() -> None:
    document = {"a": "\U0001f600", "b": json.loads(nested(MAX_DEPTH - 1))}

    assert parse_object(json.dumps(document), "overrides_json") == document


async def test_a_run_that_cannot_be_started_fails_and_the_next_one_starts(
    create: Create, supervise: Supervise, follow: Follower
) -> None:
    create("unwritable", words="\ud800")
    create("next")

    await supervise()
    unwritable = await follow.state("unwritable", RunState.FAILED)
    following, _ = await follow.end("next")

    assert unwritable.reason.startswith("its process cannot be started: ")
    assert following.state is RunState.SUCCEEDED


def start_service(folder: Path, run_id: str) -> "subprocess.Popen[bytes]":
    """Start a supervisor in a process of its own, and return it when the run has begun."""
    program = Path(__file__).with_name("supervisor_process.py")
    service = subprocess.Popen([sys.executable, program, folder, run_id], stdout=subprocess.PIPE)
    assert service.stdout is not None
    service.stdout.readline()
    return service


async def test_a_run_whose_service_and_process_are_killed_goes_on_in_another_service(
    create: Create, supervise: Supervise, follow: Follower, runs_dir: Path, tmp_path: Path
) -> None:
    create("a", hold_at=3)
    service = await asyncio.to_thread(start_service, tmp_path, "a")
    with service:
        survivor = await supervise()
        watched = list(survivor.running)
        service.kill()
    pid = RunFolder(runs_dir / "a").signed()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    run = await follow.attempt("a", 2)

    assert (watched, run.state, run.deaths) == ([], RunState.RUNNING, 1)


@pytest.mark.parametrize(
    ("name", "choices", "error", "words"),
    [
        ("network", ("alexnet", "os:system"), InvalidInput, "network 'os:system' names code"),
        ("network", ("nope",), InvalidInput, "network 'nope' is unknown; use residual, alexnet, alexnet-small or torc"),
        ("distillation.teacher", ("run:nope",), NotFound, "run 'nope' is unknown"),
        ("distillation.teacher", ("x",), InvalidInput, "distillation.teacher 'x' is not the name of a model"),
        ("distillation", ({"teacher": "run:nope"},), NotFound, "run 'nope' is unknown"),
    ],
)
def test_a_trial_may_have_only_what_a_run_may_have(
    store: RunStore, name: str, choices: tuple[Any, ...], error: type[ServiceError], words: str
) -> None:
    options = TuningOptions(training=make_options("quick"), space={name: Range(choices=choices)})

    with pytest.raises(error) as caught:
        Admission(store, []).admit(options)

    assert words in caught.value.message


@pytest.mark.parametrize("network", ["nope", "torchvision:", ":x", ":", "residuel"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_network_that_does_not_exist_is_refused(store: RunStore, network: str, trusted: bool) -> None:
    with pytest.raises(InvalidInput, match=r"is unknown; (use residual, alexnet|did you mean residual)"):
        Admission(store, [], trusted=trusted).admit(make_options("quick", {"network": network}))


def test_the_networks_that_are_let_in_are_those_that_are_built() -> None:
    assert set(NETWORKS) == set(building.NETWORKS)


async def test_a_trainer_with_another_folder_does_not_start_on_the_same_database(
    supervise: Supervise, runs_dir: Path
) -> None:
    await supervise()
    known = (runs_dir / ID_FILE).read_text().strip()
    await asyncio.to_thread(runs_dir.rename, runs_dir.with_name("moved"))

    with pytest.raises(Conflict) as caught:
        await supervise(queue="other")  # an empty folder in the place of the former

    assert f"the runs of the trainer's database lie in {runs_dir}, and TRAINER_RUNS is {runs_dir}, another folder" in (
        caught.value.message
    )
    (runs_dir / ID_FILE).write_text(known)  # as the sentence says
    await supervise(queue="other")


def test_a_position_behind_all_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text("\n")

    for position in (2, 2**62, 2**63 - 1):
        with pytest.raises(InvalidInput, match=f"position {position} is not one that the progress of this run has"):
            read_progress(path, position)


def test_a_full_disk_is_told_from_a_database_that_is_away(database: Database, tmp_path: Path) -> None:
    def fill() -> None:
        with database.begin() as session:
            session.execute(text("PRAGMA max_page_count = 1"))  # no page more than there are
            session.execute(text("CREATE TABLE pages (page BLOB)"))
            session.execute(text("INSERT INTO pages VALUES (zeroblob(100000))"))

    with pytest.raises(NotReady) as caught:
        fill()

    assert caught.value.reason == "DISK_FULL"
    assert caught.value.message == (
        f"the disk of the trainer's database is full; make room in {tmp_path} and try again"
    )
