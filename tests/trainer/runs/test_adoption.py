"""Finished runs whose folders come from elsewhere: the package, another machine, or the time of a lost database."""

from pathlib import Path

from services.trainer.clock import now
from services.trainer.runs.folder import OUTCOME_FILE, RunFolder, write_document
from services.trainer.runs.record import Outcome, RunState
from services.trainer.runs.store import RunFilter, RunStore
from tests.trainer.runs.conftest import Supervise, make_request


def write_finished(runs_dir: Path, name: str, run_id: str) -> RunFolder:
    folder = RunFolder(runs_dir / name)
    folder.create(make_request(run_id))
    outcome = Outcome(state=RunState.SUCCEEDED, metrics={"test_accuracy": 0.9}, finish_time=now())
    write_document(folder / OUTCOME_FILE, outcome)
    return folder


async def test_a_finished_run_whose_folder_was_copied_here_is_taken_in_once(
    supervise: Supervise, store: RunStore, runs_dir: Path
) -> None:
    write_finished(runs_dir, "a", "a")
    await (await supervise()).stop()
    await supervise()

    [run] = store.list(RunFilter())

    assert (run.id, run.state, run.metrics, run.attempts) == ("a", RunState.SUCCEEDED, {"test_accuracy": 0.9}, 0)


async def test_what_is_no_finished_run_is_left_alone(supervise: Supervise, store: RunStore, runs_dir: Path) -> None:
    (write_finished(runs_dir, "damaged", "damaged") / OUTCOME_FILE).write_text("{")
    (write_finished(runs_dir, "no-request", "no-request") / "run.json").unlink()
    write_finished(runs_dir, "renamed", "another")
    RunFolder(runs_dir / "unfinished").create(make_request("unfinished"))
    write_finished(runs_dir, "z", "z")

    await supervise()

    assert [run.id for run in store.list(RunFilter())] == ["z"]
