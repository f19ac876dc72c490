from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.trainer.runs import progress as progress_module
from services.trainer.runs.progress import (
    Progress,
    ProgressWriter,
    finished_epochs,
    finite,
    read_epochs,
    read_newest,
    read_progress,
)


def entry(epoch: int, kind: str = "epoch", **fields: object) -> Progress:
    return Progress.model_validate(
        {"time": 1.5, "kind": kind, "stage": "train", "fraction": 0.5, "epoch": epoch, **fields}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.jsonl"


def write(path: Path, *entries: Progress) -> None:
    with ProgressWriter(path) as progress:
        for each in entries:
            progress.append(each)


def test_what_is_written_is_read_with_the_positions_to_go_on_from(path: Path) -> None:
    entries = [entry(1, "step", step=10, steps=20, figures={"train_loss": 2.5}, eta_seconds=3.5), entry(1), entry(2)]
    write(path, *entries)

    read = read_progress(path)

    assert [each for _, each in read] == entries
    assert read[-1][0] == path.stat().st_size
    for number, (position, _) in enumerate(read):
        assert read_progress(path, position) == read[number + 1 :]


def test_nothing_is_read_where_nothing_was_written(path: Path) -> None:
    assert (read_progress(path), read_newest(path), read_epochs(path)) == ([], None, 0)
    path.write_text("")
    assert (read_progress(path), read_newest(path), read_epochs(path)) == ([], None, 0)


def test_a_line_that_is_being_written_is_not_read_yet(path: Path) -> None:
    write(path, entry(1))
    with path.open("ab") as file:
        file.write(b'{"time": 2.5, "ki')

    assert [each.epoch for _, each in read_progress(path)] == [1]
    assert read_newest(path) == entry(1)


def test_a_writer_cuts_off_what_a_killed_process_left_of_a_line(path: Path) -> None:
    write(path, entry(1))
    position = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"time": 2.5, "ki')

    write(path, entry(2))

    assert [each for _, each in read_progress(path, position)] == [entry(2)]


@given(sizes=st.lists(st.integers(0, 200), max_size=20), at_once=st.integers(1, 300))
def test_progress_of_any_length_is_read_in_parts_without_a_gap(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], at_once: int
) -> None:
    path = tmp_path_factory.mktemp("progress") / "progress.jsonl"
    entries = [entry(number, figures={"x" * size: 1.0}) for number, size in enumerate(sizes)]
    write(path, *entries)

    read: list[Progress] = []
    position = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_module, "READ_BYTES", at_once)
        while more := read_progress(path, position):
            position = more[-1][0]
            read += [each for _, each in more]
        epochs = read_epochs(path)

    assert (read, epochs) == (entries, max(len(entries) - 1, 0))


def test_the_newest_entry_is_found_behind_a_long_past(path: Path) -> None:
    write(path, *(entry(number, "step") for number in range(2_000)))

    assert path.stat().st_size > progress_module.TAIL_BYTES
    assert read_newest(path) == entry(1_999, "step")


@pytest.mark.parametrize("position", [-1, 1, 10_000])
def test_a_position_that_is_none_is_refused(path: Path, position: int) -> None:
    write(path, entry(1))

    with pytest.raises(InvalidInput, match=f"position {position} is not one that the progress of this run has"):
        read_progress(path, position)


def test_a_position_behind_progress_that_does_not_exist_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInput, match="position 10 lies behind the progress"):
        read_progress(path, 10)


def test_a_damaged_line_is_named(path: Path) -> None:
    path.write_text("{}\n")

    with pytest.raises(InvalidInput, match=r"^progress.jsonl of run .* holds a line that is no progress"):
        read_progress(path)


def test_of_an_epoch_that_is_told_twice_the_last_word_counts() -> None:
    entries = [entry(1), entry(2, figures={"loss": 1.0}), entry(2, "step"), entry(2, figures={"loss": 2.0})]

    assert finished_epochs(entries) == {1: entries[0], 2: entries[3]}


def test_figures_that_json_cannot_say_are_left_out() -> None:
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf"), "d": -float("inf")}) == {"a": 1.0}
