"""The trainer's commands as a person uses them: a run broken off, taken up, listed, converted, measured, published."""

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from PIL import Image

from aimass.starter import STARTER
from services.trainer.data.slices import read_slice
from services.trainer.publishing import publish_version
from services.trainer.runs.folder import CHECKPOINT_FILE, PROGRESS_FILE, REQUEST_FILE
from services.trainer.runs.progress import finished_epochs, read_progress
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
SETTINGS = [argument for assignment in TINY for argument in ("--set", assignment)]


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: int
    printed: str
    complained: str


@pytest.fixture(scope="module")
def suite(suites):
    """The suite of one process, with the starter model as version 1 of a model that will get further versions."""
    suite = suites["pipeline"]
    with grpc.insecure_channel(f"127.0.0.1:{suite.ports.inference}") as channel:
        assert publish_version(channel, MODEL, STARTER / "cifar10" / "1").version == 1
    return suite


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def aimass(suite, home):
    """A function that runs `aimass` with arguments, broken off after an epoch where that is asked for."""
    address = f"127.0.0.1:{suite.ports.inference}"
    environment = clean_environment(AIMASS_HOME=str(home), TRAINER_INFERENCE_ADDRESS=address)

    def aimass(*arguments, interrupt=False):
        with (home / "stdout").open("wb") as stdout, (home / "stderr").open("wb") as stderr:
            command = [AIMASS, *arguments]
            process = subprocess.Popen(command, env=environment, cwd=home, stdout=stdout, stderr=stderr)
        try:
            if interrupt:
                poll(lambda: any(home.glob(f"runs/*/{CHECKPOINT_FILE}")), process, home)
                process.send_signal(signal.SIGINT)
            code = process.wait(100)
        finally:
            process.kill()
        return Told(code, (home / "stdout").read_text(), (home / "stderr").read_text())

    # A shell lets what it runs in the background ignore SIGINT, and that is handed on to children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield aimass
    signal.signal(signal.SIGINT, before)


def epochs_of(home, run):
    """The finished epochs of a run, without what depends on the time it took."""
    entries = [entry for _, entry in read_progress(Path(home) / "runs" / run / PROGRESS_FILE)]
    timed = ("seconds", "images_per_second")
    return {
        number: {name: value for name, value in epoch.figures.items() if name not in timed}
        for number, epoch in finished_epochs(entries).items()
    }


@pytest.fixture(scope="module")
def interrupted(aimass, home):
    """A run that was broken off after its first epoch, and the epochs that it had finished by then."""
    told = aimass("train", "--data", "cifar10-slice", *SETTINGS, interrupt=True)
    (folder,) = (path.parent for path in home.glob(f"runs/*/{REQUEST_FILE}"))
    return told, folder.name, epochs_of(home, folder.name)


@pytest.fixture(scope="module")
def resumed(aimass, interrupted):
    """The same run after the command that the first one printed, with the wish that its result serve."""
    told, _, _ = interrupted
    arguments = re.search(r"if it is interrupted, `aimass train (.*)` goes on", told.printed)[1]
    return aimass("train", *arguments.split(), "--publish", "--stable", "--model", MODEL)


@pytest.fixture(scope="module")
def run(interrupted, resumed):
    """The name of a run that has succeeded."""
    assert resumed.code == 0, resumed.complained
    return interrupted[1]


def test_ctrl_c_ends_a_run_with_a_sentence_and_keeps_its_epochs(interrupted):
    told, run, epochs = interrupted

    assert told.code == 1
    assert "error: interrupted" in told.complained
    assert "Traceback" not in told.complained
    assert f"`aimass train --run-id {run}` goes on" in told.printed
    assert 1 <= len(epochs) < EPOCHS


def test_the_name_alone_goes_on_with_the_options_and_the_epochs_of_a_run(interrupted, run, home):
    _, _, before = interrupted
    after = epochs_of(home, run)

    assert {number: after[number] for number in before} == before
    assert sorted(after) == list(range(1, EPOCHS + 1))


def test_the_end_of_a_run_shows_its_curves_and_its_figures(resumed):
    assert re.search(r"validation accuracy +[▁▂▃▄▅▆▇█]{5}  0\.\d+ -> 0\.\d+", resumed.printed)
    assert re.search(r"test_accuracy +0\.\d+", resumed.printed)


@pytest.mark.parametrize("given", [["fast"], ["--set", "epochs=1"]], ids=" ".join)
def test_a_run_that_exists_takes_no_other_options(aimass, run, given):
    told = aimass("train", *given, "--run-id", run)

    assert told.code == 1
    assert told.complained.startswith(f"error: run '{run}' exists already with other options; go on with it by its id")


def test_a_finished_run_is_not_trained_again(aimass, run):
    told = aimass("train", "--run-id", run)

    assert told.code == 1
    assert told.complained.startswith(f"error: run '{run}' has succeeded already; send it with --publish or")


