"""The process of an analyst."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services.trainer.analyst.process import at_work, is_at_work, start_analyst
from services.trainer.data.samples import Samples
from services.trainer.feedback.tables import NeighbourhoodRow
from services.trainer.loop.kinds import HOLDOUT
from services.trainer.loop.tables import FigureRow
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import MODEL, Users


@pytest.mark.usefixtures("encoder")
def test_a_process_does_the_work_and_ends_when_it_is_told_to(
    database: Database, settings: TrainerSettings, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    users.send(slice_samples[1].images[:5])
    assert not is_at_work(settings.runs, MODEL)

    process = start_analyst(MODEL, settings)
    try:
        wait_until(lambda: counted(database, FigureRow) >= 2, process)  # the hold-out, and in the end the quality
        assert counted(database, NeighbourhoodRow) == 5
        assert is_at_work(settings.runs, MODEL)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert not is_at_work(settings.runs, MODEL)


def test_one_analyst_is_enough_and_logs_as_it_is_told_to(
    settings: TrainerSettings, database: Database, users: Users, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings.model_copy(update={"log_style": "json"})
    with at_work(settings.runs, MODEL) as alone, at_work(settings.runs, MODEL) as second:
        assert (alone, second) == (True, False)
        process = start_analyst(MODEL, settings)
        assert process.wait(60) == 0
    line = json.loads(capfd.readouterr().err)
    assert (line["service"], line["level"], line["event"]) == ("analyst", "info", "another analyst is at work")


def test_an_analyst_follows_the_policy_as_it_changes(
    database: Database, settings: TrainerSettings, users: Users, base_folder: Path, tmp_path: Path
) -> None:
    policy, other = tmp_path / "policy.toml", tmp_path / "other"
    policy.write_text("")
    shutil.copytree(base_folder, other)
    roots = (*settings.data_roots, str(tmp_path))
    process = start_analyst(MODEL, settings.model_copy(update={"policy": policy, "data_roots": roots}))
    try:
        wait_until(lambda: holdouts(database) == [str(base_folder)], process)
        policy.write_text(f'[judging]\nholdout = "{other}"\n')
        wait_until(lambda: holdouts(database) == [str(base_folder), str(other)], process)
    finally:
        process.kill()
        process.wait()


def holdouts(database: Database) -> list[str]:
    with database.read() as session:
        rows = select(FigureRow.window).where(FigureRow.kind == HOLDOUT).order_by(FigureRow.number)
        return [row["set"] for row in session.scalars(rows)]


def test_an_analyst_needs_no_torch() -> None:
    code = "import sys, services.trainer.analyst.__main__\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def counted(database: Database, table: type) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    while not holds():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)  # it must not end before
