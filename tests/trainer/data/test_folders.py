import os
from pathlib import Path

import pytest

from services.common.errors import InvalidInput
from services.trainer.data.folders import list_pictures
from tests.trainer.data.conftest import write_classes


def anywhere(path: Path) -> bool:
    return True


def test_classes_are_the_names_of_folders_sorted(tmp_path: Path) -> None:
    write_classes(tmp_path, {"dog": 2, "cat": 1})

    found = list_pictures(tmp_path, anywhere)

    assert found.labels == ("cat", "dog")
    assert [(file.name, file.label, file.part) for file in found.files] == [
        ("cat/0.png", 0, ""),
        ("dog/0.png", 1, ""),
        ("dog/1.png", 1, ""),
    ]


@pytest.mark.parametrize("name", ["validation", "val", "Val"])
def test_parts_are_found_by_their_folders(name: str, tmp_path: Path) -> None:
    for part in ("train", name, "test"):
        write_classes(tmp_path / part, {"cat": 1, "dog": 1})

    found = list_pictures(tmp_path, anywhere)

    assert [(file.name, file.part) for file in found.files] == [
        ("train/cat/0.png", "train"),
        ("train/dog/0.png", "train"),
        (f"{name}/cat/0.png", "validation"),
        (f"{name}/dog/0.png", "validation"),
        ("test/cat/0.png", "test"),
        ("test/dog/0.png", "test"),
    ]


def test_train_and_test_are_classes_beside_a_third_folder(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 1, "plane": 1})

    assert list_pictures(tmp_path, anywhere).labels == ("plane", "train")


def test_pictures_are_found_at_any_depth_and_hidden_files_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 1})
    write_classes(tmp_path / "cat", {"at night": 1, ".hidden": 1})
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / ".cache").mkdir()

    assert [file.name for file in list_pictures(tmp_path, anywhere).files] == [
        "cat/0.png",
        "cat/at night/0.png",
        "dog/0.png",
    ]


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 0})

    with pytest.raises(InvalidInput, match=r"class 'dog' is empty: .*/dog has no pictures; add some") as caught:
        list_pictures(tmp_path, anywhere)
    assert caught.value.reason == "EMPTY_CLASS"


def test_a_class_that_one_part_lacks_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "test", {"cat": 1})

    with pytest.raises(InvalidInput, match=r"class 'dog' is empty: .*/test/dog has no pictures"):
        list_pictures(tmp_path, anywhere)


@pytest.mark.parametrize("names", [[], ["a.png"], ["readme.txt"]])
def test_a_folder_of_something_else_is_told_what_was_looked_for(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()

    with pytest.raises(InvalidInput, match=r"neither batches of CIFAR's layout .* nor pictures by class .*; put one"):
        list_pictures(tmp_path, anywhere)


def test_links_are_followed_only_to_where_data_may_come_from(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", write_classes(tmp_path / "outside", {"cat": 2})
    write_classes(inside, {"cat": 1, "dog": 1})
    (inside / "cat" / "near.png").symlink_to(inside / "dog" / "0.png")
    (inside / "cat" / "far.png").symlink_to(outside / "cat" / "0.png")
    (inside / "dog" / "folder").symlink_to(outside / "cat")
    (inside / "wolf").symlink_to(outside / "cat")

    found = list_pictures(inside, lambda path: path.resolve().is_relative_to(inside))

    refusals = {file.name: file.refusal for file in found.files if file.refusal}
    assert refusals.keys() == {"cat/far.png", "dog/folder", "wolf"}
    assert refusals["cat/far.png"].endswith(
        "outside/cat/0.png, outside of the folders that data may come from; copy what is there"
    )
    assert "not followed" in refusals["dog/folder"]


def test_names_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 1})
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")

    assert list_pictures(tmp_path, anywhere).files[0].name == "cat/\ufffd.png"
