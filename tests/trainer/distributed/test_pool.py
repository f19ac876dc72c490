import sys
from pathlib import Path

import pytest

from services.common.errors import NotReady
from services.trainer.distributed.pool import RESTARTS, Pool


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def mend_for_ever(pool: Pool) -> None:
    while True:
        pool.mend()


def test_a_run_whose_workers_all_die_ends_with_a_sentence() -> None:
    with (
        Pool(lambda number: python("raise SystemExit(3)"), 2) as pool,
        pytest.raises(NotReady, match="all 2 workers have ended 4 times, the last with exit code 3"),
    ):
        mend_for_ever(pool)


def test_the_others_go_on_without_a_worker_that_dies_too_often(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.touch()
    dying = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(1)"

    with Pool(lambda number: python("import signal; signal.pause()" if number else dying), 2) as pool:
        while len(starts.read_text()) < 1 + RESTARTS:
            pool.mend()
        pool.mend()

    assert starts.read_text() == "x" * (1 + RESTARTS)


def test_a_worker_that_has_nothing_left_to_do_is_not_started_again() -> None:
    with Pool(lambda number: python(""), 1) as pool:
        (process,) = pool.processes
        process.wait()
        pool.mend()

        assert pool.processes == [process]


def test_workers_end_with_the_block() -> None:
    with Pool(lambda number: python("import signal; signal.pause()"), 2) as pool:
        processes = pool.processes

    assert [process.returncode for process in processes] == [-9, -9]