async def test_a_trained_version_that_is_stable_answers_over_http_with_its_labels(suite, resumed):
    def ask():
        with suite.client() as client:
            return client.post(f"/v1/models/{MODEL}/predict", content=cat(), params={"top": 100}).json()

    await eventually(lambda: ask()["version"] == 2)
    answer = ask()

    assert f"published as version 2 of {MODEL}, which serves now" in resumed.printed
    assert len({each["label"] for each in answer["predictions"]}) == 10
    assert sum(each["probability"] for each in answer["predictions"]) == pytest.approx(1, abs=1e-4)


def test_runs_are_listed_and_shown(aimass, run):
    listed, shown = aimass("runs"), aimass("runs", run)

    assert run in listed.printed
    assert "SUCCEEDED" in listed.printed
    assert re.search(r"validation accuracy +[▁▂▃▄▅▆▇█]{5}", shown.printed)
    assert '"epochs": 5' in shown.printed


def test_a_model_is_exported_to_a_folder(aimass, run, home):
    told = aimass("export", run, "--to", str(home / "exported"))

    assert told.code == 0, told.complained
    manifest = json.loads((home / "exported" / "model.json").read_text())
    assert manifest["training"]["run_id"] == run
    assert (home / "exported" / "model.onnx").stat().st_size == manifest["graph"]["size_bytes"]
    assert "<html" in (home / "exported" / "card.html").read_text()


def test_an_int8_version_is_made_and_measured_and_where_it_is_not_chosen_published_by_force_alone(aimass, run, home):
    given = ["--precision", "int8", "--publish", "--model", "smaller", "--to", str(home / "int8")]
    told = aimass("export", run, *given)

    name = re.search(r"run (\S+); if it is interrupted, `aimass train --run-id \1` begins it anew", told.printed)[1]
    choice = json.loads((home / "int8" / "choice.json").read_text())  # its 500 samples are too few to choose it
    assert told.code == 1
    assert told.complained.splitlines()[-1] == (
        f"error: the model could not be published: the model of run '{name}' was {choice['reason']}; publish the model "
        f"that it was made from, or this one all the same with force; `aimass train --run-id {name} --publish --model "
        "smaller` tries again without training"
    )
    assert re.search(r"speedup +\d", told.printed)

    forced = aimass("train", "--run-id", name, "--publish", "--model", "smaller", "--force")
    assert forced.code == 0, forced.complained
    assert "published as version 1 of smaller, without traffic" in forced.printed


def test_a_run_is_evaluated_under_noise_and_attack(aimass, run):
    told = aimass("evaluate", run, "--samples", "10")

    assert told.code == 0, told.complained
    assert re.search(r"corrupted_accuracy +0\.\d", told.printed)
    assert re.search(r"pgd_8_accuracy +0", told.printed)


def test_a_run_is_copied_to_mlflow(aimass, run, home):
    told = aimass("runs", run, "--mlflow", f"sqlite:///{home / 'mlflow.db'}")

    assert told.code == 0, told.complained
    assert f"{run} is run " in told.printed


def test_a_search_ends_with_the_model_of_its_best_trial(aimass):
    space = ["--space", "learning_rate=0.01..1:log", "--space", "batch_size=128,256"]
    told = aimass("tune", *space, "--trials", "2", *SETTINGS, "--set", "epochs=1", "--run-id", "search")

    assert told.code == 0, told.complained
    assert "run search succeeded on cifar10-slice" in told.printed
    assert re.search(r"trials +2", told.printed)


def test_likely_wrong_labels_are_reported_on_a_page(aimass, home):
    learning = [*SETTINGS, "--set", "epochs=1"]
    told = aimass("data", "report", "cifar10-slice", "--judge", "quick", "--folds", "2", *learning, "--to", "page.html")

    assert told.code == 0, told.complained
    assert re.search(r"^run inspection-\S+; if it is interrupted, .* begins it anew$", told.printed, re.MULTILINE)
    assert re.search(r"\d+ of 4500 labels are likely wrong; report in page\.html", told.printed)
    assert "<html" in (home / "page.html").read_text()
    assert json.loads((home / "page.json").read_text())["sample_count"] == 6000


def test_samples_of_one_s_own_are_imported_and_trained_on(aimass, home):
    train, _ = read_slice()
    for number, (pixels, label) in enumerate(zip(train.images, train.labels, strict=True)):
        if label in (3, 5) and number < 1500:
            folder = home / "pets" / ("cat" if label == 3 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (home / "pets" / "cat" / "broken.jpg").write_bytes(b"no image")

    created = aimass("data", "create", "pets", "cat", "dog", "--width", "32", "--height", "32")
    imported = aimass("data", "import", "pets", "pets")
    trained = aimass("train", "--data", "model:pets", *SETTINGS, "--set", "epochs=1", "--publish")

    assert (created.code, imported.code) == (0, 0)
    assert re.search(r"\d+ accepted, 0 were there already, 1 refused\n +pets/cat/broken\.jpg: ", imported.printed)
    assert trained.code == 0, trained.complained
    assert "published as version 1 of pets" in trained.printed
