import os
import sys
from pathlib import Path

import pytest

from services.trainer.clock import now
from services.trainer.options import ConversionOptions, RefitOptions
from services.trainer.recipes import make_options
from services.trainer.runs.folder import LOG_FILE, RunFolder
from services.trainer.runs.launcher import LocalLauncher
from services.trainer.runs.record import Options, Request, RunKind
from services.trainer.settings import TrainerSettings
from tests.trainer.runs.conftest import CountingLauncher, Create, Follower, make_request


class PrintingLauncher(LocalLauncher):
    """Starts a process that prints what it was given."""

    def command(self, folder: RunFolder, options: Options) -> list[str]:
        code = "import os; print(os.getsid(0) == os.getpid(), os.getpid(), dict(os.environ), os.read(0, 1))"
        return [sys.executable, "-c", code]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "a")
    folder.create(make_request("a"))
    return folder


def command(options: Options) -> list[str]:
    return LocalLauncher({}).command(RunFolder(Path("/runs/a")), options)[1:]


def test_one_worker_is_one_process() -> None:
    alone = ["-m", "services.trainer.jobs", "/runs/a"]

    assert command(make_options("quick")) == alone
    assert command(ConversionOptions(source="run:a")) == alone
    # With local steps, the process starts its workers itself.
    assert command(make_options("quick", {"workers": {"count": 4, "synchronisation": "local-steps"}})) == alone


def test_workers_that_step_together_are_started_by_torchrun() -> None:
    assert command(make_options("quick", {"workers": {"count": 4}})) == [
        "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=4", "--max-restarts=3",
        "--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--rdzv-endpoint=/runs/a/rendezvous", "--rdzv-id=run",
        "--local-addr=127.0.0.1",
        "-m", "services.trainer.jobs", "/runs/a",
    ]  # fmt: skip


async def test_a_process_has_its_own_session_our_settings_and_a_log(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIMASS_SUPERVISED", "1")
    settings = TrainerSettings(runs=tmp_path / "r", nice=3, data_roots=("/a", "/b"))
    (folder / LOG_FILE).write_text("of the first attempt\n")

    with folder.locked() as lock:
        process = await PrintingLauncher(settings.environment()).start(folder, folder.request(), lock)
        pid = folder.signed()
    assert await process.wait() == 0

    first, printed = (folder / LOG_FILE).read_text().splitlines()
    assert first == "of the first attempt"
    assert printed.startswith(f"True {pid} {{")
    assert printed.endswith("} b''")
    for variable in (f"'TRAINER_RUNS': '{tmp_path / 'r'}'", "'TRAINER_NICE': '3'", "'TRAINER_DATA_ROOTS': '/a,/b'"):
        assert variable in printed
    assert "AIMASS_SUPERVISED" not in printed


async def test_a_refit_multiplies_with_one_thread_and_others_as_they_like(tmp_path: Path) -> None:
    options = {RunKind.REFIT: RefitOptions(source="run:a", dataset="cifar10"), RunKind.TRAINING: make_options("quick")}
    printed = {}
    for kind, each in options.items():
        folder = RunFolder(tmp_path / kind)
        folder.create(Request(id=kind, kind=kind, options=each, create_time=now()))
        with folder.locked() as lock:
            process = await PrintingLauncher({"OMP_NUM_THREADS": "7"}).start(folder, folder.request(), lock)
        assert await process.wait() == 0
        printed[kind] = (folder / LOG_FILE).read_text()

    assert "'OPENBLAS_NUM_THREADS': '1'" in printed[RunKind.REFIT]
    assert "'OMP_NUM_THREADS': '1'" in printed[RunKind.REFIT]
    assert "'OMP_NUM_THREADS': '7'" in printed[RunKind.TRAINING]


def test_a_process_reads_the_settings_that_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = TrainerSettings(runs=tmp_path, data_roots=("/a", "/b"), min_free_bytes=5, drain_seconds=0.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    assert TrainerSettings() == settings


@pytest.mark.parametrize("found", [False, True])
async def test_a_process_is_ended_with_all_that_it_has_started(
    create: Create, follow: Follower, runs_dir: Path, found: bool
) -> None:
    launcher = CountingLauncher({})
    request = create("b", hold_at=1, stubborn=True, children=True).request()
    folder = RunFolder(runs_dir / "b")
    folder.create(request)
    with folder.locked() as lock:
        started = await launcher.start(folder, request, lock)
    process = launcher.find(folder) if found else started
    await follow.entry("b", "step")

    process.terminate()
    process.kill()

    assert await process.wait() == (None if found else -9)
    assert not folder.is_held
    assert await started.wait() == -9


async def test_a_process_that_is_gone_gets_no_signal(folder: RunFolder) -> None:
    launcher = PrintingLauncher({})
    with folder.locked() as lock:
        process = await launcher.start(folder, folder.request(), lock)
    await process.wait()
    folder.sign(os.getpid())  # nobody holds the run, so the number means nothing

    process.terminate()
    process.kill()
    launcher.find(folder).terminate()
    launcher.find(folder).kill()
    assert await launcher.find(folder).wait() is None
