"""`aimass train` as a person uses it: broken off with Ctrl-C, taken up by its name, published, asked over HTTP."""

import re
import signal
import subprocess
from dataclasses import dataclass

import grpc
import pytest

from aimass.starter import STARTER
from services.trainer.publishing import publish_version
from services.trainer.runs.record import CHECKPOINT_FILE, Run, RunState, read_run
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import AIMASS, clean_environment, eventually, poll

MODEL, EPOCHS = "learnt", 5
TINY = (
    f"epochs={EPOCHS}",
    "batch_size=256",
    "threads=1",
    "network_options.widths=[8, 8, 8]",
    "network_options.depths=[0, 0, 0]",
)


@dataclass(frozen=True)
class Trained:
    """How an `aimass train` ended."""

    code: int
    printed: str
    complained: str
    run: Run


@pytest.fixture(scope="module")
def suite(suites):
    """The suite of one process, with the starter model as version 1 of a model that will get a second version."""
    suite = suites["pipeline"]
    with grpc.insecure_channel(f"127.0.0.1:{suite.ports.inference}") as channel:
        assert publish_version(channel, MODEL, STARTER / "cifar10" / "1").version == 1
    return suite


@pytest.fixture(scope="module")
def train(suite, tmp_path_factory):
    """A function that runs `aimass train` with arguments, broken off after an epoch where that is asked for."""
    home = tmp_path_factory.mktemp("home")
    address = f"127.0.0.1:{suite.ports.inference}"
    environment = clean_environment(AIMASS_HOME=str(home), TRAINER_INFERENCE_ADDRESS=address)

    def train(*arguments, interrupt=False):
        with (home / "stdout").open("wb") as stdout, (home / "stderr").open("wb") as stderr:
            process = subprocess.Popen([AIMASS, "train", *arguments], env=environment, stdout=stdout, stderr=stderr)
        try:
            if interrupt:
                poll(lambda: any(home.glob(f"runs/*/{CHECKPOINT_FILE}")), process, home)
                process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
        (folder,) = home.glob("runs/*")
        return Trained(code, (home / "stdout").read_text(), (home / "stderr").read_text(), read_run(folder))

    # A shell lets what it runs in the background ignore SIGINT, and that is handed on to children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield train
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def interrupted(train):
    """A run that was broken off after its first epoch."""
    options = [argument for assignment in TINY for argument in ("--set", assignment)]
    return train("--data", "cifar10-slice", *options, interrupt=True)


@pytest.fixture(scope="module")
def resumed(train, interrupted):
    """The same run after the command that the first one printed, with the wish that its result serve."""
    arguments = re.search(r"if it is interrupted, `aimass train (.*)` goes on", interrupted.printed)[1]
    return train(*arguments.split(), "--publish", "--stable", "--model", MODEL)


def test_the_data_set_is_named_before_training_begins(interrupted):
    assert "data set cifar10-slice (4500 train, 500 validation, 1000 test)\n" in interrupted.printed


def test_ctrl_c_ends_a_run_with_a_sentence_and_keeps_its_epochs(interrupted):
    assert interrupted.code == 1
    assert "error: interrupted" in interrupted.complained
    assert "Traceback" not in interrupted.complained
    assert interrupted.run.state is RunState.FAILED
    assert interrupted.run.reason == f"interrupted; `aimass train --run-id {interrupted.run.id}` goes on"
    assert 1 <= len(interrupted.run.history) < EPOCHS


def test_the_name_alone_goes_on_with_the_options_and_the_epochs_of_a_run(interrupted, resumed):
    before, after = interrupted.run, resumed.run

    assert (resumed.code, after.state) == (0, RunState.SUCCEEDED)
    assert (after.id, after.options) == (before.id, before.options)
    assert after.history[: len(before.history)] == before.history
    assert [result.epoch for result in after.history] == list(range(1, EPOCHS + 1))


async def test_a_trained_version_that_is_stable_answers_over_http_with_its_labels(suite, resumed):
    def ask():
        with suite.client() as client:
            return client.post(f"/v1/models/{MODEL}/predict", content=cat(), params={"top": 100}).json()

    await eventually(lambda: ask()["version"] == 2)
    answer = ask()

    assert f"published as version 2 of {MODEL}, which serves now" in resumed.printed
    assert len({each["label"] for each in answer["predictions"]}) == 10
    assert sum(each["probability"] for each in answer["predictions"]) == pytest.approx(1, abs=1e-4)
