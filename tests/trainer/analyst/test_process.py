"""The process of an analyst."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from services.trainer.analyst.process import at_work, is_at_work, start_analyst
from services.trainer.data.samples import Samples
from services.trainer.feedback.tables import NeighbourhoodRow
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


def test_one_analyst_is_enough(settings: TrainerSettings, database: Database, users: Users) -> None:
    with at_work(settings.runs, MODEL) as alone, at_work(settings.runs, MODEL) as second:
        assert (alone, second) == (True, False)
        process = start_analyst(MODEL, settings)
        assert process.wait(60) == 0


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
