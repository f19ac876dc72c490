"""The command line against a running suite."""

import json
import subprocess

import grpc
import pytest

from aimass.starter import STARTER
from services.trainer.publishing import publish_version
from tests.end_to_end.pictures import SAMPLES, cat
from tests.end_to_end.suite import AIMASS, Ports


@pytest.fixture
def cat_file(tmp_path):
    (tmp_path / "cat.png").write_bytes(cat())
    return "cat.png"


@pytest.fixture
def bad_file(tmp_path):
    (tmp_path / "[bold]notes.txt").write_text("no picture")
    return "[bold]notes.txt"


def test_help_names_the_commands():
    shown = subprocess.run([AIMASS, "--help"], capture_output=True, text=True, timeout=60)

    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("up", "predict", "models", "train", "data"))


def test_predict_shows_a_table_with_a_row_for_each_file(aimass, cat_file):
    shown = aimass("predict", cat_file, *SAMPLES[:2])

    rows = [line.split() for line in shown.stdout.splitlines()]
    assert shown.returncode == 0
    assert rows[0] == ["file", "label", "probability", "others", "time"]
    assert rows[1][:2] == ["cat.png", "cat"]
    assert rows[1][2].endswith("%")
    assert rows[1][-1] == "ms"
    assert len(rows) == 4


def test_predict_writes_a_json_document_for_each_file(aimass, cat_file):
    shown = aimass("predict", "--json", "--top", "2", "--version", "1", cat_file, cat_file)

    documents = [json.loads(line) for line in shown.stdout.splitlines()]
    assert shown.returncode == 0
    assert [document["file"] for document in documents] == ["cat.png"] * 2
    assert [len(document["predictions"]) for document in documents] == [2, 2]
    assert documents[0]["predictions"][0]["label"] == "cat"
    assert documents[0].keys() == {"file", "prediction_id", "model", "version", "captured", "predictions"}


def test_predict_ends_with_1_and_a_sentence_when_a_file_is_no_picture(aimass, cat_file, bad_file):
    shown = aimass("predict", cat_file, bad_file)

    row = next(line for line in shown.stdout.splitlines() if "NOT_AN_IMAGE" in line)
    assert shown.returncode == 1
    assert row.startswith(bad_file)
    assert f"{bad_file}: the 10 bytes" in shown.stderr
    assert "cat.png" in shown.stdout


def test_predict_ends_with_1_and_a_json_error_when_a_file_is_no_picture(aimass, cat_file, bad_file):
    shown = aimass("predict", "--json", bad_file, cat_file)

    bad, good = [json.loads(line) for line in shown.stdout.splitlines()]
    assert shown.returncode == 1
    assert (bad["file"], bad["error"]["code"], bad["error"]["reason"]) == (bad_file, "INVALID_ARGUMENT", "NOT_AN_IMAGE")
    assert good["predictions"][0]["label"] == "cat"


def test_predict_says_what_is_wrong_with_the_request_in_one_sentence(aimass, cat_file):
    shown = aimass("predict", "--model", "dogs", cat_file)

    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: model 'dogs' is unknown; name one that this suite has: cifar10")
    assert len(shown.stderr.splitlines()) == 1


def test_predict_names_a_file_that_does_not_exist(aimass):
    shown = aimass("predict", "nothing.png")

    assert shown.returncode == 2
    assert "nothing.png" in shown.stderr


@pytest.mark.parametrize("command", ["predict", "models"])
def test_a_suite_that_is_away_is_told_in_one_sentence(run, cat_file, command):
    arguments = [command, cat_file] if command == "predict" else [command]

    shown = run(*arguments, "--address", f"127.0.0.1:{Ports.free().grpc}")

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: no suite answers; start one with `aimass up`")
    assert len(shown.stderr.splitlines()) == 1


def test_models_shows_a_table(aimass):
    shown = aimass("models")

    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines()}
    assert shown.returncode == 0
    assert rows["cifar10"][1:6] == ["1", "READY", "images", "10", "1"]
    assert rows["cifar10"][6].endswith("%")
    assert rows["sums"][3] == "tensors"


def test_models_writes_json(aimass):
    models = {model["name"]: model for model in json.loads(aimass("models", "--json").stdout)}

    assert models["cifar10"]["version"] == 1
    assert models["cifar10"]["labels"][3] == "cat"
    assert models["cifar10"]["ready_versions"] == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "fetch", "imagenet"], "data set 'imagenet' is unknown; use cifar10"),
        (["train", "magic"], "recipe 'magic' is unknown; use one of "),
        (["train", "--set", "epochs"], "--set 'epochs' is not name=value"),
        (["train", "--set", "epochs=many"], "epochs is 'many'"),
        (["train", "--set", "epoch=3"], "epoch is not an option; did you mean epochs?"),
        (["train", "--set", "seed=1", "--set", "seed.x=3"], "seed was set before and has no parts"),
        (["train", "--data", "/nowhere"], "/nowhere"),
        (["train", "--trainer", "127.0.0.1:1"], "the trainer at 127.0.0.1:1 does not answer"),
        (["tune", "--space", "lr=0..1"], "learning_rate is 0.0"),
        (["train", "--data", ".", "--publish"], "does not say whose version its model is; name one with --model"),
        (["tune", "--space", "learning_rate=1..x"], "--space 'learning_rate=1..x' is no range; write name=low..high"),
        (["evaluate", "nothing"], "run 'nothing' is unknown"),
        (["export", "nothing", "--to", "out"], "run 'nothing' is unknown"),
        (["export", "nothing"], "nothing to do: say where to with --to FOLDER, or --publish"),
        (["runs", "nothing"], "run 'nothing' is unknown"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument_is_told_in_one_sentence(run, arguments, words):
    shown = run(*arguments)

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("arguments", [["data", "fetch", "cifar10"], ["train"]], ids=" ".join)
def test_a_wrong_setting_is_told_in_one_sentence(run, arguments):
    shown = run(*arguments, TRAINER_PROT="1")

    assert shown.returncode == 1
    assert shown.stderr == "error: TRAINER_PROT is not a setting; did you mean TRAINER_PORT?\n"


@pytest.fixture
def two_versions(suite):
    """A model of which two versions were published."""
    with grpc.insecure_channel(f"127.0.0.1:{suite.ports.inference}") as channel:
        for _ in range(2):
            publish_version(channel, "on-trial", STARTER / "cifar10" / "1")
    return "on-trial"


def test_traffic_is_shown_changed_promoted_and_rolled_back(run, suite, two_versions):
    port = {"INFERENCE_PORT": str(suite.ports.inference)}
    moves = [
        run("traffic", two_versions, "--canary", "2", "--share", "0.25", **port),
        run("promote", two_versions, TRAINER_LOOP="off", **port),
        run("rollback", two_versions, **port),
    ]
    shown = run("traffic", two_versions, **port)
    refused = run("traffic", two_versions, "--stable", "9", **port)

    assert [move.stdout for move in moves] == [
        "on-trial, generation 2: version 1 is stable, version 2 is canary for 25.0%\n",
        "on-trial, generation 3: version 2 is stable, version 1 is previous\n",
        "on-trial, generation 4: version 1 is stable, version 2 is previous\n"
        "Where the loop is on, `aimass loop rollback on-trial` does it through the loop, which then knows who and "
        "why.\n",
    ]
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:]] == [
        ["1", "READY", "stable"],
        ["2", "READY", "previous"],
    ]
    assert refused.returncode == 1
    assert "has no version 9" in refused.stderr
