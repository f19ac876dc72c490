from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import Conflict, InvalidInput, NotFound
from services.common.manifest import PreprocessSpec
from services.trainer.data.imported import list_picture_files, list_samples
from services.trainer.data.models import count_samples, create_model, find_model, list_models
from services.trainer.sets import ModelSamples
from services.trainer.storage import database as database_module
from services.trainer.storage.database import Database

SPEC = PreprocessSpec(input="image", width=8, height=8)
JSON = SPEC.canonical_json()


def test_a_model_is_found_as_it_was_created(database: Database) -> None:
    created = create_model(database, "pets", ["dog", "cat"], JSON)

    assert find_model(database, "pets") == created
    assert (created.name, created.labels, created.spec) == ("pets", ("dog", "cat"), SPEC)
    assert created.create_time.endswith("Z")
    assert count_samples(database, created) == [0, 0]


def test_creating_an_equal_model_again_returns_the_first(database: Database) -> None:
    first = create_model(database, "pets", ["dog", "cat"], JSON)

    again = create_model(database, "pets", ["dog", "cat"], b'{"height": 8, "width": 8, "input": "image"}')

    assert again == first


@pytest.mark.parametrize(
    ("labels", "spec"),
    [(["cat", "dog"], JSON), (["dog", "cat"], SPEC.model_copy(update={"width": 9}).canonical_json())],
    ids=["labels", "spec"],
)
def test_another_model_of_the_same_name_is_a_conflict(database: Database, labels: list[str], spec: bytes) -> None:
    create_model(database, "pets", ["dog", "cat"], JSON)

    with pytest.raises(Conflict, match=r"model 'pets' exists with labels dog, cat and preprocess spec .*; use another"):
        create_model(database, "pets", labels, spec)


def test_models_are_listed_by_name(database: Database) -> None:
    for name in ("zebra", "ant"):
        create_model(database, name, ["a", "b"], JSON)

    assert [model.name for model in list_models(database)] == ["ant", "zebra"]


def test_tasks_are_read_while_another_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "LOCK_SECONDS", 0)
    database = Database(f"sqlite:///{tmp_path / 'trainer.db'}")
    database.migrate()
    model = create_model(database, "pets", ["dog", "cat"], JSON)

    with database.begin() as writing:
        writing.connection()
        assert find_model(database, "pets") == model
        assert list_models(database) == [model]
        assert count_samples(database, model) == [0, 0]
        assert list_samples(database, "pets") == ([], "")
        assert list_picture_files(database, tmp_path, ModelSamples("pets")) == []
    database.close()


def test_many_may_create_the_same_model_at_once(database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: create_model(database, "pets", ["dog", "cat"], JSON), range(8)))

    assert made == made[:1] * 8


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a@1", "a" * 129, "a\n"])
def test_a_name_that_no_folder_may_have_is_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not valid; use up to 128 letters"):
        create_model(database, name, ["a", "b"], JSON)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "the model has 0 labels; name 2 to 10,000 classes"),
        (["cat"], "the model has 1 labels; name 2 to 10,000 classes"),
        ([str(number) for number in range(10_001)], "the model has 10001 labels"),
        (["cat", " "], "label ' ' is not valid; use 1 to 200 characters"),
        (["cat", "c\x1b[2Jat"], "label 'c\\x1b[2Jat' has the character U+001B, which cannot be seen; leave it out"),
        (["cat", "x" * 201], "is not valid; use 1 to 200 characters"),
        (["cat", "dog", "cat"], "label 'cat' is named twice; name each class once"),
    ],
    ids=["none", "one", "many", "blank", "hidden", "long", "twice"],
)
def test_labels_that_are_no_classes_are_refused(database: Database, labels: list[str], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        create_model(database, "pets", labels, JSON)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (b"", "the preprocess spec is not valid; correct it"),
        (b'{"input": "image", "width": 8}', "height: Field required"),
        (b'{"input": "image", "width": 8, "height": 8, "hight": 8}', "hight: Extra inputs are not permitted"),
        (b'{"input": "image", "width": 8, "height": 8, "layout": "NCHW"}', "asks for UINT8 NCHW RGB pixels"),
    ],
    ids=["empty", "missing", "unknown", "layout"],
)
def test_a_spec_that_is_none_is_refused(database: Database, spec: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        create_model(database, "pets", ["a", "b"], spec)
    assert words in caught.value.message


def test_an_unknown_model_is_told_with_the_nearest(database: Database) -> None:
    with pytest.raises(NotFound, match="model 'pets' is unknown; create it with CreateModel first"):
        find_model(database, "pets")

    create_model(database, "pets", ["a", "b"], JSON)

    with pytest.raises(NotFound, match="model 'pet' is unknown; did you mean 'pets'"):
        find_model(database, "pet")


@pytest.mark.parametrize(
    ("label", "words"),
    [("catt", "label 'catt' is not one of model 'pets'; did you mean 'cat'?"), ("zebra", "use one of dog, cat")],
)
def test_an_unknown_label_is_told_with_the_nearest(database: Database, label: str, words: str) -> None:
    model = create_model(database, "pets", ["dog", "cat"], JSON)

    with pytest.raises(InvalidInput) as caught:
        model.label_number(label)
    assert words in caught.value.message
