"""Folders with anything in them but pictures, and tasks with more labels than anybody compares."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import InvalidInput, NotFound
from services.common.manifest import PreprocessSpec
from services.trainer.data import models
from services.trainer.data.cifar_files import BINARY, read_batches
from services.trainer.data.collecting import collect
from services.trainer.data.files import read_file
from services.trainer.data.models import create_model
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import write_classes

SPEC = PreprocessSpec(input="image", width=8, height=8).canonical_json()
Options = Callable[..., TrainingOptions]


def unreadable(sources: DataSources, options: TrainingOptions) -> dict[str, str]:
    collection = collect(options, sources)
    return {collection.names[position]: problem for position, problem in collection.unreadable.items()}


def test_what_is_no_regular_file_is_told_and_not_waited_for(root: Path, sources: DataSources, options: Options) -> None:
    write_classes(root / "pets", {"cat": 2, "dog": 2})
    os.mkfifo(root / "pets" / "cat" / "pipe.png")
    (root / "pets" / "dog" / "linked.png").symlink_to("../cat/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "pets" / "dog" / "socket.png"))

    found = unreadable(sources, options(str(root / "pets")))

    told = "the file cannot be read: it is a pipe, a device or a folder; leave it out"
    assert found == {
        "cat/pipe.png": told,
        "dog/linked.png": told,
        "dog/socket.png": "the file cannot be read: No such device or address; make it readable or leave it out",
    }


def test_a_device_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="it is a pipe, a device or a folder"):
        read_file(Path("/dev/zero"))


def test_a_batch_that_is_a_pipe_is_told(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    os.mkfifo(tmp_path / "test_batch.bin")

    with pytest.raises(InvalidInput, match=r"test_batch\.bin: the file cannot be read: it is a pipe"):
        read_batches(tmp_path, BINARY)


def test_a_batch_that_leads_outside_is_not_read(
    root: Path, tmp_path: Path, sources: DataSources, options: Options
) -> None:
    (tmp_path / "secret").write_text("same\nsame\n")
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (root / name).write_bytes(bytes(3073))
    (root / "batches.meta.txt").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidInput, match=r"batches\.meta\.txt is a link that leads outside of the folders") as caught:
        collect(options(str(root)), sources)

    assert "same" not in caught.value.message


def test_links_in_a_circle_are_told(root: Path, sources: DataSources, options: Options) -> None:
    write_classes(root / "pets", {"cat": 1, "dog": 1})
    (root / "pets" / "cat" / "circle.png").symlink_to("circle.png")

    found = unreadable(sources, options(str(root / "pets")))

    assert list(found) == ["cat/circle.png"]
    assert "Too many levels of symbolic links" in found["cat/circle.png"]


def test_a_class_that_leads_outside_is_not_looked_into(
    root: Path, tmp_path: Path, sources: DataSources, options: Options
) -> None:
    write_classes(root / "pets", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "secret", {"names": 1})
    (root / "pets" / "wolf").symlink_to(tmp_path / "secret" / "names")

    found = unreadable(sources, options(str(root / "pets")))

    assert list(found) == ["wolf"]
    assert "outside of the folders that data may come from" in found["wolf"]


def test_a_part_that_leads_outside_is_not_looked_into(
    root: Path, tmp_path: Path, sources: DataSources, options: Options
) -> None:
    write_classes(root / "pets" / "train", {"cat": 1, "dog": 1})
    (root / "pets" / "test").symlink_to(write_classes(tmp_path / "secret", {"names": 1}))

    with pytest.raises(InvalidInput, match=r"pets/test cannot be read: it leads to .*/secret, outside of") as caught:
        collect(options(str(root / "pets")), sources)

    assert "names" not in caught.value.message


@pytest.mark.parametrize("name", ["a\0b", "/a\0b", "x" * 5_000, "/" + "x" * 5_000, "circle"])
def test_what_is_no_path_is_refused(root: Path, sources: DataSources, options: Options, name: str) -> None:
    (sources.data / "circle").parent.mkdir(exist_ok=True)
    (sources.data / "circle").symlink_to("circle")

    with pytest.raises((InvalidInput, NotFound)):
        collect(options(name), sources)


def test_no_name_is_not_the_folder_of_all_sets(options: Options) -> None:
    with pytest.raises(InvalidInput, match="dataset is '': string should have at least 1 character"):
        options("")


def test_a_wrong_label_is_compared_with_few_and_short_ones(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = models.get_close_matches

    def counting(word: str, names: list[str], **more: int) -> list[str]:
        compared.extend(names)
        return real(word, names, **more)

    monkeypatch.setattr(models, "get_close_matches", counting)
    labels = [*(f"class {number}" for number in range(5_000)), *(f"{number:0190}" for number in range(5_000))]
    model = create_model(database, "many", labels, SPEC)

    with pytest.raises(InvalidInput, match="label 'clas 7' is not one of model 'many'; did you mean 'class 7'"):
        model.label_number("clas 7")
    with pytest.raises(InvalidInput, match="use one of class 0, class 1, "):
        model.label_number("x" * 190)

    assert model.label_number(labels[9_999]) == 9_999
    assert len(compared) <= 600
    assert max(map(len, compared)) <= 50


def test_a_label_that_is_there_twice_among_ten_thousand_is_named(database: Database) -> None:
    labels = [*map(str, range(9_999)), "9998"]

    with pytest.raises(InvalidInput, match="label '9998' is named twice"):
        create_model(database, "twice", labels, SPEC)


def test_a_report_is_json_whatever_files_are_called(root: Path, sources: DataSources, options: Options) -> None:
    write_classes(root / "pets", {"cat": 2, "dog": 2})
    os.mkfifo(os.fsencode(root / "pets" / "cat") + b"/\xff.png")

    assert json.dumps(unreadable(sources, options(str(root / "pets")))).encode()
