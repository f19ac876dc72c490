"""`aimass train` told to stop, killed, and taken up again; its jobs are real processes that only count."""

import asyncio
import os
import re
import signal

import pytest

from services.trainer.runs.record import RunState
from tests.aimass.conftest import Commands, options
from tests.end_to_end.suite import poll
from tests.trainer.runs.conftest import CountingLauncher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_command_that_is_told_to_stop_stops_its_run_and_its_own_command_goes_on_with_it(
    commands: Commands, number: signal.Signals
) -> None:
    command = commands.train(3, hold_at=3)

    command.send_signal(number)
    command.send_signal(number)
    _, complained = command.communicate(timeout=100)

    assert (command.returncode, complained.splitlines()[-1]) == (
        1, "error: interrupted; a run that was named above goes on with its --run-id",
    )  # fmt: skip
    assert not commands.folder.is_held
    assert (commands.row.state, commands.row.deaths) == (RunState.QUEUED, 0)

    code, _, complained = commands.run("train", "quick", "--run-id", "x", *options(4, hold_at=3))
    assert (code, complained) == (
        1, "error: run 'x' exists already with other options; go on with it by its id alone, or give this one another "
        "id\n",
    )  # fmt: skip
    again = commands.start("train", "quick", "--run-id", "x", *options(3, hold_at=3))
    poll(lambda: commands.row.attempts == 2, again, commands.home)
    again.terminate()
    again.communicate(timeout=100)
    assert commands.row.state is RunState.QUEUED


def test_a_run_whose_command_was_killed_is_found_at_work_and_taken_over(commands: Commands) -> None:
    killed = commands.train(3, hold_at=3)
    killed.kill()
    killed.communicate()
    pid, queue = commands.folder.signed(), commands.row.queue
    assert (pid is not None, commands.row.state) == (True, RunState.RUNNING)

    command = commands.start("train", "--run-id", "x")
    poll(lambda: commands.row.queue != queue, command, commands.home)
    assert commands.folder.signed() == pid
    command.terminate()
    printed, _ = command.communicate(timeout=100)

    assert printed == "run x; if it is interrupted, `aimass train --run-id x` goes on\n"
    assert (commands.row.state, commands.row.attempts, commands.folder.is_held) == (RunState.QUEUED, 1, False)


def test_a_run_that_ended_without_its_command_is_shown_as_what_it_is_and_not_trained_again(commands: Commands) -> None:
    killed = commands.train(600)
    killed.kill()
    killed.communicate()
    asyncio.run(CountingLauncher({}).find(commands.folder).wait())  # type: ignore[arg-type]
    assert commands.row.state is RunState.RUNNING

    code, printed, complained = commands.run("runs", "x")
    assert (code, printed.splitlines()[0].split()) == (0, ["x", "training", "SUCCEEDED"]), complained
    repeated, printed, complained = commands.run("train", "quick", "--run-id", "x", *options(600))
    assert (repeated, printed.splitlines()[0]) == (0, "run x succeeded on cifar10-slice"), complained
    assert commands.row.attempts == 1


def test_a_run_that_was_killed_with_its_command_waits_and_goes_on(commands: Commands) -> None:
    killed = commands.train(1000)
    pid = commands.folder.signed()
    assert pid is not None
    killed.kill()
    os.killpg(pid, signal.SIGKILL)
    killed.communicate()

    code, printed, complained = commands.run("train", "--run-id", "x")

    assert code == 0, complained
    assert re.search(r"test_accuracy +0\.5", printed)
    assert commands.row.attempts == 2
