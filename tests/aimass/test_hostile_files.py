"""The command line among files and arguments that were not made for it."""

import os

import numpy as np
import pytest
from PIL import Image


def save_noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path, "PNG")


def test_a_file_that_cannot_be_imported_is_told_and_the_others_are_imported(run, tmp_path):
    folder = tmp_path / "pets"
    for seed, name in enumerate(("cat/a.png", "cat/deep/er/b.png", f"dog/{'x' * 240}.png", "dog/c.png", "wolf/d.png")):
        save_noise(folder / name, seed)
    os.rename(folder / "dog" / "c.png", os.fsencode(folder / "dog") + b"/\xff.png")
    (folder / "cat" / "Thumbs.db").touch()
    with (folder / "cat" / "large.png").open("wb") as file:
        file.truncate(65 << 20)
    os.mkfifo(folder / "cat" / "pipe.png")
    created = run("data", "create", "pets", "cat", "dog")

    imported = run("data", "import", "pets", str(folder))

    assert (created.returncode, imported.returncode) == (0, 0)
    assert "4 accepted, 0 were there already, 3 refused" in imported.stdout
    assert "cat/large.png: the file has 68,157,440 bytes; the limit is 33,554,432; make it smaller" in imported.stdout
    assert "cat/pipe.png: the file cannot be read: it is a pipe, a device or a folder" in imported.stdout
    assert "wolf/d.png: label 'wolf' is not one of model 'pets'" in imported.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "report", "cifar10-slice", "--to", "rep.json"], "--to 'rep.json' cannot be the page"),
        (["data", "report", "cifar10-slice", "--judge", "quick", "--to", "rep.json"], "cannot be the page"),
        (["data", "report", "cifar10-slice", "--to", "."], "--to '.' cannot be the page"),
        (["runs", "--state", "foo"], "--state 'foo' is none; use one of queued, running, succeeded, failed, cancelled"),
        (["train", "--set", b"recipe=\xff"], "half of a surrogate pair"),
        (["runs", b"\xff"], "is not UTF-8"),
    ],
)
def test_an_argument_that_cannot_be_is_told_in_a_sentence(run, arguments, words, tmp_path):
    told = run(*arguments)

    assert told.returncode == 1
    assert told.stderr.startswith("error: ")
    assert words in told.stderr
    assert not (tmp_path / "rep.json").exists()
