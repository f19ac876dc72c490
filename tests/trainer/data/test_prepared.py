import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.errors import Overloaded
from services.common.manifest import PreprocessSpec
from services.trainer.data import prepared
from services.trainer.data.files import PictureFile
from services.trainer.data.pictures import read_picture
from services.trainer.data.prepared import prepare_pictures
from tests.trainer.data.conftest import write_classes

SPEC = PreprocessSpec(input="image", width=8, height=6)


@pytest.fixture
def files(tmp_path: Path) -> list[PictureFile]:
    folder = write_classes(tmp_path / "set", {"cat": 3}) / "cat"
    return [PictureFile(path.name, path, 0) for path in sorted(folder.iterdir())]


def test_pixels_lie_in_the_order_of_the_files(files: list[PictureFile], tmp_path: Path) -> None:
    made = prepare_pictures(files, SPEC, tmp_path / "prepared")

    assert made.images.shape == (3, 6, 8, 3)
    assert made.images.dtype == np.uint8
    assert isinstance(made.images, np.memmap)
    for pixels, file in zip(made.images, files, strict=True):
        assert np.array_equal(pixels, read_picture(file.path.read_bytes()).pixels(SPEC))
    assert made.sizes.tolist() == [[10, 12]] * 3
    assert made.formats == ("PNG",) * 3
    assert made.unreadable == {}


def test_the_same_files_are_decoded_once(files: list[PictureFile], tmp_path: Path) -> None:
    first = prepare_pictures(files, SPEC, tmp_path / "prepared")
    before = (first.folder / "images.npy").stat()

    again = prepare_pictures(files, SPEC, tmp_path / "prepared")

    assert again.folder == first.folder
    assert (again.folder / "images.npy").stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_file_spec_or_orientation_is_decoded_anew(files: list[PictureFile], tmp_path: Path) -> None:
    folders = {prepare_pictures(files, SPEC, tmp_path / "prepared").folder}
    folders.add(prepare_pictures(files, SPEC.model_copy(update={"width": 9}), tmp_path / "prepared").folder)
    folders.add(prepare_pictures([dataclasses.replace(files[0], orientation=3)], SPEC, tmp_path / "prepared").folder)
    Image.new("RGB", (10, 12), "red").save(files[0].path)
    changed = prepare_pictures(files, SPEC, tmp_path / "prepared")

    assert len(folders | {changed.folder}) == 4
    assert changed.images[0, 0, 0].tolist() == [255, 0, 0]


def test_an_orientation_kept_apart_turns_the_picture(files: list[PictureFile], tmp_path: Path) -> None:
    turned = prepare_pictures([dataclasses.replace(files[0], orientation=3)], SPEC, tmp_path / "prepared")
    plain = prepare_pictures(files[:1], SPEC, tmp_path / "prepared")

    assert np.array_equal(turned.images[0], plain.images[0, ::-1, ::-1])


def test_files_that_cannot_be_read_are_told_and_leave_black(files: list[PictureFile], tmp_path: Path) -> None:
    files[0].path.write_bytes(b"hello")
    files[1].path.unlink()
    files[2] = dataclasses.replace(files[2], refusal="it must not be opened")

    made = prepare_pictures(files, SPEC, tmp_path / "prepared")

    assert list(made.unreadable) == [0, 1, 2]
    assert made.unreadable[0].startswith("the 5 bytes do not begin like an image")
    assert made.unreadable[1] == "the file cannot be read: No such file or directory; make it readable or leave it out"
    assert made.unreadable[2] == "it must not be opened"
    assert not made.images.any()


def test_writing_to_the_pixels_never_reaches_the_disk(files: list[PictureFile], tmp_path: Path) -> None:
    first = prepare_pictures(files, SPEC, tmp_path / "prepared")
    expected = first.images.copy()

    first.images[:] = 7

    assert np.array_equal(prepare_pictures(files, SPEC, tmp_path / "prepared").images, expected)


def test_a_full_disk_is_told_before_anything_is_decoded(
    files: list[PictureFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]

    with pytest.raises(Overloaded, match=r"the decoded pictures take 432 bytes and .* has 10 left; make room there"):
        prepare_pictures(files, SPEC, tmp_path / "prepared")
    assert list((tmp_path / "prepared").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(files: list[PictureFile], tmp_path: Path) -> None:
    (tmp_path / "prepared").write_bytes(b"a file")

    with pytest.raises(Overloaded, match=r"decoded pictures cannot be kept in .*prepared: .*; make room there"):
        prepare_pictures(files, SPEC, tmp_path / "prepared")


def test_only_the_sets_used_last_are_kept(
    files: list[PictureFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "KEPT", 2)
    root = tmp_path / "prepared"
    sets = [prepare_pictures(files[:count], SPEC, root).folder for count in (1, 2)]
    for age, folder in enumerate(sets):
        os.utime(folder, (1000 + age, 1000 + age))
    left = root / ".left-by-a-killed-process"
    left.mkdir()
    os.utime(left, (1000, 1000))
    prepare_pictures(files[:1], SPEC, root)  # used again

    newest = prepare_pictures(files, SPEC, root).folder

    assert set(root.iterdir()) == {sets[0], newest}


def test_a_finished_set_has_an_index_that_can_be_read(files: list[PictureFile], tmp_path: Path) -> None:
    folder = prepare_pictures(files, SPEC, tmp_path / "prepared").folder

    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "index.json"]
    assert json.loads((folder / "index.json").read_text()).keys() == {"sizes", "formats", "unreadable"}
